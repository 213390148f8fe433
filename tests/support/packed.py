"""Packed datasets for tests: fixtures, and the records behind them."""

import io

import numpy as np
import pytest
from PIL import Image

from yolor_ray.data.rle import encode_mask
from yolor_ray.data.shards.dataset import Dataset, dataset_digest, encode_shard, open_dataset, read_row_group, to_records, write_dataset
from yolor_ray.data.shards.records import Objects, Record, objects_from_boxes
from yolor_ray.io.storage import join, write_bytes

SIZES = ((64, 48), (40, 100), (130, 70), (33, 33))


def square_record(index):
    """Make a black image with one white, annotated rectangle; sizes and positions vary."""
    width, height = SIZES[index % len(SIZES)]
    x1, y1 = 4 + index % 5, 3 + index % 7
    x2, y2 = width - 6 - index % 3, height - 9 - index % 4
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y1:y2, x1:x2] = 255
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return Record(f"{index:04d}.png", encoded.getvalue(), width, height, objects_from_boxes(np.array([[x1, y1, x2, y2]]), np.array([1])))


def pack(url, record_lists, **names):
    """Pack records: one list per shard."""
    shards = []
    for index, records in enumerate(record_lists):
        data, shard = encode_shard(records, index)
        write_bytes(join(url, shard.name), data)
        shards.append(shard)
    images = [record for records in record_lists for record in records]
    names = {"classes": ("nothing", "square"), "image_classes": (), "keypoint_names": ()} | names
    labels = np.concatenate([record.objects.labels for record in images]).tolist()
    dataset = Dataset(
        url,
        **names,
        tasks=tuple(sorted({task for record in images for task in record.tasks})),
        images=len(images),
        boxes=len(labels),
        boxes_per_class={name: labels.count(label) for label, name in enumerate(names["classes"])},
        shards=tuple(shards),
        digest=dataset_digest(shards, *names.values()),
        faults={},
    )
    write_dataset(dataset)
    return dataset


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """A packed dataset of 100 images in shards of 70 and 30, so in row groups of 64, 6 and 30."""
    url = str(tmp_path_factory.mktemp("squares"))
    return pack(url, [[square_record(index) for index in indices] for indices in (range(70), range(70, 100))])


def rich_record(index):
    """Make a rectangle with its mask, its first and last corner as keypoints, an identity, and an image label, tall or wide.

    Of four images, one is annotated for detection alone, and one for all tasks but detection.
    """
    plain = square_record(index)
    x1, y1, x2, y2 = plain.objects.boxes_xyxy[0].astype(int)
    inside = np.zeros((plain.height, plain.width), bool)
    inside[y1:y2, x1:x2] = True
    tasks = [("detect",), ("classify", "embed", "pose", "segment"), *[("classify", "detect", "embed", "pose", "segment")] * 2][index % 4]
    is_annotated = index % 4 > 0
    objects = Objects(
        plain.objects.boxes_xyxy,
        plain.objects.labels,
        plain.objects.crowd,
        plain.objects.areas,
        masks=(encode_mask(inside),) if is_annotated else None,
        keypoints=np.array([[[x1, y1, 2], [x2, y2, 1], [0, 0, 0]]], np.float32) if is_annotated else None,
        identities=np.array([index % 4]) if is_annotated else None,
    )
    labels = np.array([int(plain.width > plain.height)] if is_annotated else [], np.int64)
    return Record(plain.name, plain.image, plain.width, plain.height, objects, labels, tasks, camera=index % 3)


@pytest.fixture(scope="session")
def rich(tmp_path_factory):
    """A packed dataset of 24 images that are annotated for different tasks."""
    url = str(tmp_path_factory.mktemp("rich"))
    names = {"image_classes": ("tall", "wide"), "keypoint_names": ("first", "last", "tail")}
    return pack(url, [[rich_record(index) for index in range(24)]], **names)


def all_records(url):
    """Return the records of a packed dataset."""
    dataset = open_dataset(url)
    return [record for group in dataset.row_groups for record in to_records(read_row_group(dataset, group))]


@pytest.fixture
def yolo_set(tmp_path, write_image):
    """Write images with YOLO annotations and return the URLs; keyword arguments n0, n1, … replace the text of label files."""

    def write(count=12, **labels):
        for number in range(count):
            write_image(tmp_path / "images" / f"{number:03d}.png", seed=number)
            label_file = tmp_path / "labels" / f"{number:03d}.txt"
            label_file.parent.mkdir(exist_ok=True)
            label_file.write_text(labels.get(f"n{number}", "0 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.1 0.1\n"))
        (tmp_path / "names.txt").write_text("cat\ndog\n")
        return {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "labels"), "names": str(tmp_path / "names.txt")}

    return write
