"""Choose the images of a held-out validation set by the hash of their bytes.

The same image is on the same side for ever: names, order and other images have no influence, and equal images are never divided.
"""

import hashlib


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
