"""Write and read weights folders: `weights.safetensors` and `config.json`, verified by a manifest.

Nothing is ever unpickled. The configuration holds everything needed to build the network and to name its outputs.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from yolor_ray.class_names import class_keypoints_problem, complete_class_keypoints, keypoint_flags, keypoint_indices, unusable_name
from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.config.dotted import coerce
from yolor_ray.errors import ConfigError, WeightsError, check
from yolor_ray.io import manifest, storage
from yolor_ray.io.weights_url import BUILTIN, CONFIG_FILE, TENSORS_FILE, weights_folder
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.network import Yolor
from yolor_ray.model.old_weights import convert_old_weights

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
GRAPH_SUFFIXES = (".onnx", ".xml", ".bin")
"""Suffixes of exported graphs, which no job reads."""

MAX_IMAGE_PX = 16384
"""Largest side of the network input that weights may ask for, pixels; an image of that size takes 3 GB."""
MAX_TENSORS = 10_000
"""Most tensors that weights may have: several times those of the largest network of the family."""


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and unusable_name(value) is None


CONFIG_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda v: unusable_name([v]) is None, "text without control characters"),
    "classes": (lambda v: _are_names(v) and len(v) > 0, "a list of at least one name, without control characters"),
    "image_px": (lambda v: type(v) is int and 0 < v <= MAX_IMAGE_PX and v % 32 == 0, f"a positive multiple of 32, at most {MAX_IMAGE_PX}"),
    "metrics": (lambda v: isinstance(v, dict) and all(isinstance(m, int | float) for m in v.values()), "numbers by name"),
    "fused": (lambda v: isinstance(v, bool), "true or false"),
    "network": (lambda v: isinstance(v, dict), "the network's settings by name"),
    "thresholds": (
        lambda v: isinstance(v, dict) and all(type(t) in (int, float) and 0 <= t <= 1 for t in v.values()),
        "numbers from 0 to 1 by class name",
    ),
    "image_classes": (_are_names, "a list of names without control characters"),
    "keypoint_names": (_are_names, "a list of names without control characters"),
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
    """Names of the keypoints of all classes together, in the order of the network's outputs."""
    class_keypoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the keypoints of each object class that has some; left out, every class has all `keypoint_names`."""
    tasks: tuple[str, ...] = ("detect",)
    """Tasks of the network; set by reading."""
    fused: bool = False
    """True if batch norm and implicit vectors are folded; set by reading."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Confidence threshold with the best F1 score on the validation set, by class name; absent for classes not found there."""

    def __post_init__(self) -> None:
        """Give every class all keypoints where `class_keypoints` is left out."""
        object.__setattr__(self, "class_keypoints", complete_class_keypoints(self.class_keypoints, self.classes, self.keypoint_names))

    @functools.cached_property
    def keypoint_indices(self) -> tuple[np.ndarray, ...]:
        """For each class, the indices of its keypoints among the network's outputs, int64, in the order of the class."""
        return keypoint_indices(self)

    @functools.cached_property
    def keypoint_flags(self) -> np.ndarray:
        """(K, J) bool: the keypoints that each class has."""
        return keypoint_flags(self)


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
        "class_keypoints": {name: list(keypoints) for name, keypoints in info.class_keypoints.items()},
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
    if url.endswith(GRAPH_SUFFIXES):
        raise WeightsError(
            f"{url}: found an exported graph, which is for other programs; expected the weights folder that it was made from"
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
        class_keypoints={name: tuple(keypoints) for name, keypoints in config["class_keypoints"].items()},
        tasks=network.config.tasks,
        fused=config["fused"],
    )
    return network, info


def _read_config(url: str, data: bytes) -> dict[str, Any]:
    config_url = storage.join(url, CONFIG_FILE)
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{config_url}: not JSON: {error}") from error
    format_and_version = (config.get("format"), config.get("version")) if isinstance(config, dict) else None
    if format_and_version != (FORMAT, VERSION):
        raise WeightsError(f"{config_url}: found format and version {format_and_version!r}, expected {(FORMAT, VERSION)!r}")
    # Weights of older versions do not have these keys.
    config = {"image_classes": [], "keypoint_names": [], "class_keypoints": {}, "thresholds": {}, **config}
    missing = {"name", "classes", "image_px", "metrics", "fused", "network"} - config.keys()
    if missing:
        raise WeightsError(f"{config_url}: keys {sorted(missing)} are missing")
    for key, (is_valid, expected) in CONFIG_CHECKS.items():
        if not is_valid(config[key]):
            raise WeightsError(f"{config_url}: {key}: found {config[key]!r:.200}, expected {expected}")
    unknown = sorted(config["thresholds"].keys() - set(config["classes"]))
    if unknown:
        raise WeightsError(f"{config_url}: thresholds: found {unknown[0]!r}, expected names among classes")
    if problem := class_keypoints_problem(config["class_keypoints"], config["classes"], config["keypoint_names"]):
        raise WeightsError(f"{config_url}: class_keypoints: found {problem}")
    return config


def parse_network_config(values: dict[str, Any]) -> NetworkConfig:
    """Rebuild a network configuration from its JSON form.

    Raises:
        ConfigError: a key is unknown, or a value is out of range or of another type.
    """
    implicit = _check_fields("network.implicit", ImplicitConfig, values.get("implicit", {}))
    fields = _check_fields("network", NetworkConfig, {key: value for key, value in values.items() if key != "implicit"})
    return NetworkConfig(**fields, implicit=ImplicitConfig(**implicit))


def _check_fields(name: str, config_class: type, values: Any) -> dict[str, Any]:
    """Return the settings by name, of the types of the fields that the configuration class has for them."""
    fields = {f.name for f in dataclasses.fields(config_class)}
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: found {values!r}, expected settings by name")
    if values.keys() - fields:
        raise ConfigError(f"{name}: unknown keys {sorted(values.keys() - fields)}, expected some of {sorted(fields)}")
    return {key: coerce(f"{name}.{key}", value) for key, value in values.items()}


def _build_network(url: str, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Yolor:
    tensors_url = storage.join(url, TENSORS_FILE)
    anchors = tensors.get("head.anchors")
    if anchors is None:
        raise WeightsError(f"{tensors_url}: tensor 'head.anchors' is missing")
    if len(tensors) > MAX_TENSORS:
        raise WeightsError(f"{tensors_url}: found {len(tensors)} tensors, expected at most {MAX_TENSORS}")
    proxies = tensors.get(PROXIES_TENSOR, torch.zeros(0, 0))
    counts = {
        "image_classes": len(config["image_classes"]),
        "keypoints": len(config["keypoint_names"]),
        "identities": proxies.shape[0] if proxies.dim() else 0,
    }

    def build() -> Yolor:
        network = Yolor(network_config, len(config["classes"]), anchors, **counts)
        return fuse(network) if config["fused"] else network.eval()

    try:
        network_config = parse_network_config(config["network"])
        _check_size(network_config, tensors)
        network_config, tensors = convert_old_weights(network_config, tensors)
        # First without numbers: a configuration must not make room for more than the tensors hold.
        with torch.device("meta"):
            expected = build()
    except (ConfigError, ValueError) as error:
        raise WeightsError(f"{storage.join(url, CONFIG_FILE)}: {error}") from error
    _check_tensors(tensors_url, expected, tensors)
    network = build()
    network.load_state_dict(tensors)
    return network


def _check_size(config: NetworkConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Raise ConfigError for channels and blocks that need more numbers and tensors than the file has."""
    numbers = sum(tensor.numel() for tensor in tensors.values())
    channels = {"widths": max(config.widths), "stem_width": config.stem_width, "anchors_per_level": config.anchors_per_level}
    blocks = {"depths": sum(config.depths), "neck_depth": config.neck_depth, "spp_pairs": config.spp_pairs}
    # The default stem width is in the configuration of stems without a convolution, too.
    largest = max(numbers, NetworkConfig.stem_width)
    for name, value in channels.items():
        check(value <= largest, f"network.{name}", getattr(config, name), f"at most {numbers}, as {TENSORS_FILE} has {numbers} numbers")
    for name, value in blocks.items():
        check(
            value <= len(tensors),
            f"network.{name}",
            getattr(config, name),
            f"at most {len(tensors)}, as {TENSORS_FILE} has so many tensors",
        )


def _check_tensors(url: str, network: Yolor, tensors: dict[str, torch.Tensor]) -> None:
    expected = network.state_dict()
    for problem, names in (("missing", expected.keys() - tensors.keys()), ("unknown", tensors.keys() - expected.keys())):
        if names:
            raise WeightsError(f"{url}: {len(names)} tensors are {problem}, first {min(names)!r}")
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise WeightsError(f"{url}: {name!r} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}")
        if tensors[name].is_complex() or not torch.isfinite(tensors[name]).all():
            raise WeightsError(f"{url}: {name!r} has values that are not finite, expected real numbers")
