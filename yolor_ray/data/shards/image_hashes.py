"""Hash encoded images, in order to find equal images in two datasets and to hold out a share of a dataset.

A packed dataset has a file of its hashes. The hashes of other datasets take one read of the images, and are kept in a folder, because a
dataset with the same digest has the same images.
A held-out image is chosen by its hash, so that it is on the same side for ever: names, order and other images have no influence, and
equal images are never divided.
"""

import hashlib
import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from yolor_ray.data.shards.dataset import Dataset, RowGroup, read_row_group
from yolor_ray.io import storage

logger = logging.getLogger(__name__)

HASHES_FILE = "image_hashes.uint64"
"""File of a packed dataset, beside its shards: the hashes of all images, little-endian."""
HASH_BYTES = 8
"""First bytes of the SHA-256 of an image. Two of a million different images have equal hashes with a probability of 1 in 30 million."""
DTYPE = np.dtype("<u8")
READERS = 8
"""Threads that read and hash row groups; hashing runs without Python's lock."""


def image_hashes(dataset: Dataset, folder: str) -> np.ndarray:
    """Return (N,) uint64: the first 64 bits of the SHA-256 of each encoded image, in the order of the records.

    Args:
        dataset: dataset, or union of datasets.
        folder: URL of the folder that keeps the hashes of each dataset without a file of them.

    """
    return np.concatenate([_hashes(member, folder) for member in dataset.members or (dataset,)])


def encode_hashes(digests: Iterable[str]) -> bytes:
    """Return the content of a dataset's file of hashes, from the hex SHA-256 of each encoded image in the order of the records."""
    return np.array([int(digest[: 2 * HASH_BYTES], 16) for digest in digests], DTYPE).tobytes()


def _hashes(dataset: Dataset, folder: str) -> np.ndarray:
    packed, kept = storage.join(dataset.url, HASHES_FILE), storage.join(folder, f"{dataset.digest[:12]}.uint64")
    for url, sha256 in [(packed, dataset.hashes_sha256)] * bool(dataset.hashes_sha256) + [(kept, "")]:
        if storage.exists(url) and (hashes := _read(url, dataset, sha256)) is not None:
            return hashes
    started = time.perf_counter()
    with ThreadPoolExecutor(READERS, thread_name_prefix="yolor-hash") as readers:
        groups = dataset.row_groups
        hashed = readers.map(lambda group: _group_hashes(dataset, group), groups)
        # No bar for a small dataset.
        parts = list(tqdm(hashed, total=len(groups), desc="hashing images", unit="row group", mininterval=1, delay=3))
    hashes = np.concatenate([np.zeros(0, np.uint64), *parts])
    storage.write_bytes(kept, hashes.astype(DTYPE).tobytes())
    logger.info("event=images_hashed data=%s images=%d seconds=%.1f", dataset.url, dataset.images, time.perf_counter() - started)
    return hashes


def _read(url: str, dataset: Dataset, sha256: str) -> np.ndarray | None:
    """Return the hashes in a file, whose SHA-256 is checked if it is known; None if the file is damaged."""
    data = storage.read_bytes(url)
    size, digest = dataset.images * HASH_BYTES, hashlib.sha256(data).hexdigest()
    if len(data) != size or digest != (sha256 or digest):
        found, expected = f"{len(data)} bytes with SHA-256 {digest}", f"{size} bytes" + (f" with SHA-256 {sha256}" if sha256 else "")
        logger.warning("event=hashes_damaged url=%s found='%s' expected='%s' next='the images are hashed again'", url, found, expected)
        return None
    return np.frombuffer(data, DTYPE).astype(np.uint64)


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
