"""Write and read weights: a folder with `weights.safetensors` and `config.json`, verified by its manifest.

Nothing is ever unpickled. The configuration holds all that is needed to build the network and to name what it finds.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.errors import ConfigError, WeightsError
from yolor_ray.io import manifest, storage
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.network import Yolor

FORMAT, VERSION = "yolor_ray.weights", 1
CONFIG_FILE, TENSORS_FILE = "config.json", "weights.safetensors"
PROXIES = "tasks.embed.proxies"
"""A direction for each identity that was told apart while training; only unfused weights have them."""
FILE_ENDINGS = (".pt", ".pth", ".weights")

CONFIG_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda v: isinstance(v, str), "text"),
    "classes": (lambda v: isinstance(v, list) and len(v) > 0 and all(isinstance(c, str) for c in v), "a list of at least one name"),
    "image_px": (lambda v: type(v) is int and v > 0 and v % 32 == 0, "a positive multiple of 32"),
    "metrics": (lambda v: isinstance(v, dict) and all(isinstance(m, int | float) for m in v.values()), "numbers by name"),
    "fused": (lambda v: isinstance(v, bool), "true or false"),
    "network": (lambda v: isinstance(v, dict), "the network's settings by name"),
    "image_classes": (lambda v: isinstance(v, list) and all(isinstance(c, str) for c in v), "a list of names"),
    "keypoint_names": (lambda v: isinstance(v, list) and all(isinstance(c, str) for c in v), "a list of names"),
}
"""What each key of `config.json` must look like."""


@dataclass(frozen=True)
class WeightsInfo:
    """Say what weights are, beside the tensors."""

    name: str
    """Name of the run that made them."""
    classes: tuple[str, ...]
    """Class names in the order of the network's outputs."""
    image_px: int
    """Side of the square input that they were trained for, pixels."""
    metrics: dict[str, float] = field(default_factory=dict)
    """COCO numbers on the validation set."""
    version: str = ""
    """First 12 hexadecimal digits of the digest of the stored tensors; set by reading."""
    image_classes: tuple[str, ...] = ()
    """Names of the labels of whole images, in the order of the network's outputs."""
    keypoint_names: tuple[str, ...] = ()
    """Names of each object's keypoints, in the order of the network's outputs."""
    tasks: tuple[str, ...] = ("detect",)
    """What the network has learned; set by reading."""
    fused: bool = False
    """Whether batch norm and implicit vectors are folded away; set by writing."""


def weights_files(network: Yolor, info: WeightsInfo) -> dict[str, bytes]:
    """Return the files of a weights folder."""
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
        "fused": is_fused(network),
        "network": dataclasses.asdict(network.config),
    }
    return {TENSORS_FILE: safetensors.torch.save(tensors), CONFIG_FILE: json.dumps(config, indent=1).encode()}


def save_weights(url: str, network: Yolor, info: WeightsInfo) -> None:
    """Publish a weights folder at `url`."""
    manifest.publish(url, weights_files(network, info))


def load_weights(url: str) -> tuple[Yolor, WeightsInfo]:
    """Return the network, in eval mode on the CPU, and what it is.

    Raises WeightsError when the folder is incomplete, altered, of another format or does not fit its own configuration.
    """
    if url.endswith(FILE_ENDINGS):
        raise WeightsError(
            f"{url}: found the name of a file, expected a weights folder; "
            f"import a published checkpoint with: python jobs/export.py --published {url} --output FOLDER"
        )
    files = manifest.read_published(url, (CONFIG_FILE, TENSORS_FILE))
    config = _read_config(url, files[CONFIG_FILE])
    try:
        tensors = safetensors.torch.load(files[TENSORS_FILE])
    except SafetensorError as error:
        raise WeightsError(f"{storage.join(url, TENSORS_FILE)}: not a safetensors file: {error}") from error
    network = _build(url, config, tensors)
    info = WeightsInfo(
        name=config["name"],
        classes=tuple(config["classes"]),
        image_px=config["image_px"],
        metrics=config["metrics"],
        version=hashlib.sha256(files[TENSORS_FILE]).hexdigest()[:12],
        image_classes=tuple(config["image_classes"]),
        keypoint_names=tuple(config["keypoint_names"]),
        tasks=network.config.tasks,
        fused=config["fused"],
    )
    return network, info


def _read_config(url: str, data: bytes) -> dict[str, Any]:
    place = storage.join(url, CONFIG_FILE)
    try:
        config = json.loads(data)
    except ValueError as error:
        raise WeightsError(f"{place}: not JSON: {error}") from error
    found = (config.get("format"), config.get("version")) if isinstance(config, dict) else None
    if found != (FORMAT, VERSION):
        raise WeightsError(f"{place}: found format and version {found!r}, expected {(FORMAT, VERSION)!r}")
    # Weights from before there were other tasks than detection do not speak of these.
    config = {"image_classes": [], "keypoint_names": [], **config}
    missing = {"name", "classes", "image_px", "metrics", "fused", "network"} - config.keys()
    if missing:
        raise WeightsError(f"{place}: keys {sorted(missing)} are missing")
    for key, (sensible, expected) in CONFIG_CHECKS.items():
        if not sensible(config[key]):
            raise WeightsError(f"{place}: {key}: found {config[key]!r}, expected {expected}")
    return config


def network_config(values: dict[str, Any]) -> NetworkConfig:
    """Rebuild a network configuration from its JSON form."""
    implicit = _known_fields("network.implicit", ImplicitConfig, values.get("implicit", {}))
    fields = _known_fields("network", NetworkConfig, values)
    return NetworkConfig(**{**fields, "implicit": ImplicitConfig(**implicit)})


def _known_fields(place: str, kind: type, values: Any) -> dict[str, Any]:
    known = {f.name for f in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: found {values!r}, expected settings by name")
    if values.keys() - known:
        raise ConfigError(f"{place}: unknown keys {sorted(values.keys() - known)}, expected some of {sorted(known)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _build(url: str, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Yolor:
    place = storage.join(url, TENSORS_FILE)
    anchors = tensors.get("head.anchors")
    if anchors is None:
        raise WeightsError(f"{place}: tensor 'head.anchors' is missing")
    try:
        network = Yolor(
            network_config(config["network"]),
            len(config["classes"]),
            anchors,
            image_classes=len(config["image_classes"]),
            keypoints=len(config["keypoint_names"]),
            identities=len(tensors.get(PROXIES, ())),
        )
    except (ConfigError, TypeError, ValueError) as error:
        raise WeightsError(f"{storage.join(url, CONFIG_FILE)}: {error}") from error
    network = fuse(network) if config["fused"] else network.eval()
    _check_fit(place, network, tensors)
    network.load_state_dict(tensors)
    return network


def _check_fit(place: str, network: Yolor, tensors: dict[str, torch.Tensor]) -> None:
    expected = network.state_dict()
    for label, names in (("missing", expected.keys() - tensors.keys()), ("unknown", tensors.keys() - expected.keys())):
        if names:
            raise WeightsError(f"{place}: {len(names)} tensors are {label}, first {min(names)!r}")
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise WeightsError(f"{place}: {name!r} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}")
