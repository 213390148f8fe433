import io

import numpy as np
import pytest
from PIL import Image

from yolor_ray.data.records import Record, objects_from_boxes
from yolor_ray.data.shards import Dataset, dataset_digest, shard_bytes, write_dataset
from yolor_ray.storage import join, write_bytes

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


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """A packed data set of 100 images in shards of 70 and 30, so in row groups of 64, 6 and 30."""
    url = str(tmp_path_factory.mktemp("squares"))
    shards = []
    for part, (start, stop) in enumerate(((0, 70), (70, 100))):
        data, shard = shard_bytes([square_record(index) for index in range(start, stop)], part)
        write_bytes(join(url, shard.name), data)
        shards.append(shard)
    names = ("nothing", "square")
    dataset = Dataset(
        url, names, (), (), ("detect",), 100, 100, {"nothing": 0, "square": 100}, tuple(shards), dataset_digest(shards, names), {}
    )
    write_dataset(dataset)
    return dataset
