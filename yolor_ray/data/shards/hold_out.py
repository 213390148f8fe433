"""Choose the images that are held out for validation by the content of each image, so that equal images are never on both sides."""

import hashlib

HASH_DIGITS = 16
"""Hexadecimal digits of the SHA-256 of an image that decide."""


def is_held_out(image: bytes, share: float) -> bool:
    """Return True for about `share` (0 to 1) of all images: those whose SHA-256 begins with a number below that share of the largest.

    The same image has the same answer in every dataset.
    """
    return int(hashlib.sha256(image).hexdigest()[:HASH_DIGITS], 16) / 16**HASH_DIGITS < share
