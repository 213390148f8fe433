"""Resolve dataset URLs: `scenes:N` stands for N built-in scenes, which are packed on demand."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from yolor_ray.data.shards.dataset import MANIFEST, VERSION
from yolor_ray.errors import ConfigError
from yolor_ray.io.storage import absolute, exists, join
from yolor_ray.pack.run import pack_scenes

SCENES_PREFIX = "scenes:"

VALIDATION_SEED = 1
"""Seed of built-in scenes for validation and evaluation; training scenes have seed 0."""


def resolve_dataset_urls(urls: str, folder: str, seed: int) -> str:
    """Return the URLs of packed datasets, separated by commas; each `scenes:N` is packed into `folder`, once.

    Args:
        urls: dataset URLs, separated by commas.
        folder: URL of the folder for packed scenes; scenes that are already there are reused.
        seed: seed of the scenes.

    Raises:
        ConfigError: the N of `scenes:N` is not a positive number.
    """
    return ",".join(_resolve(url.strip(), folder, seed) for url in urls.split(","))


@contextmanager
def temporary_dataset_urls(urls: str, seed: int = VALIDATION_SEED) -> Iterator[str]:
    """Yield the result of `resolve_dataset_urls`, with scenes in a temporary folder that is removed on exit."""
    with tempfile.TemporaryDirectory(prefix="yolor_ray_scenes_") as folder:
        yield resolve_dataset_urls(urls, folder, seed)


def _resolve(url: str, folder: str, seed: int) -> str:
    if not url.startswith(SCENES_PREFIX):
        return absolute(url)
    count = url.removeprefix(SCENES_PREFIX)
    if not count.isdecimal() or int(count) == 0:
        raise ConfigError(f"data: found {url!r}, expected scenes:N with N 1 or more")
    output = join(absolute(folder), f"{int(count)}-seed{seed}-v{VERSION}")
    if not exists(join(output, MANIFEST)):
        pack_scenes(output, int(count), seed)
    return output
