"""Recognise the network of a checkpoint by the number, order, roles and shapes of its tensors."""

import functools
import logging
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from yolor_ray.config import NetworkConfig
from yolor_ray.errors import ConfigError, WeightsError
from yolor_ray.model.network import Yolor
from yolor_ray.model.upstream.family import NETWORKS, make_meta_network, upstream_name
from yolor_ray.model.upstream.layouts import Layout, ordered_tensor_names

PREFIXES: dict[str, Layout] = {"module_list.": "main", "model.": "paper"}
"""Common prefix of all tensor names of each layout."""
ANCHOR_GRID = "anchor_grid"
NOT_WEIGHTS = ("num_batches_tracked", ".anchors", f".{ANCHOR_GRID}")
"""Name endings of tensors that are no weights: training counters and anchors."""
WAVELET, SPACE_TO_DEPTH = "models.common.DWT", "models.common.ReOrg"
"""Module classes of the paper branch that start a network and have no tensor."""
MAX_WIDTH = 8192
"""Maximum channels; more than any network that fits a machine."""

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class RecognisedNetwork:
    """The network in a file, its layout, and the file's tensor name for each tensor of ours."""

    config: NetworkConfig
    classes: int
    layout: Layout
    upstream_tensors: dict[str, str]
    """Name in the file by our name."""


def recognise(url: str, shapes: Shapes, module_classes: Container[str] = ()) -> RecognisedNetwork:
    """Return the network whose tensors have these names and shapes, in the file's order.

    Args:
        url: the file's URL, for messages.
        shapes: shape of each tensor by its name in the file.
        module_classes: class names of the file's modules, if it has modules.

    Raises:
        WeightsError: no network of the family fits, or a tensor has another shape than the network's.
    """
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith(NOT_WEIGHTS)}
    layout = next((layout for prefix, layout in PREFIXES.items() if shapes and all(name.startswith(prefix) for name in shapes)), None)
    if layout is None:
        raise WeightsError(f"{url}: found {_describe(shapes)}, expected names of a YOLOR checkpoint: module_list.N.… or model.N.…")
    base = _match_family(url, layout, shapes, module_classes)
    upstream_tensors = dict(zip(_expected_roles(base, layout), shapes, strict=True))
    config, classes = _read_widths(url, base, {name: shapes[upstream] for name, upstream in upstream_tensors.items()})
    _check_shapes(url, make_meta_network(config, classes), upstream_tensors, shapes)
    return RecognisedNetwork(config, classes, layout, upstream_tensors)


def _describe(shapes: Shapes) -> str:
    return f"{len(shapes)} tensors, first {', '.join(list(shapes)[:3]) or 'none'}"


def _role(name: str, shape: tuple[int, ...]) -> str:
    """Return the role of a tensor, in words that do not depend on the layout: implicit, convolution 3x3, weight, bias, …."""
    last = name.rsplit(".", 1)[-1]
    if last in ("implicit", "z"):
        return "implicit"
    return f"convolution {shape[-1]}x{shape[-2]}" if len(shape) == 4 else last


@functools.lru_cache
def _expected_roles(config: NetworkConfig, layout: Layout) -> dict[str, str]:
    """Return the role of each tensor of a network by our name, in the order of an upstream file."""
    network = make_meta_network(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return {name: _role(name, shapes[name]) for name in ordered_tensor_names(network, layout)}


def _match_family(url: str, layout: Layout, shapes: Shapes, module_classes: Container[str]) -> NetworkConfig:
    """Return the upstream network whose tensors have the same roles in the same order; its widths may differ from the file's."""
    roles = [_role(name, shape) for name, shape in shapes.items()]
    for family_name, config in NETWORKS[layout].items():
        expected = [*_expected_roles(config, layout).values()]
        if expected == roles:
            return _with_stem(url, config, module_classes)
        if len(expected) == len(roles):
            first = next(i for i, pair in enumerate(zip(expected, roles, strict=True)) if pair[0] != pair[1])
            raise WeightsError(
                f"{url}: found as many tensors as {family_name} has in the {layout} layout, but {list(shapes)[first]!r} is a "
                f"{roles[first]}, expected a {expected[first]}; tensors must be in the order in which the network was saved"
            )
    counts = {name: _count_convolutions(_expected_roles(config, layout).values()) for name, config in NETWORKS[layout].items()}
    raise WeightsError(
        f"{url}: found a network with names like YOLOR's in the {layout} layout, but with {_count_convolutions(roles)} convolutions "
        f"in {_describe(shapes)}; expected {', '.join(f'{name} ({count})' for name, count in counts.items())}"
    )


def _with_stem(url: str, config: NetworkConfig, module_classes: Container[str]) -> NetworkConfig:
    """Return the configuration with the stem of the file's modules; the stems `dwt` and `s2d` differ in no tensor."""
    if config.stem != "dwt" or WAVELET in module_classes:
        return config
    if SPACE_TO_DEPTH in module_classes:
        return replace(config, stem="s2d")
    logger.warning("event=stem_assumed file=%s stem=dwt reason='no tensor tells wavelets from space to depth; wavelets are assumed'", url)
    return config


def _count_convolutions(roles: Iterable[str]) -> int:
    return sum(role.startswith("convolution") for role in roles)


def _read_widths(url: str, base: NetworkConfig, shapes: Shapes) -> tuple[NetworkConfig, int]:
    """Return the base network with the widths of the file's tensors, and the number of classes; `shapes` is by our names."""
    stem = [shape[0] for name, shape in shapes.items() if name.startswith("backbone.stem.") and name.endswith("conv.weight")]
    stages = [shape[0] for name, shape in shapes.items() if name.startswith("backbone.stages.") and name.endswith("merge.out.conv.weight")]
    stem_width = stem[0] if stem else base.stem_width
    widths = (stem[1], *stages) if base.stem in ("conv", "csp") else tuple(stages)
    outputs = shapes["head.levels.0.predict.weight"][0]
    classes, remainder = divmod(outputs - 5 * base.anchors_per_level, base.anchors_per_level)
    if remainder or classes < 1:
        raise WeightsError(
            f"{url}: found predictions of {outputs} numbers, expected {base.anchors_per_level} · (5 + classes) with 1 class or more"
        )
    if not all(0 < width <= MAX_WIDTH for width in (stem_width, *widths)):
        raise WeightsError(f"{url}: found stages of {', '.join(map(str, widths))} channels, expected 8 to {MAX_WIDTH}")
    try:
        return replace(base, stem_width=stem_width, widths=widths), classes
    except ConfigError as error:
        raise WeightsError(f"{url}: {error}") from error


def _check_shapes(url: str, network: Yolor, upstream_tensors: Mapping[str, str], shapes: Shapes) -> None:
    tensors = network.state_dict()
    for name, upstream in upstream_tensors.items():
        found, expected = shapes[upstream], tuple(tensors[name].shape)
        if upstream.endswith(".implicit"):
            expected = (1, *expected, 1, 1)
        if found != expected:
            raise WeightsError(f"{url}: {upstream!r} has shape {found}, expected {expected} in {upstream_name(network.config)}")
