"""The datasets of a run: held-out images, shared images, built-in scenes, and classes that nothing teaches."""

import dataclasses
import json
from pathlib import Path

import pytest

from packed import all_records, pack, square_record
from tiny_run import tiny_run, train_until_killed
from yolor_ray.config import TrainConfig
from yolor_ray.errors import ConfigError, DataError
from yolor_ray.train.datasets import opening
from yolor_ray.train.datasets.opening import open_datasets, refuse_shared_images, validation_url
from yolor_ray.train.run import prepare, train
from yolor_ray.train.run_log import read_metrics

pytestmark = pytest.mark.usefixtures("undrawn")


def run_on(folder: Path, name: str, **data: object) -> TrainConfig:
    config = tiny_run(folder, name)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


@pytest.fixture
def photos(tmp_path: Path) -> str:
    url = str(tmp_path / "photos")
    pack(url, [[square_record(index) for index in range(start, start + 20)] for start in (0, 20)])
    return url


@pytest.fixture
def other_photos(tmp_path: Path) -> str:
    url = str(tmp_path / "other")
    pack(url, [[square_record(index) for index in range(38, 48)]])
    return url


def test_without_a_validation_set_a_share_of_the_training_set_is_held_out(tmp_path: Path, photos: str, caplog) -> None:
    with caplog.at_level("INFO"):
        result = train(run_on(tmp_path, "held", train=photos, val="", hold_out=0.2))
    train_set, val_set = open_datasets(run_on(tmp_path, "held", train=photos, val="", hold_out=0.2))
    assert train_set.images + val_set.images == 40 and 3 < val_set.images < 14
    assert f"event=held_out images={val_set.images} of=40" in caplog.text and "reason='data.val is not given'" in caplog.text
    assert {row["records"] for row in read_metrics(result["run"])} == {train_set.images}
    assert json.loads((Path(result["run"]) / "config.json").read_text())["data"]["val"] == ""
    assert {record.name for record in all_records(val_set.url)}.isdisjoint(record.name for record in all_records(train_set.url))


def test_a_run_with_held_out_images_resumes_exactly(tmp_path: Path, photos: str, monkeypatch) -> None:
    config = run_on(tmp_path, "resumed", train=photos, val="")
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, checkpoint_minutes=0.0))
    train_until_killed(config, monkeypatch, 12)
    rows = read_metrics(train(config)["run"])
    assert len({row["records"] for row in rows}) == 1 and len(rows) == 3


def test_a_training_set_too_large_to_copy_needs_a_validation_set(tmp_path: Path, photos: str, monkeypatch) -> None:
    monkeypatch.setattr(opening, "MAX_HELD_OUT_BYTES", 100.0)
    with pytest.raises(ConfigError, match=r"data\.val: found no validation set, expected one"):
        open_datasets(run_on(tmp_path, "large", train=photos, val=""))


def test_built_in_scenes_without_a_validation_set_are_validated_on_other_scenes() -> None:
    assert validation_url("scenes:8, scenes:4", "") == "scenes:80"
    assert validation_url("scenes:8", "scenes:5") == "scenes:5"
    assert validation_url("scenes:8,photos", "") == ""


def test_a_run_whose_config_names_the_former_default_resumes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(opening, "SCENES_VALIDATION", "scenes:5")
    config = run_on(tmp_path, "former", train="scenes:21", val="scenes:5")
    train_until_killed(config, monkeypatch, 3)
    assert json.loads((tmp_path / "former" / "config.json").read_text())["data"]["val"] == "scenes:5"
    train(run_on(tmp_path, "former", train="scenes:21", val=""))


@pytest.mark.parametrize("val", ["photos", "other", "other,photos"])
def test_a_validation_set_with_training_images_is_refused(tmp_path: Path, photos: str, other_photos: str, val: str) -> None:
    urls = ",".join(str(tmp_path / name) for name in val.split(","))
    shared = {"photos": "40 of 40", "other": "2 of 10", "other,photos": "42 of 50"}[val]
    example = "0000.png" if val == "photos" else "0038.png"
    with pytest.raises(
        DataError, match=f"found {shared} images of data.val in data.train, too, such as '{example}'.*--data.allow_shared_images"
    ):
        train(run_on(tmp_path, "shared", train=photos, val=urls))
    assert not (tmp_path / "shared" / "config.json").exists()


def test_shared_images_are_allowed_by_a_flag_and_warned_of(tmp_path: Path, photos: str, caplog) -> None:
    config = run_on(tmp_path, "allowed", train=photos, val=photos, allow_shared_images=True)
    refuse_shared_images(config, *open_datasets(config))
    assert "event=shared_images count=40 of=40 example='0000.png'" in caplog.text


def test_a_resumed_run_does_not_compare_images_again(tmp_path: Path, photos: str, other_photos: str, monkeypatch) -> None:
    config = run_on(tmp_path, "again", train=photos, val=other_photos, allow_shared_images=True)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, checkpoint_minutes=0.0))
    train_until_killed(config, monkeypatch, 6)
    monkeypatch.setattr(opening, "image_hashes", lambda *_: pytest.fail("hashed again"))
    train(run_on(tmp_path, "again", train=photos, val=other_photos))


def test_a_class_without_a_training_box_is_warned_of(tmp_path: Path, photos: str, caplog) -> None:
    prepare(run_on(tmp_path, "classes", train=photos, val=""), str(tmp_path / "classes"))
    assert "event=classes_without_boxes count=1 of=2 classes='nothing'" in caplog.text


def test_a_training_on_built_in_scenes_says_so(tmp_path: Path, caplog) -> None:
    prepare(run_on(tmp_path, "drawn"), str(tmp_path / "drawn"))
    assert "event=built_in_scenes data=scenes:21" in caplog.text and "--data.train URL" in caplog.text
