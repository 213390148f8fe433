"""Records come back from shards unchanged, and every damage to a shard or manifest is an error that names it."""

import hashlib
import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from yolor_ray.data.rle import encode_runs
from yolor_ray.data.shards import dataset as shards
from yolor_ray.data.shards import shard_file
from yolor_ray.data.shards.parquet_layout import parse_footer
from yolor_ray.data.shards.records import Objects, Record, objects_from_boxes
from yolor_ray.errors import DataError, StorageError
from yolor_ray.io import storage


def make_record(number: int, objects: int, rich: bool = False, image_bytes: int = 500) -> Record:
    rng = np.random.default_rng(number)
    annotated = objects_from_boxes(np.sort(rng.random((objects, 4), np.float32) * 40, axis=1), rng.integers(0, 2, objects))
    if rich:
        masks = tuple(encode_runs([i * 7, 5 * i + 1, 640 * 480 - 12 * i - 1], 640, 480) for i in range(objects))
        points = rng.random((objects, 5, 3), np.float32)
        boxes, labels, areas = annotated.boxes_xyxy, annotated.labels, annotated.areas
        annotated = Objects(boxes, labels, labels > 0, areas, masks, points, rng.integers(-1, 9, objects))
    tasks = ("classify", "embed", "pose", "segment")[: number % 5] if rich else ("detect",)
    return Record(f"ø {number}.jpg", rng.bytes(image_bytes), 640, 480, annotated, np.arange(number % 3), tasks, number % 4 - 1)


def write_dataset(url: str, *groups: list[Record]) -> shards.Dataset:
    written = []
    for index, records in enumerate(groups):
        data, shard = shards.encode_shard(records, index)
        storage.write_bytes(storage.join(url, shard.name), data)
        written.append(shard)
    images = sum(map(len, groups))
    digest = shards.dataset_digest(written, ("a", "b"))
    names = ("a", "b"), ("tall", "wide"), ("first", "second", "third", "fourth", "fifth")
    dataset = shards.Dataset(url, *names, ("detect",), images, 1, {"a": 1, "b": 0}, tuple(written), digest, {})
    shards.write_dataset(dataset)
    return dataset


def read_all(dataset: shards.Dataset) -> list[Record]:
    return [record for group in dataset.row_groups for record in shards.to_records(shards.read_row_group(dataset, group))]


def assert_same(found: Record, expected: Record) -> None:
    for name in ("name", "image", "width", "height", "tasks", "camera"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.image_labels.tolist() == expected.image_labels.tolist()
    assert found.objects.masks == expected.objects.masks
    for name in ("boxes_xyxy", "labels", "crowd", "areas", "keypoints", "identities"):
        values, expected_values = getattr(found.objects, name), getattr(expected.objects, name)
        assert (values is None) == (expected_values is None), name
        if values is not None:
            np.testing.assert_array_equal(values, expected_values, err_msg=name)
            assert values.dtype == expected_values.dtype, name


@pytest.mark.parametrize("storage_kind", ["local", "s3"])
@pytest.mark.parametrize("rich", [False, True], ids=["boxes", "all tasks"])
def test_records_come_back_unchanged_from_local_files_and_from_s3(storage_kind, rich, tmp_path, request):
    url = str(tmp_path) if storage_kind == "local" else storage.join(request.getfixturevalue("s3")(), "set")
    records = [make_record(number, objects=number % 4, rich=rich) for number in range(150)]
    written = write_dataset(url, records[:100], records[100:])
    opened = shards.open_dataset(url)
    assert opened == written
    for found, expected in zip(read_all(opened), records, strict=True):
        assert_same(found, expected)


def test_records_of_a_table_without_objects_have_keypoints_of_shape_0_0_3(tmp_path):
    dataset = write_dataset(str(tmp_path), [make_record(1, objects=0, rich=True)])
    (record,) = read_all(dataset)
    assert record.objects.boxes_xyxy.shape == (0, 4)
    assert record.objects.keypoints.shape == (0, 0, 3)


def test_row_groups_number_the_records_across_shards(tmp_path):
    dataset = write_dataset(str(tmp_path), [make_record(i, 1) for i in range(130)], [make_record(i, 1) for i in range(130, 140)])
    assert [(g.index, g.first_record, g.rows) for g in dataset.row_groups] == [(0, 0, 64), (1, 64, 64), (2, 128, 2), (0, 130, 10)]


def test_threads_that_need_a_footer_at_the_same_time_parse_it_once(tmp_path, monkeypatch):
    dataset, parsed = write_dataset(str(tmp_path), [make_record(i, 1) for i in range(200)]), []

    def slow_parse(data, file_bytes):
        parsed.append(threading.current_thread().name)
        time.sleep(0.1)
        return parse_footer(data, file_bytes)

    monkeypatch.setattr(shard_file, "parse_footer", slow_parse)
    with ThreadPoolExecutor(4) as threads:
        tables = list(threads.map(lambda group: shards.read_row_group(dataset, group, ["name"]), dataset.row_groups))
    assert len(tables) == 4 and len(parsed) == 1


def test_what_a_task_receives_does_not_grow_with_the_dataset(tmp_path):
    dataset = write_dataset(str(tmp_path / "few"), [make_record(0, 1)], [make_record(1, 2)])
    many = replace(dataset, shards=dataset.shards * 500)
    for whole in (dataset, many):
        group = whole.row_groups[1]
        sent = pickle.dumps(whole.with_shard_of(group))
        assert len(sent) < 2000
        assert shards.read_row_group(pickle.loads(sent), group).equals(shards.read_row_group(dataset, group))


def test_a_dataset_is_sent_without_what_can_be_computed_again(tmp_path):
    dataset = write_dataset(str(tmp_path), [make_record(0, 1)])
    unused = pickle.dumps(dataset)
    assert read_all(dataset) and dataset.shards_by_name and dataset.checked_columns
    assert pickle.dumps(dataset) == unused and pickle.loads(unused) == dataset


def test_large_images_make_short_row_groups(monkeypatch):
    monkeypatch.setattr(shards.shard_file, "GROUP_BYTES", 2500)
    _, shard = shards.encode_shard([make_record(i, 1, image_bytes=1000) for i in range(7)], 0)
    assert shard.row_groups == (3, 3, 1)


@pytest.mark.parametrize("rich", [False, True], ids=["boxes", "all tasks"])
def test_images_are_stored_unchanged_and_equal_records_give_equal_files(rich):
    records = [make_record(i, i % 4, rich) for i in range(80)]
    data, shard = shards.encode_shard(records, 4)
    assert all(record.image in data.to_pybytes() for record in records)
    assert shard.name == f"part-00004-{shard.sha256[:12]}.parquet"
    assert shards.encode_shard(iter(records), 4) == (data, shard)


@pytest.mark.parametrize("columns", [None, ["name", "labels"]], ids=["whole", "some columns"])
def test_a_row_group_has_the_requested_columns_and_no_metadata_of_the_footer(columns, tmp_path):
    dataset = write_dataset(str(tmp_path), [make_record(1, 2)])
    schema = shards.read_row_group(dataset, dataset.row_groups[0], columns).schema
    assert schema.names == (columns or shards.SCHEMA.names)
    assert schema.metadata is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [(None, r"found content with SHA-256 \w{64}, expected \w{64} as in dataset\.json: .*pack again"), (["image"], "cannot read it: .*CRC")],
    ids=["by SHA-256", "of some columns by the page checksum"],
)
def test_a_flipped_bit_is_an_error(columns, message, tmp_path):
    dataset = write_dataset(str(tmp_path), [make_record(1, 2, image_bytes=5000)])
    flip(tmp_path / dataset.shards[0].name, 2500)
    with pytest.raises(StorageError, match=rf"part-00000-.*, row group 0: {message}"):
        shards.read_row_group(dataset, dataset.row_groups[0], columns)


def flip(file: Path, offset: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)


def test_every_byte_between_the_magic_bytes_is_covered_by_exactly_one_hash(tmp_path):
    data, shard = shards.encode_shard([make_record(i, 2) for i in range(130)], 0)
    footer = parse_footer(data.slice(shard.bytes - shard.footer_bytes), shard.bytes)
    ranges = [shard_file.byte_range(footer, index) for index in range(3)]
    ends = [end for _, end in ranges]
    assert [start for start, _ in ranges] == [4, *ends[:-1]]
    assert ends[-1] == shard.bytes - shard.footer_bytes
    hashes = [hashlib.sha256(data[start:end]).hexdigest() for start, end in ranges]
    assert hashes == list(shard.row_group_sha256)
    assert hashlib.sha256(data[ends[-1] :]).hexdigest() == shard.footer_sha256


@pytest.mark.parametrize("columns", [None, ["name"]], ids=["whole", "some columns"])
def test_a_flipped_bit_of_the_footer_is_an_error(columns, tmp_path):
    dataset = write_dataset(str(tmp_path), [make_record(1, 2)])
    flip(tmp_path / dataset.shards[0].name, dataset.shards[0].bytes - 100)
    with pytest.raises(StorageError, match=r"row group 0: found a footer with SHA-256 .*, expected .* as in dataset\.json"):
        shards.read_row_group(dataset, dataset.row_groups[0], columns)


@pytest.mark.parametrize(("footer_is_cached", "content"), [(True, "content"), (False, "a footer|content")])
def test_an_object_overwritten_by_a_valid_shard_of_the_same_size_is_an_error(footer_is_cached, content, tmp_path):
    dataset = write_dataset(str(tmp_path), [make_record(10, 2)])
    made = (shards.encode_shard([make_record(number, 2)], 0) for number in range(22, 100, 12))
    other = next(data for data, shard in made if shard.bytes == dataset.shards[0].bytes)
    if footer_is_cached:
        read_all(dataset)
    storage.write_bytes(storage.join(dataset.url, dataset.shards[0].name), other)
    with pytest.raises(StorageError, match=rf"found ({content}) with SHA-256 .*: the object was overwritten or damaged; pack again"):
        read_all(dataset)


@pytest.mark.parametrize("columns", [None, ["boxes_xyxy"]], ids=["whole", "some columns"])
@pytest.mark.parametrize("footer_is_cached", [False, True], ids=["footer unread", "footer read"])
def test_an_object_overwritten_by_a_shard_that_differs_only_in_the_position_of_a_box_is_an_error(footer_is_cached, columns, tmp_path):
    record = make_record(10, 2)
    dataset = write_dataset(str(tmp_path), [record])
    moved = (replace(record.objects, boxes_xyxy=record.objects.boxes_xyxy + step) for step in range(1, 100))
    made = (shards.encode_shard([replace(record, objects=objects)], 0) for objects in moved)
    # The checksum of a page takes a variable number of bytes in the page header, so sizes differ.
    other = next(data for data, shard in made if shard.bytes == dataset.shards[0].bytes)
    shards._read_footer.cache_clear()
    if footer_is_cached:
        shards.read_row_group(dataset, dataset.row_groups[0], columns)
    storage.write_bytes(storage.join(dataset.url, dataset.shards[0].name), other)
    with pytest.raises(StorageError, match=r"row group 0: found (content|a footer) with SHA-256 .*: the object was overwritten"):
        shards.read_row_group(dataset, dataset.row_groups[0], columns)


@pytest.mark.parametrize("columns", [None, ["name"]], ids=["whole", "some columns"])
def test_an_object_overwritten_by_a_shard_of_another_size_is_an_error(columns, tmp_path):
    dataset = write_dataset(str(tmp_path), [make_record(10, 2)])
    read_all(dataset)
    other, shard = shards.encode_shard([make_record(22, 3)], 0)
    storage.write_bytes(storage.join(dataset.url, dataset.shards[0].name), other)
    with pytest.raises(StorageError, match=rf"found {shard.bytes} bytes, expected {dataset.shards[0].bytes} as in dataset\.json"):
        shards.read_row_group(dataset, dataset.row_groups[0], columns)


@pytest.mark.parametrize("kept_bytes", [0, 3, 1000])
def test_a_truncated_shard_is_an_error_that_names_the_shard(tmp_path, kept_bytes):
    dataset = write_dataset(str(tmp_path), [make_record(1, 2, image_bytes=5000)])
    file = tmp_path / dataset.shards[0].name
    file.write_bytes(file.read_bytes()[:kept_bytes])
    with pytest.raises(
        StorageError, match=rf"{dataset.shards[0].name}, row group 0: found {kept_bytes} bytes, expected {dataset.shards[0].bytes}"
    ):
        read_all(dataset)


def test_a_missing_shard_is_an_error_that_names_the_shard(tmp_path):
    dataset = write_dataset(str(tmp_path), [make_record(1, 2)])
    (tmp_path / dataset.shards[0].name).unlink()
    with pytest.raises(StorageError, match=rf"{dataset.shards[0].name}, row group 0: not found"):
        read_all(dataset)


def test_a_row_group_of_another_length_than_listed_is_refused(tmp_path):
    dataset = write_dataset(str(tmp_path), [make_record(1, 2)])
    with pytest.raises(DataError, match=r"found 1 rows, expected 2 as in dataset\.json"):
        shards.read_row_group(dataset, replace(dataset.row_groups[0], rows=2))


def test_a_folder_without_dataset_json_is_not_a_dataset(tmp_path):
    write_dataset(str(tmp_path), [make_record(1, 2)])
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"dataset\.json: not found; expected a dataset that jobs/pack\.py finished"):
        shards.open_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, r"found format and version \('other', 3\)"),
        ({"version": 2}, r"2\), expected \('yolor_ray\.dataset', 3\); pack again"),
        ({"version": 1}, r"1\), expected \('yolor_ray\.dataset', 3\); pack again"),
        ({"images": 7}, "1 rows in the shards, 7 images"),
        ({"shards": [{"name": "x"}]}, "found a damaged manifest"),
        ({"classes": None}, "found a damaged manifest"),
    ],
)
def test_a_wrong_dataset_json_is_refused(tmp_path, change, message):
    write_dataset(str(tmp_path), [make_record(1, 2)])
    manifest = tmp_path / "dataset.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        shards.open_dataset(str(tmp_path))


def test_a_shard_without_a_hash_for_each_row_group_is_refused(tmp_path):
    dataset = write_dataset(str(tmp_path), [make_record(1, 2)])
    manifest = tmp_path / "dataset.json"
    shard = {**asdict(dataset.shards[0]), "row_group_sha256": []}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "shards": [shard]}))
    with pytest.raises(DataError, match=r"damaged manifest .*0 hashes for 1 row groups of part-00000"):
        shards.open_dataset(str(tmp_path))


def test_a_dataset_json_that_is_no_json_is_refused(tmp_path):
    for text in ("", "{", "[]"):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DataError, match="damaged manifest"):
            shards.open_dataset(str(tmp_path))


def test_the_digest_changes_with_content_and_with_class_order():
    _, shard = shards.encode_shard([make_record(1, 2)], 0)
    _, other = shards.encode_shard([make_record(2, 2)], 0)
    digests = {
        shards.dataset_digest([shard], ("a", "b")),
        shards.dataset_digest([shard], ("b", "a")),
        shards.dataset_digest([other], ("a", "b")),
    }
    assert len(digests) == 3


def test_a_row_group_has_the_documented_schema(tmp_path):
    dataset = write_dataset(str(tmp_path), [make_record(1, 2, rich=True)])
    assert shards.read_row_group(dataset, dataset.row_groups[0]).schema.equals(shards.SCHEMA)
    assert shards.SCHEMA.field("boxes_xyxy").type == pa.list_(pa.list_(pa.float32(), 4))
