"""Start a network from trained weights: take over all that fits, tensor by tensor and output by output, and say what did not.

Legend: A anchors per cell, K classes, F = 5 + K numbers per anchor.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolor_ray.class_names import ClassNames
from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.errors import WeightsError
from yolor_ray.model.fuse import is_fused
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import PROXIES, WeightsInfo, load_weights

BOX_OUTPUTS = 5
"""Outputs of an anchor that every data set has: x, y, w, h, objectness."""
ANCHORS = "head.anchors"
NOT_EXPLICIT = ("implicit", "tasks")
"""Settings of the network in which weights to start from may differ."""


@dataclass(frozen=True)
class TransferReport:
    """Say what was taken over and what starts fresh."""

    tensors: int
    """Tensors that were taken over whole."""
    partial: tuple[str, ...]
    """Tensors of which the outputs of boxes, objectness and known classes were taken over."""
    fresh: tuple[str, ...]
    """Tensors that start fresh."""
    known_classes: tuple[str, ...]
    """Classes that both have, whose outputs were taken over."""


def load_trainable(url: str, config: NetworkConfig) -> tuple[Yolor, WeightsInfo]:
    """Return unfused weights whose explicit network is that of `config`; implicit knowledge, tasks and names may differ.

    Raises WeightsError where they are fused or of another network.
    """
    network, info = load_weights(url)
    if is_fused(network):
        raise WeightsError(f"{url}: found fused weights, which cannot be trained; expected those of a run or of an import")
    differing = [
        f"network.{field.name}: found {theirs!r}, expected {mine!r}"
        for field in dataclasses.fields(NetworkConfig)
        if field.name not in NOT_EXPLICIT and (theirs := getattr(network.config, field.name)) != (mine := getattr(config, field.name))
    ]
    if differing:
        raise WeightsError(f"{url}: found weights of another network than the one to train: {'; '.join(differing)}")
    return network, info


@torch.no_grad()
def transfer_weights(network: Yolor, names: ClassNames, source: Yolor, source_names: ClassNames) -> TransferReport:
    """Copy into `network` all that fits of `source`, and say what did not; the network keeps its anchors.

    Outputs are matched by what they predict: boxes and objectness always, classes by name, image labels and keypoints if all names are
    the same, identities never. Implicit knowledge is taken over where it has the same form: what was learned to be added means
    nothing as a factor.
    """
    classes, source_classes = names.classes, source_names.classes
    outputs = _matching_outputs(network, classes, source_classes)
    foreign = (*_foreign_priors(network.config.implicit, source.config.implicit), *_foreign_outputs(names, source_names))
    theirs = {name: tensor for name, tensor in source.state_dict().items() if not any(part in name for part in foreign)}
    rows_of = tuple(network.config.anchors_per_level * (BOX_OUTPUTS + len(names)) for names in (classes, source_classes))
    copied: dict[str, float] = {}
    for name, mine in network.state_dict().items():
        if name == ANCHORS:
            continue
        if name not in theirs:
            copied[name] = 0.0
        elif _is_output(name) and (len(mine), len(theirs[name])) == rows_of and mine.shape[1:] == theirs[name].shape[1:]:
            copied[name] = _copy_outputs(mine, theirs[name], outputs)
        else:
            copied[name] = _copy_whole(mine, theirs[name])
    known = tuple(name for name in classes if name in source_classes)
    return TransferReport(
        tensors=sum(share == 1 for share in copied.values()),
        partial=tuple(name for name, share in copied.items() if 0 < share < 1),
        fresh=tuple(name for name, share in copied.items() if share == 0),
        known_classes=known,
    )


def _foreign_outputs(mine: ClassNames, theirs: ClassNames) -> tuple[str, ...]:
    """Return how the names of tensors go on whose outputs mean other things in the two networks."""
    found = [PROXIES]
    found += [] if mine.image_classes == theirs.image_classes else ["tasks.classify."]
    found += [] if mine.keypoint_names == theirs.keypoint_names else ["tasks.pose."]
    return tuple(found)


def _foreign_priors(mine: ImplicitConfig, theirs: ImplicitConfig) -> tuple[str, ...]:
    """Return how the names of priors go on that have another form in the two networks."""
    forms = {
        (".pyramid.", ".align."): ("align", "align_at", "align_by", "align_per"),
        (".refine.",): ("refine", "refine_by", "refine_what"),
    }
    differing = [parts for parts, words in forms.items() if any(getattr(mine, word) != getattr(theirs, word) for word in words)]
    return tuple(part for parts in differing for part in parts)


def _is_output(name: str) -> bool:
    """Tell whether a tensor has one row per output of a level."""
    return name.startswith("head.levels.") and name.endswith((".predict.weight", ".predict.bias", ".refine.z"))


def _matching_outputs(network: Yolor, classes: Sequence[str], source_classes: Sequence[str]) -> list[tuple[int, int]]:
    """Return (own row, source row) of all outputs of a level that predict the same thing."""
    own, theirs = BOX_OUTPUTS + len(classes), BOX_OUTPUTS + len(source_classes)
    pairs = [(output, output) for output in range(BOX_OUTPUTS)]
    numbers = {name: number for number, name in enumerate(source_classes)}
    pairs += [(BOX_OUTPUTS + k, BOX_OUTPUTS + numbers[name]) for k, name in enumerate(classes) if name in numbers]
    anchors = network.config.anchors_per_level
    return [(anchor * own + mine, anchor * theirs + source) for anchor in range(anchors) for mine, source in pairs]


def _copy_outputs(mine: Tensor, theirs: Tensor, outputs: list[tuple[int, int]]) -> float:
    """Copy the rows that match and return their share."""
    to, of = (torch.tensor(column, device=mine.device) for column in zip(*outputs, strict=True))
    mine[to] = theirs.to(mine.device)[of]
    return len(outputs) / len(mine)


def _copy_whole(mine: Tensor, theirs: Tensor) -> float:
    """Copy a tensor that fits, or what a convolution sees of the features behind a concatenated prior; return the share that did."""
    if mine.shape == theirs.shape:
        mine.copy_(theirs)
        return 1.0
    if mine.dim() == theirs.dim() == 4 and mine.shape == (len(theirs), 2 * theirs.shape[1], *theirs.shape[2:]):
        mine[:, theirs.shape[1] :] = theirs
        return 0.5
    return 0.0
