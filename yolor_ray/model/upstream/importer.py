"""Import a published checkpoint: read its bytes, recognise the network, and return it with its numbers, ready to predict.

Nothing of the file is executed, and memory stays within a few times the file's size whatever the file says.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from yolor_ray.config import NetworkConfig
from yolor_ray.errors import WeightsError
from yolor_ray.io import manifest, storage
from yolor_ray.model.network import Yolor
from yolor_ray.model.upstream.archive import Archive, open_archive
from yolor_ray.model.upstream.checkpoint import Checkpoint, find_network
from yolor_ray.model.upstream.darknet import read_darknet
from yolor_ray.model.upstream.family import IMAGE_PX, outline, published_anchors, title_of
from yolor_ray.model.upstream.file_kind import file_kind
from yolor_ray.model.upstream.layouts import POOLED, Layout, pools_reversed
from yolor_ray.model.upstream.recognise import ANCHOR_GRID, Recognised, recognise

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpstreamModel:
    """Hold an imported network and what the file was."""

    network: Yolor
    """In eval mode, float32, unfused."""
    title: str
    """Published name, with the widths where they are others."""
    layout: str
    """`main`, `paper` or `darknet`."""
    classes: tuple[str, ...]
    """Class names in the file; empty where it has none, or none that fit."""
    image_px: int
    """Side of the input that the published network was trained for, pixels."""


def load_upstream(url: str) -> UpstreamModel:
    """Return the network in a published file: `.pt` of either layout, or darknet `.weights`.

    Raises:
        WeightsError: the file is hostile, damaged, no checkpoint, or the weights of another network.
        StorageError: it cannot be read.
    """
    if manifest.is_published(url):
        raise WeightsError(f"{url}: found a weights folder of this project, expected a published file; give the folder by --weights")
    data = storage.read_bytes(url)
    published = _from_darknet(url, data) if file_kind(url, data) == "darknet" else _from_torch(url, data)
    log.info(
        "event=published file=%s network=%r layout=%s classes=%d names=%s image_px=%d",
        *(url, published.title, published.layout, published.network.classes),
        *("in the file" if published.classes else "not in the file", published.image_px),
    )
    return published


def _from_darknet(url: str, data: bytes) -> UpstreamModel:
    fit, tensors = read_darknet(url, data)
    network = assemble(fit.config, fit.classes, fit.layout, _known_anchors(url, fit.config), tensors)
    return UpstreamModel(network, title_of(fit.config), "darknet", (), IMAGE_PX[fit.config.levels])


def _from_torch(url: str, data: bytes) -> UpstreamModel:
    archive = open_archive(url, data)
    checkpoint = find_network(url, archive.read_pickle())
    archive.check(checkpoint.tensors)
    found = recognise(url, {name: stored.shape for name, stored in checkpoint.tensors.items()}, checkpoint.kinds)
    tensors = {own: archive.tensor(name, checkpoint.tensors[name]) for own, name in found.theirs.items()}
    for own, tensor in tensors.items():
        if own.endswith("running_var") and (tensor < 0).any():
            raise WeightsError(f"{url}: {found.theirs[own]!r}: found a negative variance, expected 0 or more")
    network = assemble(found.config, found.classes, found.layout, _anchors(url, archive, checkpoint, found), tensors)
    names = checkpoint.classes if len(checkpoint.classes) == found.classes else ()
    if checkpoint.classes and not names:
        log.warning("event=names_unfit file=%s names=%d classes=%d", url, len(checkpoint.classes), found.classes)
    return UpstreamModel(network, title_of(found.config), found.layout, names, IMAGE_PX[found.config.levels])


def assemble(config: NetworkConfig, classes: int, layout: Layout, anchors: Float[Tensor, "L A 2"], tensors: Mapping[str, Tensor]) -> Yolor:
    """Return the network with these numbers by our names, as its file has them; counters of batches start at 0."""
    network = outline(config, classes)
    counters = {name: torch.zeros((), dtype=torch.long) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    own = {name: tensor.view(-1) if name.endswith(".z") else tensor for name, tensor in tensors.items()}
    if layout != "paper":
        own[POOLED] = pools_reversed(own[POOLED])
    network.load_state_dict({**own, **counters, "head.anchors": anchors}, assign=True)
    return network


def _known_anchors(url: str, config: NetworkConfig) -> Tensor:
    log.info("event=anchors file=%s reason='the file holds none; the published ones are used' levels=%d", url, config.levels)
    return published_anchors(config)


def _anchors(url: str, archive: Archive, checkpoint: Checkpoint, found: Recognised) -> Tensor:
    """Return anchors in pixels: those of the file where it has them."""
    levels, each = found.config.levels, found.config.anchors_per_level
    name = next((name for name in checkpoint.tensors if name.endswith(f".{ANCHOR_GRID}")), None)
    if name is None:
        return _known_anchors(url, found.config)
    anchors = archive.tensor(name, checkpoint.tensors[name])
    if anchors.numel() != levels * each * 2 or not (anchors > 0).all():
        raise WeightsError(f"{url}: {name!r}: found anchors {anchors.flatten()[:6].tolist()} …, expected {levels} · {each} positive sizes")
    return anchors.view(levels, each, 2)
