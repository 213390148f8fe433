"""Transfer weights into a network of another configuration, tensor by tensor and output by output, with a report of the rest.

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
from yolor_ray.model.implicit import Projection, principal_directions, project_weight, unproject_weight
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import PROXIES_TENSOR, WeightsInfo, load_weights

BOX_OUTPUTS = 5
"""Outputs of an anchor that are independent of the dataset: x, y, w, h, objectness."""
ANCHORS_TENSOR = "head.anchors"
OUTPUT_TENSORS = (".predict.weight", ".predict.bias", ".refine.z")
"""Name endings of the tensors of a detection level that have one row per output."""
ALIGN_MODULE = ".align."
"""Part of the names of the tensors of an alignment before the prediction."""
WEIGHT_BEHIND = {"align": ".predict.weight", "pyramid": ".conv.conv.weight"}
"""Name ending of the weights of the convolution behind each place of an alignment."""
ANCHOR_BRANCH, CLASS_BRANCH = "head.levels.", "head.scores."
"""Prefixes of the tensors of the branches with outputs for classes: of a head with anchors, and of a head without."""
IGNORED_SETTINGS = ("implicit", "tasks", "head", "distance_bins")
"""Settings of the network in which pretrained weights may differ."""


Rows = list[tuple[int, int]]


@dataclass(frozen=True)
class TransferReport:
    """Transferred and fresh tensors of a network."""

    copied: int
    """Tensors that were copied completely."""
    partial: tuple[str, ...]
    """Names of tensors of which only a part was copied: the rows of boxes, objectness and shared classes, or the weights of features."""
    fresh: tuple[str, ...]
    """Names of tensors that keep their fresh values."""
    shared_classes: tuple[str, ...]
    """Classes of both networks; their outputs were copied."""


def load_trainable(url: str, config: NetworkConfig) -> tuple[Yolor, WeightsInfo]:
    """Return unfused weights whose explicit network is that of `config`; implicit knowledge, tasks and names may differ.

    Raises:
        WeightsError: the weights are fused or of another network.
    """
    network, info = load_weights(url)
    if is_fused(network):
        raise WeightsError(f"{url}: found fused weights, which cannot be trained; expected those of a run or of an import")
    if differences := differing_settings(network.config, config):
        raise WeightsError(f"{url}: found weights of another network than the one to train: {'; '.join(differences)}")
    return network, info


def differing_settings(source: NetworkConfig, config: NetworkConfig) -> list[str]:
    """Return a sentence for each setting that forbids a transfer of weights from the network of `source` to that of `config`."""
    without_anchors = "free" in (source.head, config.head)
    ignored = (*IGNORED_SETTINGS, "anchors_per_level") if without_anchors else IGNORED_SETTINGS
    return [
        f"network.{field.name}: found {found!r}, expected {expected!r}"
        for field in dataclasses.fields(NetworkConfig)
        if field.name not in ignored and (found := getattr(source, field.name)) != (expected := getattr(config, field.name))
    ]


@torch.no_grad()
def transfer_weights(network: Yolor, names: ClassNames, source: Yolor, source_names: ClassNames) -> TransferReport:
    """Copy all fitting weights of `source` into `network` and report the rest; the network keeps its anchors.

    Outputs are matched by meaning: boxes and objectness always, classes by name, image labels and keypoints if all names are
    equal, identities never. Implicit knowledge is copied if it has the same form in both networks, because a learned summand is
    meaningless as a factor. A projection of one network only is multiplied out: the weights behind it are those of all features.
    """
    classes, source_classes = names.classes, source_names.classes
    of_anchors, of_classes = _match_outputs(network, classes, source_classes)
    differing_priors = _differing_priors(network.config.implicit, source.config.implicit)
    excluded = (*differing_priors, *_differing_outputs(names, source_names))
    projections, source_projections = (_projections(n) if ALIGN_MODULE in differing_priors else {} for n in (network, source))
    tensors = _without_projections(network.state_dict(), projections)
    source_tensors = _without_projections(source.state_dict(), source_projections)
    source_tensors = {name: tensor for name, tensor in source_tensors.items() if not any(text in name for text in excluded)}
    rows, source_rows = (network.config.anchors_per_level * (BOX_OUTPUTS + len(class_names)) for class_names in (classes, source_classes))
    copied_share: dict[str, float] = {}
    for name, tensor in tensors.items():
        if name == ANCHORS_TENSOR:
            continue
        source_tensor = source_tensors.get(name)
        is_output = name.endswith(OUTPUT_TENSORS) and source_tensor is not None and tensor.shape[1:] == source_tensor.shape[1:]
        if source_tensor is None:
            copied_share[name] = 0.0
        elif is_output and name.startswith(CLASS_BRANCH):
            copied_share[name] = _copy_outputs(tensor, source_tensor, of_classes)
        elif is_output and name.startswith(ANCHOR_BRANCH) and (len(tensor), len(source_tensor)) == (rows, source_rows):
            copied_share[name] = _copy_outputs(tensor, source_tensor, of_anchors)
        else:
            copied_share[name] = _copy_tensor(tensor, source_tensor)
    for z_name, weight_name in projections.items():
        copied_share[z_name] = copied_share[weight_name]
        if copied_share[z_name]:
            _project_weight(network, z_name, weight_name, tensors[weight_name])
    return TransferReport(
        copied=sum(share == 1 for share in copied_share.values()),
        partial=tuple(name for name, share in copied_share.items() if 0 < share < 1),
        fresh=tuple(name for name, share in copied_share.items() if share == 0),
        shared_classes=tuple(name for name in classes if name in source_classes),
    )


def _differing_outputs(names: ClassNames, source_names: ClassNames) -> tuple[str, ...]:
    """Return parts of the names of tensors whose outputs have other meanings in the two networks."""
    prefixes = [PROXIES_TENSOR]
    prefixes += [] if names.image_classes == source_names.image_classes else ["tasks.classify."]
    prefixes += [] if names.keypoint_names == source_names.keypoint_names else ["tasks.pose."]
    return tuple(prefixes)


def _differing_priors(implicit: ImplicitConfig, source_implicit: ImplicitConfig) -> tuple[str, ...]:
    """Return parts of the names of priors that have another form in the two networks."""
    settings_of = {
        (".pyramid.", ALIGN_MODULE): ("align", "align_at", "align_by", "align_per"),
        (".refine.",): ("refine", "refine_by", "refine_what"),
    }
    return tuple(
        module
        for modules, settings in settings_of.items()
        if any(getattr(implicit, setting) != getattr(source_implicit, setting) for setting in settings)
        for module in modules
    )


def _projections(network: Yolor) -> dict[str, str]:
    """Return the names of the vectors of each projection, with the name of the weights of the convolution behind it."""
    names = [name for name, module in network.named_modules() if isinstance(module, Projection)]
    return {f"{name}.z": name.rpartition(".")[0] + WEIGHT_BEHIND[name.rpartition(".")[2]] for name in names}


def _without_projections(tensors: dict[str, Tensor], projections: dict[str, str]) -> dict[str, Tensor]:
    """Return the tensors of a network in which each projection is multiplied into the weights behind it."""
    multiplied = {weight_name: unproject_weight(tensors[weight_name], tensors[z_name]) for z_name, weight_name in projections.items()}
    return {name: multiplied.get(name, tensor) for name, tensor in tensors.items() if name not in projections}


def _project_weight(network: Yolor, z_name: str, weight_name: str, weight: Tensor) -> None:
    """Set a projection to the principal directions of the weights of all features, and the weights behind it to their projection."""
    tensors = network.state_dict()
    tensors[z_name].copy_(principal_directions(weight, len(tensors[z_name])))
    tensors[weight_name].copy_(project_weight(weight, tensors[z_name]))


def _match_outputs(network: Yolor, classes: Sequence[str], source_classes: Sequence[str]) -> tuple[Rows, Rows]:
    """Return (row, source row) of all outputs of a level that have the same meaning: of a level with anchors, and of a level of classes."""
    source_labels = {name: label for label, name in enumerate(source_classes)}
    of_classes = [(label, source_labels[name]) for label, name in enumerate(classes) if name in source_labels]
    outputs, source_outputs = BOX_OUTPUTS + len(classes), BOX_OUTPUTS + len(source_classes)
    pairs = [(output, output) for output in range(BOX_OUTPUTS)]
    pairs += [(BOX_OUTPUTS + label, BOX_OUTPUTS + source_label) for label, source_label in of_classes]
    anchors = range(network.config.anchors_per_level)
    of_anchors = [(anchor * outputs + row, anchor * source_outputs + source_row) for anchor in anchors for row, source_row in pairs]
    return of_anchors, of_classes


def _copy_outputs(tensor: Tensor, source: Tensor, outputs: Rows) -> float:
    """Copy the matching rows and return the share of rows copied."""
    if not outputs:
        return 0.0
    rows, source_rows = (torch.tensor(column, device=tensor.device) for column in zip(*outputs, strict=True))
    tensor[rows] = source.to(tensor.device)[source_rows]
    return len(outputs) / len(tensor)


def _copy_tensor(tensor: Tensor, source: Tensor) -> float:
    """Copy a tensor of the same shape, or the feature weights of a convolution with a concatenated prior; return the copied share."""
    if tensor.shape == source.shape:
        tensor.copy_(source)
        return 1.0
    if tensor.dim() == source.dim() == 4 and tensor.shape == (len(source), 2 * source.shape[1], *source.shape[2:]):
        tensor[:, source.shape[1] :] = source
        return 0.5
    return 0.0
