"""Find images that look alike: a perceptual hash proposes pairs, and the correlation of small grey copies confirms them.

The hash alone would call dark frames and plain backgrounds alike. Legend: I Q R images, of all, of a query and of a reference.
"""

from dataclasses import dataclass

import cv2
import numpy as np

THUMBNAIL_PX = 32
HASH_PX = 8
"""Side of the lowest frequencies of the cosine transform that make the hash, so 64 bits."""
MAX_BITS_APART = 8
"""Most different bits of two hashes for which thumbnails are compared."""
MIN_CORRELATION = 0.95
"""Least correlation of two thumbnails of near duplicates. On four real datasets, unrelated images stayed below 0.86."""
MIN_CONTRAST = 2.0
"""Standard deviation of a thumbnail, grey levels, below which the image is too plain to be compared."""
MAX_ASPECT_RATIO = 1.1
"""Largest ratio between the aspects of two near duplicates."""
MAX_COMPARED = 64
"""Most thumbnails that are compared with one image, those with the nearest hashes: the frames of one camera may be thousands."""


@dataclass(frozen=True)
class Fingerprints:
    """Small descriptions of images by which they are compared."""

    hashes: np.ndarray
    """(I,) uint64: signs of the lowest frequencies."""
    thumbnails: np.ndarray
    """(I, 32, 32) uint8: grey copies, stretched to a square."""
    aspects: np.ndarray
    """(I,) float64: width over height."""


@dataclass(frozen=True)
class SimilarPair:
    """Two images that look alike."""

    query: int
    reference: int
    correlation: float
    """Correlation of the grey thumbnails, 0.95 to 1."""


def make_thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Return the grey thumbnail, (32, 32) uint8, of an image (H, W, 3) uint8 RGB."""
    # Grey after the resize: the mean commutes with it, and the thumbnail has fewer pixels.
    small = cv2.resize(pixels, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)


def hash_thumbnail(thumbnail: np.ndarray) -> np.uint64:
    """Return the perceptual hash (pHash) of a thumbnail: which of its lowest frequencies exceed their median; the mean is no frequency."""
    frequencies = cv2.dct(thumbnail.astype(np.float32))[:HASH_PX, :HASH_PX].ravel()[1:]
    return np.packbits(np.append(frequencies > np.median(frequencies), False)).view(np.uint64)[0]


def similar_within(images: Fingerprints) -> list[SimilarPair]:
    """Return for each image the earlier image that looks most like it, if any does."""
    return [pair for index in range(len(images.hashes)) if (pair := _most_similar(images, index, images, index))]


def similar_between(queries: Fingerprints, references: Fingerprints) -> list[SimilarPair]:
    """Return for each query (Q) the reference (R) that looks most like it, if any does."""
    counts = len(queries.hashes), len(references.hashes)
    return [pair for index in range(counts[0]) if (pair := _most_similar(queries, index, references, counts[1]))]


def _most_similar(queries: Fingerprints, index: int, references: Fingerprints, stop: int) -> SimilarPair | None:
    """Return the reference before `stop` that looks most like a query."""
    apart = np.bitwise_count(references.hashes[:stop] ^ queries.hashes[index])
    near = np.flatnonzero(apart <= MAX_BITS_APART)
    if len(near) == 0:
        return None
    ratios = references.aspects[near] / queries.aspects[index]
    near = near[np.maximum(ratios, 1 / ratios) <= MAX_ASPECT_RATIO]
    near = near[np.argsort(apart[near], kind="stable")[:MAX_COMPARED]]
    if len(near) == 0:
        return None
    correlations = _correlations(queries.thumbnails[index], references.thumbnails[near])
    best = int(correlations.argmax())
    if correlations[best] < MIN_CORRELATION:
        return None
    return SimilarPair(index, int(near[best]), float(correlations[best]))


def _correlations(thumbnail: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the correlation of a thumbnail with each of others, (R,) float32; 0 for images that are too plain to be compared."""
    rows = np.concatenate((thumbnail[None], others)).reshape(1 + len(others), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows *= np.where(norms >= MIN_CONTRAST * THUMBNAIL_PX, 1 / np.maximum(norms, 1), 0)
    return rows[1:] @ rows[0]
