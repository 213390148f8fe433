"""Read the list of a service's models: a YAML file with the name and the weights of each model, and the name of the default model.

default: cars
models:
  cars: s3://models/cars/fused
  dogs: dogs/openvino
  birds: s3://models/birds/live
"""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from yaml import Node

from yolor_ray.config.serve import NAME
from yolor_ray.errors import ConfigError
from yolor_ray.io import filesystem, manifest, storage, yaml_text
from yolor_ray.io.redact import refuse_credentials
from yolor_ray.io.release_folder import ReleaseFolder, is_release_folder, starting_version
from yolor_ray.io.weights_url import weights_folder

KEYS = ("default", "models")


@dataclass(frozen=True)
class Source:
    """Weights of a model, or of one of its versions."""

    name: str
    """Name of the model."""
    url: str
    """Folder of the weights, or of the export."""
    size_bytes: int
    """Bytes of the files, by the manifest."""
    release: str = ""
    """Name of the version in the release folder; empty without one."""
    release_folder: str = ""
    """URL of the release folder; empty without one."""


@dataclass(frozen=True)
class ModelList:
    """Models of a service."""

    default: str
    """Name of the model that answers where a request names none."""
    urls: Mapping[str, str]
    """URL of the weights of each model, or of its release folder, by name, in the order of the file."""

    def source(self, name: str, release: str = "") -> Source:
        """Return the weights of a model; of a release folder, those of `release`, by default of the latest proven version.

        Raises:
            StorageError: the URL cannot be read, or all versions of the release folder are rejected.
            WeightsError: the URL is that of a run that has not finished.
            IntegrityError: the manifest is damaged.
        """
        url = weights_folder(self.urls[name])
        if not release and not is_release_folder(url):
            return Source(name, url, _size_bytes(url))
        folder = ReleaseFolder(url)
        release = release or starting_version(folder)
        return Source(name, folder.version_url(release), _size_bytes(folder.version_url(release)), release, url)


def read_model_list(url: str) -> ModelList:
    """Return the models of a file; a relative path of weights counts from the folder of the file.

    Raises:
        ConfigError: the file is no YAML with KEYS, or a name or a URL cannot be used.
        StorageError: the file cannot be read.
    """
    data = storage.read_bytes(url)
    try:
        nodes = yaml_text.read_mapping(_decode(data))
        _check_keys(nodes, url)
        default = yaml_text.to_text(nodes["default"], "default")
        values = yaml_text.to_mapping(nodes["models"], "models")
        texts = {name: yaml_text.to_text(value, f"models.{name}") for name, value in values.items()}
    except ValueError as error:
        expected = "" if "expected" in str(error) else ", expected YAML with the keys default and models, each once"
        raise ConfigError(f"{url}: found {error}{expected}") from error
    folder = storage.absolute(url).rpartition("/")[0]
    urls = {name: _weights_url(name, text, folder, url) for name, text in texts.items()}
    if default not in urls:
        raise ConfigError(f"{url}: default: found {default!r}, expected one of {', '.join(urls) or 'the names under models'}")
    return ModelList(default, urls)


def check_budget(size_bytes: Mapping[str, int], budget_bytes: float) -> None:
    """Raise ConfigError if models, given with the bytes of their files, exceed the memory for all models together."""
    total = sum(size_bytes.values())
    if total > budget_bytes:
        found = f"{total / 1e6:.1f} MB, the files of {' and '.join(size_bytes)}"
        raise ConfigError(f"max_model_mb: found {found}, expected at most {budget_bytes / 1e6:g} MB")


def _size_bytes(url: str) -> int:
    return sum(entry.bytes for entry in manifest.read_manifest(url).values())


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("bytes that are not UTF-8") from None


def _check_keys(nodes: Mapping[str, Node], url: str) -> None:
    missing, unknown = [key for key in KEYS if key not in nodes], sorted(set(nodes) - set(KEYS))
    if missing or unknown:
        raise ConfigError(f"{url}: {(missing + unknown)[0]}: found the keys {', '.join(nodes)}, expected {' and '.join(KEYS)}")


def _weights_url(name: str, text: str, folder: str, place: str) -> str:
    """Return the absolute URL of weights; raises ConfigError for a name or a URL that cannot be used."""
    # Clients remove the parts . and .. from paths.
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise ConfigError(f"{place}: models: found the name {name!r}, expected letters, digits, . _ and -")
    if not text:
        raise ConfigError(f"{place}: models.{name}: found no URL, expected that of weights, of an export, of a finished run or of releases")
    refuse_credentials(f"{place}: models.{name}", text)
    is_absolute = "://" in text or text.startswith("/")
    scheme, separator, rest = folder.rpartition("://")
    resolved = text if is_absolute else scheme + separator + posixpath.normpath(f"{rest}/{text}")
    try:
        filesystem.path_of(resolved)
    except ConfigError as error:
        raise ConfigError(f"{place}: models.{name}: {error}") from None
    return storage.absolute(resolved)
