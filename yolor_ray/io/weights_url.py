"""Find the weights that a URL means: a weights folder, or the folder of a finished run, which has its weights in a subfolder."""

from yolor_ray.errors import WeightsError
from yolor_ray.io import manifest, storage

CONFIG_FILE, TENSORS_FILE = "config.json", "weights.safetensors"
CARD_FILE = "README.md"
"""Model card of trained weights, beside their files."""
BUILTIN = "builtin"
"""Word in place of a URL: the starting weights that this package contains, of the network of the preset `nano`."""
WEIGHTS_FOLDER = "weights"
"""Subfolder of a run's folder with the weights of the finished run."""


def absolute_weights(url: str) -> str:
    """Return the absolute URL of weights; an empty text and `builtin`, which each node resolves for itself, stay."""
    return url if url in ("", BUILTIN) else storage.absolute(url)


def weights_folder(url: str) -> str:
    """Return the weights folder: `url`, or the subfolder `weights` of a finished run's folder; an empty text and `builtin` stay.

    Raises:
        WeightsError: the folder is that of a run that has not finished.
    """
    inner = storage.join(url, WEIGHTS_FOLDER)
    if url in ("", BUILTIN) or manifest.is_published(url):
        return url
    if manifest.is_published(inner):
        return inner
    # A weights folder without its manifest is incomplete, which its reader reports.
    if storage.exists(storage.join(url, CONFIG_FILE)) and not storage.exists(storage.join(url, TENSORS_FILE)):
        raise WeightsError(f"{url}: found a run that has not finished, expected weights; the command that started the run finishes it")
    return url
