"""Rot in the files of a dataset: every bit of the manifest, and bits, ends and whole shards. The error names the file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from damages import DAMAGES
from hostile_readers import dataset_files, read_records, write_files
from yolor_ray.data.shards.dataset import HASH_KEY, MANIFEST, open_dataset
from yolor_ray.errors import DataError, StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(tmp_path, dataset_files())
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("number", [0, 1])
def test_every_damage_of_a_shard_is_found_and_the_shard_is_named(folder: Path, number: int, damage: Callable) -> None:
    file = sorted(folder.glob("part-*.parquet"))[number]
    damage(file)
    # The four magic bytes at the beginning carry nothing, and no hash covers them.
    if damage is DAMAGES["bit at 0.0"]:
        read_records(folder)
        return
    with pytest.raises(StorageError, match=rf"{file}, row group 0: (not found|found .* expected .*as in dataset\.json)"):
        read_records(folder)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_every_damage_of_the_manifest_is_found_and_the_manifest_is_named(folder: Path, damage: Callable) -> None:
    damage(folder / MANIFEST)
    with pytest.raises(DataError, match=rf"{folder}/{MANIFEST}: "):
        open_dataset(str(folder))


def test_no_bit_of_the_manifest_can_change_its_meaning(folder: Path) -> None:
    manifest, intact = folder / MANIFEST, open_dataset(str(folder))
    data = manifest.read_bytes()
    read = 0
    for offset in range(0, 8 * len(data), 3):
        damaged = bytearray(data)
        damaged[offset // 8] ^= 1 << offset % 8
        manifest.write_bytes(damaged)
        try:
            assert open_dataset(str(folder)) == intact
            read += 1
        except DataError as error:
            assert str(manifest) in str(error)
    assert read < 8 * len(HASH_KEY), "only the name of the hash itself can change unseen"


def test_a_changed_name_is_found_by_the_hash(folder: Path) -> None:
    manifest = folder / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"tall"', b'"tail"'))
    with pytest.raises(DataError, match=r"found a damaged manifest .*content with SHA-256 .* when it was packed"):
        open_dataset(str(folder))


def test_a_manifest_of_an_earlier_version_without_a_hash_is_read(folder: Path) -> None:
    manifest, intact = folder / MANIFEST, open_dataset(str(folder))
    content = json.loads(manifest.read_bytes())
    del content[HASH_KEY]
    manifest.write_text(json.dumps(content))
    assert open_dataset(str(folder)) == intact
