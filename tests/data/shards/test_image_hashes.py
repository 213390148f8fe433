"""Hashes of images: from the packed file, from the images themselves, and after damage."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from yolor_ray.data.shards import image_hashes as module
from yolor_ray.data.shards.dataset import Dataset, open_dataset
from yolor_ray.data.shards.image_hashes import HASHES_FILE, image_hashes
from yolor_ray.data.shards.union import unite
from yolor_ray.pack.run import pack_scenes


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    pack_scenes(str(tmp_path / "data"), 70, 0)
    return open_dataset(str(tmp_path / "data"))


def hash_images(dataset: Dataset, folder: Path) -> np.ndarray:
    """Return the hashes as a dataset of an older version gives them."""
    return image_hashes(dataclasses.replace(dataset, hashes_sha256=""), str(folder))


def test_the_packed_hashes_are_those_of_the_images_and_no_image_is_read(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = hash_images(dataset, tmp_path / "older")
    assert len(set(expected.tolist())) == 70
    monkeypatch.setattr(module, "_group_hashes", None)
    np.testing.assert_array_equal(image_hashes(dataset, str(tmp_path / "none")), expected)
    np.testing.assert_array_equal(hash_images(dataset, tmp_path / "older"), expected)
    both = image_hashes(unite([dataset, dataset]), str(tmp_path / "none"))
    np.testing.assert_array_equal(both, np.concatenate([expected, expected]))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-8], lambda data: bytes([data[0] ^ 1]) + data[1:], lambda data: b""])
def test_damaged_hashes_are_told_and_the_images_are_hashed_again(damage, dataset, tmp_path, caplog) -> None:
    expected, file = image_hashes(dataset, str(tmp_path / "kept")), tmp_path / "data" / HASHES_FILE
    file.write_bytes(damage(file.read_bytes()))
    np.testing.assert_array_equal(image_hashes(dataset, str(tmp_path / "kept")), expected)
    [line] = [record.message for record in caplog.records if "event=hashes_damaged" in record.message]
    assert HASHES_FILE in line and f"expected='{70 * 8} bytes with SHA-256 {dataset.hashes_sha256}'" in line
    file.unlink()
    np.testing.assert_array_equal(image_hashes(dataset, str(tmp_path / "kept")), expected)


def test_kept_hashes_of_another_size_are_replaced(dataset: Dataset, tmp_path: Path) -> None:
    expected = hash_images(dataset, tmp_path / "kept")
    [file] = (tmp_path / "kept").iterdir()
    file.write_bytes(b"short")
    np.testing.assert_array_equal(hash_images(dataset, tmp_path / "kept"), expected)
    assert file.stat().st_size == 70 * 8
