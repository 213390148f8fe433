"""Write and read weights folders: `weights.safetensors` and `config.json`, verified by a manifest.

Nothing is ever unpickled. The configuration holds everything needed to build the network and to name its outputs.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.errors import ConfigError, WeightsError
from yolor_ray.io import manifest, storage
from yolor_ray.io.weights_url import BUILTIN, CONFIG_FILE, TENSORS_FILE, weights_folder
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.network import Yolor

__all__ = [
    "CONFIG_FILE",
    "TENSORS_FILE",
    "WeightsInfo",
    "load_weights",
    "parse_network_config",
    "save_weights",
    "weights_files",
]

FORMAT, VERSION = "yolor_ray.weights", 1
PROXIES_TENSOR = "tasks.embed.proxies"
"""Name of the tensor with one direction per identity of the training set, (I, E); absent from fused weights."""
UPSTREAM_SUFFIXES = (".pt", ".pth", ".weights")

CONFIG_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda v: isinstance(v, str), "text"),
    "classes": (lambda v: isinstance(v, list) and len(v) > 0 and all(isinstance(c, str) for c in v), "a list of at least one name"),
    "image_px": (lambda v: type(v) is int and v > 0 and v % 32 == 0, "a positive multiple of 32"),
    "metrics": (lambda v: isinstance(v, dict) and all(isinstance(m, int | float) for m in v.values()), "numbers by name"),
    "fused": (lambda v: isinstance(v, bool), "true or false"),
    "network": (lambda v: isinstance(v, dict), "the network's settings by name"),
    "thresholds": (
        lambda v: isinstance(v, dict) and all(type(t) in (int, float) and 0 <= t <= 1 for t in v.values()),
        "numbers from 0 to 1 by class name",
    ),
    "image_classes": (lambda v: isinstance(v, list) and all(isinstance(c, str) for c in v), "a list of names"),
    "keypoint_names": (lambda v: isinstance(v, list) and all(isinstance(c, str) for c in v), "a list of names"),
}
"""Check and expectation for the value of each key of `config.json`."""


@dataclass(frozen=True)
class WeightsInfo:
    """Description of weights beside their tensors."""

    name: str
    """Name of the run that trained the weights."""
    classes: tuple[str, ...]
    """Class names in the order of the network's outputs."""
    image_px: int
    """Side of the square network input in training, pixels."""
    metrics: dict[str, float] = field(default_factory=dict)
    """COCO metrics on the validation set."""
    version: str = ""
    """First 12 hexadecimal digits of the SHA-256 of the tensors file; set by reading."""
    image_classes: tuple[str, ...] = ()
    """Names of the image labels, in the order of the network's outputs."""
    keypoint_names: tuple[str, ...] = ()
    """Names of an object's keypoints, in the order of the network's outputs."""
    tasks: tuple[str, ...] = ("detect",)
    """Tasks of the network; set by reading."""
    fused: bool = False
    """True if batch norm and implicit vectors are folded; set by reading."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Confidence threshold with the best F1 score on the validation set, by class name; absent for classes not found there."""


def weights_files(network: Yolor, info: WeightsInfo) -> dict[str, bytes]:
    """Return the contents of the files of a weights folder, by file name."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    config = {
        "format": FORMAT,
        "version": VERSION,
        "name": info.name,
        "classes": list(info.classes),
        "image_classes": list(info.image_classes),
        "keypoint_names": list(info.keypoint_names),
        "image_px": info.image_px,
        "metrics": info.metrics,
        "thresholds": info.thresholds,
        "fused": is_fused(network),
        "network": dataclasses.asdict(network.config),
    }
    return {TENSORS_FILE: safetensors.torch.save(tensors), CONFIG_FILE: json.dumps(config, indent=1).encode()}


def save_weights(url: str, network: Yolor, info: WeightsInfo) -> None:
    """Publish a weights folder at `url`."""
    manifest.publish(url, weights_files(network, info))


def load_weights(url: str) -> tuple[Yolor, WeightsInfo]:
    """Return the network of a weights folder, or of the `builtin` weights, in eval mode on the CPU, and its description.

    The folder of a run stands for its subfolder `weights`.

    Raises:
        WeightsError: the folder is incomplete, altered, of another format, or its tensors do not fit its configuration.
    """
    if url.endswith(UPSTREAM_SUFFIXES):
        raise WeightsError(
            f"{url}: found the name of a file, expected a weights folder; "
            f"import an upstream checkpoint with: python jobs/export.py --upstream {url} --output FOLDER"
        )
    url = str(Path(__file__).parent / "starting_weights") if url == BUILTIN else weights_folder(url)
    files = manifest.read_published(url, (CONFIG_FILE, TENSORS_FILE))
    config = _read_config(url, files[CONFIG_FILE])
    try:
        tensors = safetensors.torch.load(files[TENSORS_FILE])
    except SafetensorError as error:
        raise WeightsError(f"{storage.join(url, TENSORS_FILE)}: not a safetensors file: {error}") from error
    network = _build_network(url, config, tensors)
    info = WeightsInfo(
        name=config["name"],
        classes=tuple(config["classes"]),
        image_px=config["image_px"],
        metrics=config["metrics"],
        thresholds=config["thresholds"],
        version=hashlib.sha256(files[TENSORS_FILE]).hexdigest()[:12],
        image_classes=tuple(config["image_classes"]),
        keypoint_names=tuple(config["keypoint_names"]),
        tasks=network.config.tasks,
        fused=config["fused"],
    )
    return network, info


def _read_config(url: str, data: bytes) -> dict[str, Any]:
    config_url = storage.join(url, CONFIG_FILE)
    try:
        config = json.loads(data)
    except ValueError as error:
        raise WeightsError(f"{config_url}: not JSON: {error}") from error
    format_and_version = (config.get("format"), config.get("version")) if isinstance(config, dict) else None
    if format_and_version != (FORMAT, VERSION):
        raise WeightsError(f"{config_url}: found format and version {format_and_version!r}, expected {(FORMAT, VERSION)!r}")
    # Weights of older versions do not have these keys.
    config = {"image_classes": [], "keypoint_names": [], "thresholds": {}, **config}
    missing = {"name", "classes", "image_px", "metrics", "fused", "network"} - config.keys()
    if missing:
        raise WeightsError(f"{config_url}: keys {sorted(missing)} are missing")
    for key, (is_valid, expected) in CONFIG_CHECKS.items():
        if not is_valid(config[key]):
            raise WeightsError(f"{config_url}: {key}: found {config[key]!r}, expected {expected}")
    unknown = sorted(config["thresholds"].keys() - set(config["classes"]))
    if unknown:
        raise WeightsError(f"{config_url}: thresholds: found {unknown[0]!r}, expected names among classes")
    return config


def parse_network_config(values: dict[str, Any]) -> NetworkConfig:
    """Rebuild a network configuration from its JSON form.

    Raises:
        ConfigError: a key is unknown or a value is out of range.
    """
    implicit = _check_fields("network.implicit", ImplicitConfig, values.get("implicit", {}))
    fields = _check_fields("network", NetworkConfig, values)
    return NetworkConfig(**{**fields, "implicit": ImplicitConfig(**implicit)})


def _check_fields(name: str, config_class: type, values: Any) -> dict[str, Any]:
    """Return the settings with lists as tuples, after checking that the configuration class has a field for each."""
    fields = {f.name for f in dataclasses.fields(config_class)}
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: found {values!r}, expected settings by name")
    if values.keys() - fields:
        raise ConfigError(f"{name}: unknown keys {sorted(values.keys() - fields)}, expected some of {sorted(fields)}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _build_network(url: str, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Yolor:
    tensors_url = storage.join(url, TENSORS_FILE)
    anchors = tensors.get("head.anchors")
    if anchors is None:
        raise WeightsError(f"{tensors_url}: tensor 'head.anchors' is missing")
    try:
        network = Yolor(
            parse_network_config(config["network"]),
            len(config["classes"]),
            anchors,
            image_classes=len(config["image_classes"]),
            keypoints=len(config["keypoint_names"]),
            identities=len(tensors.get(PROXIES_TENSOR, ())),
        )
    except (ConfigError, TypeError, ValueError) as error:
        raise WeightsError(f"{storage.join(url, CONFIG_FILE)}: {error}") from error
    network = fuse(network) if config["fused"] else network.eval()
    _check_tensors(tensors_url, network, tensors)
    network.load_state_dict(tensors)
    return network


def _check_tensors(url: str, network: Yolor, tensors: dict[str, torch.Tensor]) -> None:
    expected = network.state_dict()
    for problem, names in (("missing", expected.keys() - tensors.keys()), ("unknown", tensors.keys() - expected.keys())):
        if names:
            raise WeightsError(f"{url}: {len(names)} tensors are {problem}, first {min(names)!r}")
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise WeightsError(f"{url}: {name!r} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}")
