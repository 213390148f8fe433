"""Hash encoded images, in order to find equal images in two datasets and to hold out a share of a dataset.

The hashes of a dataset take one read of the images. They are kept in a folder, because a dataset with the same digest has the same images.
A held-out image is chosen by its hash, so that it is on the same side for ever: names, order and other images have no influence, and
equal images are never divided.
"""

import hashlib
import io
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from yolor_ray.data.shards.dataset import Dataset, RowGroup, read_row_group
from yolor_ray.io import storage

logger = logging.getLogger(__name__)

HASH_BYTES = 8
"""First bytes of the SHA-256 of an image. Two of a million different images have equal hashes with a probability of 1 in 30 million."""
READERS = 8
"""Threads that read and hash row groups; hashing runs without Python's lock."""


def image_hashes(dataset: Dataset, folder: str) -> np.ndarray:
    """Return (N,) uint64: the first 64 bits of the SHA-256 of each encoded image, in the order of the records.

    Args:
        dataset: dataset, or union of datasets.
        folder: URL of the folder that keeps the hashes of each dataset.

    """
    return np.concatenate([_hashes(member, folder) for member in dataset.members or (dataset,)])


def _hashes(dataset: Dataset, folder: str) -> np.ndarray:
    url = storage.join(folder, f"{dataset.digest[:12]}.npy")
    if storage.exists(url):
        try:
            kept: np.ndarray = np.load(io.BytesIO(storage.read_bytes(url)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            logger.warning("event=hashes_damaged url=%s error='%s' next='the images are hashed again'", url, error)
            kept = np.zeros(0, np.uint64)
        if kept.shape == (dataset.images,) and kept.dtype == np.uint64:
            return kept
    started = time.perf_counter()
    with ThreadPoolExecutor(READERS, thread_name_prefix="yolor-hash") as readers:
        groups = dataset.row_groups
        hashed = readers.map(lambda group: _group_hashes(dataset, group), groups)
        # No bar for a small dataset.
        parts = list(tqdm(hashed, total=len(groups), desc="hashing images", unit="row group", mininterval=1, delay=3))
    hashes = np.concatenate([np.zeros(0, np.uint64), *parts])
    content = io.BytesIO()
    np.save(content, hashes, allow_pickle=False)
    storage.write_bytes(url, content.getvalue())
    logger.info("event=images_hashed data=%s images=%d seconds=%.1f", dataset.url, dataset.images, time.perf_counter() - started)
    return hashes


def _group_hashes(dataset: Dataset, group: RowGroup) -> np.ndarray:
    images = read_row_group(dataset, group, ["image"])["image"]
    digests = (hashlib.sha256(image.as_buffer()).digest() for chunk in images.chunks for image in chunk)
    return np.array([int.from_bytes(digest[:HASH_BYTES], "big") for digest in digests], np.uint64)


def content_fraction(image: bytes) -> float:
    """Return a number from 0 to 1 that the bytes of an encoded image determine, uniform over different images."""
    return int(hashlib.sha256(image).hexdigest()[:16], 16) / 2**64


def is_held_out(image: bytes, share: float) -> bool:
    """Return True if an image belongs to the held-out set.

    Args:
        image: bytes of the encoded image.
        share: expected share of the images that are held out, 0 to 1.
    """
    return content_fraction(image) < share


def record_name(dataset: Dataset, record: int) -> str:
    """Return the file name of a record."""
    groups = dataset.row_groups
    group = groups[groups.number_of(record)]
    name: str = read_row_group(dataset, group, ["name"])["name"][record - group.first_record].as_py()
    return name
