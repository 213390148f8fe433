"""Images that look alike: copies are found, and images that only share darkness or plainness are not."""

import cv2
import numpy as np
import pytest

from yolor_ray.pack.health.similar import Fingerprints, hash_thumbnail, make_thumbnail, similar_between, similar_within


def photo(seed: int, height: int = 240, width: int = 320) -> np.ndarray:
    """Make an image of soft blobs."""
    noise = np.random.default_rng(seed).uniform(0, 255, (8, 10, 3)).astype(np.float32)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def dark(seed: int) -> np.ndarray:
    """Make a dark frame with a few bright spots, as of a microscope."""
    random = np.random.default_rng(seed)
    pixels = random.normal(5, 1, (240, 320, 3))
    for x, y in random.integers(20, 220, (6, 2)):
        cv2.circle(pixels, (int(x), int(y)), 8, (60, 60, 60), -1)
    return pixels.clip(0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def fingerprints(*images: np.ndarray) -> Fingerprints:
    thumbnails = [make_thumbnail(pixels) for pixels in images]
    hashes = np.array([hash_thumbnail(thumbnail) for thumbnail in thumbnails], np.uint64)
    return Fingerprints(hashes, np.array(thumbnails), np.array([pixels.shape[1] / pixels.shape[0] for pixels in images]))


COPIES = {
    "compressed": lambda pixels: jpeg(pixels, 30),
    "smaller": lambda pixels: cv2.resize(pixels, (160, 120), interpolation=cv2.INTER_AREA),
    "brighter": lambda pixels: np.clip(pixels.astype(int) + 25, 0, 255).astype(np.uint8),
    "slightly cropped": lambda pixels: pixels[2:-2, 2:-2],
    "grey": lambda pixels: np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2),
}


@pytest.mark.parametrize("make", [photo, dark])
@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_is_found_among_other_images(make, change):
    images = [make(seed) for seed in range(20)]
    pairs = similar_between(fingerprints(COPIES[change](images[7])), fingerprints(*images))
    assert [(pair.query, pair.reference) for pair in pairs] == [(0, 7)]
    assert 0.95 <= pairs[0].correlation <= 1.0001


@pytest.mark.parametrize("make", [photo, dark])
def test_different_images_are_not_alike(make):
    assert similar_within(fingerprints(*(make(seed) for seed in range(120)))) == []


def test_plain_images_are_not_compared():
    assert similar_within(fingerprints(*(np.full((100, 100, 3), level, np.uint8) for level in (0, 0, 114, 114, 255)))) == []


def test_a_stretched_copy_is_another_image():
    assert similar_within(fingerprints(photo(1), cv2.resize(photo(1), (320, 120)))) == []


def test_each_image_is_paired_with_the_earlier_image_that_is_most_like_it():
    images = [photo(0), photo(1), jpeg(photo(0), 90), photo(2), jpeg(photo(0), 90)]
    assert [(pair.query, pair.reference) for pair in similar_within(fingerprints(*images))] == [(2, 0), (4, 2)]
