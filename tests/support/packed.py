import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_length

from yolor_ray.data.shards.dataset import Dataset, dataset_digest, shard_bytes, write_dataset
from yolor_ray.data.shards.records import Objects, Record, objects_from_boxes
from yolor_ray.io.storage import join, write_bytes

SIZES = ((64, 48), (40, 100), (130, 70), (33, 33))


def square_record(index):
    """A black image with one white rectangle, annotated; sizes and places vary."""
    width, height = SIZES[index % len(SIZES)]
    x1, y1 = 4 + index % 5, 3 + index % 7
    x2, y2 = width - 6 - index % 3, height - 9 - index % 4
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y1:y2, x1:x2] = 255
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return Record(f"{index:04d}.png", encoded.getvalue(), width, height, objects_from_boxes(np.array([[x1, y1, x2, y2]]), np.array([1])))


def pack(url, parts, **names):
    """Pack records, one list for each shard."""
    shards = []
    for part, records in enumerate(parts):
        data, shard = shard_bytes(records, part)
        write_bytes(join(url, shard.name), data)
        shards.append(shard)
    every = [record for records in parts for record in records]
    names = {"classes": ("nothing", "square"), "image_classes": (), "keypoint_names": ()} | names
    labels = np.concatenate([record.objects.labels for record in every]).tolist()
    dataset = Dataset(
        url,
        **names,
        tasks=tuple(sorted({task for record in every for task in record.tasks})),
        images=len(every),
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
    """A packed data set of 100 images in shards of 70 and 30, so in row groups of 64, 6 and 30."""
    url = str(tmp_path_factory.mktemp("squares"))
    return pack(url, [[square_record(index) for index in part] for part in (range(70), range(70, 100))])


def rich_record(index):
    """A rectangle with its mask, its first and last corner as joints, an identity, and a label that says whether the image is wide.

    Of four images one is annotated for detection alone, and one for all but detection.
    """
    plain = square_record(index)
    x1, y1, x2, y2 = plain.objects.boxes_xyxy[0].astype(int)
    inside = np.zeros((plain.height, plain.width), np.uint8, order="F")
    inside[y1:y2, x1:x2] = 1
    tasks = [("detect",), ("classify", "embed", "pose", "segment"), *[("classify", "detect", "embed", "pose", "segment")] * 2][index % 4]
    known = index % 4 > 0
    objects = Objects(
        plain.objects.boxes_xyxy,
        plain.objects.labels,
        plain.objects.crowd,
        plain.objects.areas,
        masks=(run_length.encode(inside)["counts"],) if known else None,
        keypoints=np.array([[[x1, y1, 2], [x2, y2, 1], [0, 0, 0]]], np.float32) if known else None,
        identities=np.array([index % 4]) if known else None,
    )
    labels = np.array([int(plain.width > plain.height)] if known else [], np.int64)
    return Record(plain.name, plain.image, plain.width, plain.height, objects, labels, tasks, camera=index % 3)


@pytest.fixture(scope="session")
def rich(tmp_path_factory):
    """A packed data set of 24 images that differ in what they are annotated for."""
    url = str(tmp_path_factory.mktemp("rich"))
    names = {"image_classes": ("tall", "wide"), "keypoint_names": ("first", "last", "tail")}
    return pack(url, [[rich_record(index) for index in range(24)]], **names)
