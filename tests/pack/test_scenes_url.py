"""`scenes:N` among dataset URLs is packed once into a folder, or into a temporary folder."""

from pathlib import Path

import pytest

from yolor_ray.data.shards.dataset import VERSION, open_dataset
from yolor_ray.errors import ConfigError
from yolor_ray.pack import scenes_url
from yolor_ray.pack.scenes_url import resolve_dataset_urls, temporary_dataset_urls


def test_scenes_are_packed_beside_other_datasets_and_reused(tmp_path, monkeypatch):
    urls = resolve_dataset_urls(f"scenes:2, {tmp_path}/other", str(tmp_path), seed=3)
    scenes, other = urls.split(",")
    assert (scenes, other) == (f"{tmp_path}/2-seed3-v{VERSION}", f"{tmp_path}/other")
    assert open_dataset(scenes).images == 2
    monkeypatch.setattr(scenes_url, "pack_scenes", None)
    assert resolve_dataset_urls("scenes:2", str(tmp_path), seed=3) == scenes


def test_another_seed_is_another_dataset(tmp_path):
    urls = [resolve_dataset_urls("scenes:1", str(tmp_path), seed) for seed in (0, 1)]
    assert len({open_dataset(url).digest for url in urls}) == 2


def test_temporary_scenes_are_removed_on_exit():
    with temporary_dataset_urls("scenes:1") as url:
        assert open_dataset(url).images == 1
    assert not Path(url).exists()


@pytest.mark.parametrize("url", ["scenes:", "scenes:0", "scenes:few", "scenes:-1"])
def test_a_count_that_is_not_positive_is_refused(tmp_path, url):
    with pytest.raises(ConfigError, match=f"data: found '{url}', expected scenes:N with N 1 or more"):
        resolve_dataset_urls(url, str(tmp_path), seed=0)
