"""Find the weights that a URL means.

A URL means a weights folder, an export, or the folder of a finished run, which has its weights in a subfolder.
"""

from yolor_ray.config.export import EXPORT_ENGINES
from yolor_ray.errors import IntegrityError, WeightsError, check
from yolor_ray.io import manifest, storage

CONFIG_FILE, TENSORS_FILE = "config.json", "weights.safetensors"
ONNX_FILE, OPENVINO_FILES = "model.onnx", ("model.xml", "model.bin")
EXPORT_FILES: dict[str, tuple[str, ...]] = {"onnx": (ONNX_FILE,), "openvino": OPENVINO_FILES}
"""Files of the graph in an export, by format."""
GRAPH_SUFFIXES = (".onnx", ".xml", ".bin")
"""Suffixes of the files of a graph."""
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
    # A weights folder or an export without its manifest is incomplete, which its reader reports.
    complete = (TENSORS_FILE, ONNX_FILE, OPENVINO_FILES[0])
    if storage.exists(storage.join(url, CONFIG_FILE)) and not any(storage.exists(storage.join(url, name)) for name in complete):
        raise WeightsError(f"{url}: found a run that has not finished, expected weights; the command that started the run finishes it")
    return url


def export_format(url: str) -> str | None:
    """Return the format of an export, a key of EXPORT_FILES, by the names in its manifest; None for anything else.

    Raises:
        IntegrityError: the manifest is damaged.
    """
    if url == BUILTIN or not manifest.is_published(url):
        return None
    names = manifest.read_manifest(url)
    formats = [name for name, files in EXPORT_FILES.items() if files[0] in names]
    if TENSORS_FILE in names or not formats:
        return None
    if len(formats) > 1:
        raise IntegrityError(f"{url}: found graphs as {' and '.join(formats)} in {manifest.MANIFEST}, expected one export per folder")
    return formats[0]


def check_own_engine(url: str, format_name: str, engine: str) -> None:
    """Raise ConfigError if an engine is neither that of the export at a URL nor `fastest`."""
    own = EXPORT_ENGINES[format_name]
    check(engine in ("fastest", own), "engine", engine, f"{own} or fastest: {url} is an export as {format_name}, which has its own engine")
