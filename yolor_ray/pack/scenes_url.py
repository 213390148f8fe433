"""TODO module docstring."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from yolor_ray.errors import ConfigError
from yolor_ray.io.storage import absolute
from yolor_ray.pack.run import pack_scenes

SCENES_PREFIX = "scenes:"


VALIDATION_SEED = 1
"""Seed of built-in scenes that are evaluated on; training draws its own with 0."""


@contextmanager
def resolve_dataset_urls(url: str, seed: int = VALIDATION_SEED) -> Iterator[str]:
    """Give the URL of a packed data set, or of several; `scenes:N` is packed into a folder that goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="yolor_ray_scenes_") as folder:
        yield ",".join(_packed(one.strip(), f"{folder}/{number}", seed) for number, one in enumerate(url.split(",")))


def _packed(url: str, folder: str, seed: int) -> str:
    if not url.startswith(SCENES_PREFIX):
        return absolute(url)
    pack_scenes(folder, scene_count(url), seed)
    return folder


def scene_count(url: str) -> int:
    """Return N of `scenes:N`.

    Raises:
        ConfigError: what follows `scenes:` is no positive number.
    """
    count = url.removeprefix(SCENES_PREFIX)
    if not count.isdecimal() or int(count) == 0:
        raise ConfigError(f"data: found {url!r}, expected scenes:N with N 1 or more")
    return int(count)
