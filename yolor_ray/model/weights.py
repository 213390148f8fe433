"""Write and read weights folders: `weights.safetensors` and `config.json`, verified by a manifest.

Nothing is ever unpickled. The configuration holds everything needed to build the network and to name its outputs.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.config.dotted import coerce
from yolor_ray.errors import ConfigError, IntegrityError, WeightsError, check
from yolor_ray.io import manifest, storage
from yolor_ray.io.weights_url import BUILTIN, CONFIG_FILE, GRAPH_SUFFIXES, TENSORS_FILE, export_format, weights_folder
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.network import Yolor
from yolor_ray.model.old_weights import convert_old_weights
from yolor_ray.model.weights_info import Checks, WeightsInfo, info_json, parse_info, read_config

__all__ = [
    "CONFIG_FILE",
    "TENSORS_FILE",
    "WeightsInfo",
    "load_weights",
    "parse_network_config",
    "save_weights",
    "weights_files",
]

KIND = {"format": "yolor_ray.weights", "version": 1}
"""Keys of `config.json` that say what the folder holds."""
PROXIES_TENSOR = "tasks.embed.proxies"
"""Name of the tensor with one direction per identity of the training set, (I, E); absent from fused weights."""
UPSTREAM_SUFFIXES = (".pt", ".pth", ".weights")
MAX_TENSORS = 10_000
"""Most tensors that weights may have: several times those of the largest network of the family."""
CONFIG_CHECKS: Checks = {
    "fused": (lambda v: isinstance(v, bool), "true or false"),
    "network": (lambda v: isinstance(v, dict), "the network's settings by name"),
}
"""Checks of the keys of `config.json` beside those of the description."""


def weights_files(network: Yolor, info: WeightsInfo) -> dict[str, bytes]:
    """Return the contents of the files of a weights folder, by file name."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    config = {**KIND, **info_json(info), "fused": is_fused(network), "network": dataclasses.asdict(network.config)}
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
        raise WeightsError(f"{url}: found a file of an export, expected the folder that `yolor-ray export` wrote")
    url = str(Path(__file__).parent / "starting_weights") if url == BUILTIN else weights_folder(url)
    files = _read_files(url)
    config = read_config(storage.join(url, CONFIG_FILE), files[CONFIG_FILE], KIND, CONFIG_CHECKS)
    try:
        tensors = safetensors.torch.load(files[TENSORS_FILE])
    except SafetensorError as error:
        raise WeightsError(f"{storage.join(url, TENSORS_FILE)}: not a safetensors file: {error}") from error
    network = _build_network(url, config, tensors)
    version = hashlib.sha256(files[TENSORS_FILE]).hexdigest()[:12]
    return network, parse_info(config, version=version, tasks=network.config.tasks, fused=config["fused"])


def _read_files(url: str) -> dict[str, bytes]:
    try:
        return manifest.read_published(url, (CONFIG_FILE, TENSORS_FILE))
    except IntegrityError:
        if name := export_format(url):
            expected = "weights with tensors, such as those that the export was made from"
            raise WeightsError(f"{url}: found an export as {name}, which can only predict, expected {expected}") from None
        raise


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

    def build() -> Yolor:
        network = Yolor(
            network_config,
            len(config["classes"]),
            anchors,
            image_classes=len(config["image_classes"]),
            keypoints=len(config["keypoint_names"]),
            identities=proxies.shape[:1],
        )
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
