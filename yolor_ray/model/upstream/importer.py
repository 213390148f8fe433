"""Import an upstream checkpoint: read its bytes, recognise the network, and return the network with its numbers.

Nothing in the file is executed, and memory stays within a few times the file's size for any content.
Legend: L levels, A anchors per cell.
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
from yolor_ray.model.upstream.family import IMAGE_PX, make_meta_network, upstream_anchors, upstream_name
from yolor_ray.model.upstream.file_kind import file_kind
from yolor_ray.model.upstream.layouts import POOLED_CONV, Layout, reverse_pool_order
from yolor_ray.model.upstream.recognise import ANCHOR_GRID, RecognisedNetwork, recognise

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpstreamModel:
    """An imported network and the facts that its file holds."""

    network: Yolor
    """In eval mode, float32, unfused."""
    name: str
    """Upstream name, followed by the widths if they differ from the upstream ones."""
    layout: str
    """`main`, `paper` or `darknet`."""
    classes: tuple[str, ...]
    """Class names in the file; empty if the file has none, or another number of names than the network has classes."""
    image_px: int
    """Side of the network input in upstream training, pixels."""


def load_upstream(url: str) -> UpstreamModel:
    """Return the network in an upstream file: `.pt` of either branch, or darknet `.weights`.

    Raises:
        WeightsError: the file is hostile, damaged, no checkpoint, or the weights of another network.
        StorageError: the file cannot be read.
    """
    if manifest.is_published(url):
        raise WeightsError(f"{url}: found a weights folder of this project, expected an upstream file; give the folder by --weights")
    data = storage.read_bytes(url)
    model = _from_darknet(url, data) if file_kind(url, data) == "darknet" else _from_torch(url, data)
    logger.info(
        "event=upstream_imported file=%s network='%s' layout=%s classes=%d names_in_file=%s image_px=%d",
        *(url, model.name, model.layout, model.network.classes, bool(model.classes), model.image_px),
    )
    return model


def _from_darknet(url: str, data: bytes) -> UpstreamModel:
    candidate, tensors = read_darknet(url, data)
    config = candidate.config
    network = build_network(config, candidate.classes, candidate.layout, _default_anchors(url, config), tensors)
    return UpstreamModel(network, upstream_name(config), "darknet", (), IMAGE_PX[config.levels])


def _from_torch(url: str, data: bytes) -> UpstreamModel:
    archive = open_archive(url, data)
    checkpoint = find_network(url, archive.read_pickle())
    archive.check_tensors(checkpoint.tensors)
    shapes = {name: location.shape for name, location in checkpoint.tensors.items()}
    recognised = recognise(url, shapes, checkpoint.module_classes)
    tensors = {name: archive.read_tensor(upstream, checkpoint.tensors[upstream]) for name, upstream in recognised.upstream_tensors.items()}
    for name, tensor in tensors.items():
        if name.endswith("running_var") and (tensor < 0).any():
            raise WeightsError(f"{url}: {recognised.upstream_tensors[name]!r}: found a negative variance, expected 0 or more")
    config, classes, layout = recognised.config, recognised.classes, recognised.layout
    network = build_network(config, classes, layout, _read_anchors(url, archive, checkpoint, recognised), tensors)
    class_names = checkpoint.classes if len(checkpoint.classes) == classes else ()
    if checkpoint.classes and not class_names:
        logger.warning("event=class_names_ignored file=%s names=%d classes=%d", url, len(checkpoint.classes), classes)
    return UpstreamModel(network, upstream_name(config), layout, class_names, IMAGE_PX[config.levels])


def build_network(
    config: NetworkConfig, classes: int, layout: Layout, anchors: Float[Tensor, "L A 2"], tensors: Mapping[str, Tensor]
) -> Yolor:
    """Return a network with the tensors of an upstream file.

    Args:
        config: the network's configuration.
        classes: object classes.
        layout: layout of the file, which decides the channel order after the pooling pyramid.
        anchors: anchor widths and heights in pixels.
        tensors: the file's tensors by our names. Batch counters are absent and start at 0.
    """
    network = make_meta_network(config, classes)
    counters = {name: torch.zeros((), dtype=torch.long) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    state = {name: tensor.view(-1) if name.endswith(".z") else tensor for name, tensor in tensors.items()}
    if layout != "paper":
        state[POOLED_CONV] = reverse_pool_order(state[POOLED_CONV])
    network.load_state_dict({**state, **counters, "head.anchors": anchors}, assign=True)
    return network


def _default_anchors(url: str, config: NetworkConfig) -> Tensor:
    """Return the upstream anchors for a file without anchors, and log their use."""
    logger.info("event=default_anchors file=%s reason='the file has no anchors; the upstream ones are used' levels=%d", url, config.levels)
    return upstream_anchors(config)


def _read_anchors(url: str, archive: Archive, checkpoint: Checkpoint, recognised: RecognisedNetwork) -> Tensor:
    """Return the anchors of the file in pixels, or the upstream anchors if the file has none."""
    levels, anchors_per_level = recognised.config.levels, recognised.config.anchors_per_level
    name = next((name for name in checkpoint.tensors if name.endswith(f".{ANCHOR_GRID}")), None)
    if name is None:
        return _default_anchors(url, recognised.config)
    anchors = archive.read_tensor(name, checkpoint.tensors[name])
    if anchors.numel() != levels * anchors_per_level * 2 or not (anchors > 0).all():
        raise WeightsError(
            f"{url}: {name!r}: found anchors {anchors.flatten()[:6].tolist()} …, expected {levels} · {anchors_per_level} positive sizes"
        )
    return anchors.view(levels, anchors_per_level, 2)
