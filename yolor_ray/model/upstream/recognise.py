"""Recognise which network of the family the tensors of a checkpoint are: by their number, order, kinds and shapes."""

import functools
import logging
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from yolor_ray.config import NetworkConfig
from yolor_ray.errors import ConfigError, WeightsError
from yolor_ray.model.network import Yolor
from yolor_ray.model.upstream.family import FAMILY, outline, title_of
from yolor_ray.model.upstream.layouts import Layout, own_names

PREFIXES: dict[str, Layout] = {"module_list.": "main", "model.": "paper"}
"""How all tensor names of each layout begin."""
ANCHOR_GRID = "anchor_grid"
LEFT_OUT = ("num_batches_tracked", ".anchors", f".{ANCHOR_GRID}")
"""Tensors that are no weights: counters of training, and anchors."""
WAVELET, SPACE_TO_DEPTH = "models.common.DWT", "models.common.ReOrg"
"""Modules of the paper branch that begin a network without a tensor of their own."""
WIDEST = 8192
"""Channels; more than any network that fits a machine."""

log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recognised:
    """Say what a file holds: the network, its layout, and for each tensor of ours the file's."""

    config: NetworkConfig
    classes: int
    layout: Layout
    theirs: dict[str, str]


def recognise(place: str, shapes: Shapes, kinds: Container[str] = ()) -> Recognised:
    """Return the network that tensors with these names and shapes, in the file's order, are; `kinds` names the file's modules.

    Raises:
        WeightsError: they are no network of the family, or a tensor does not fit it.
    """
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith(LEFT_OUT)}
    layout = next((layout for prefix, layout in PREFIXES.items() if shapes and all(name.startswith(prefix) for name in shapes)), None)
    if layout is None:
        raise WeightsError(f"{place}: found {_described(shapes)}, expected names of a YOLOR checkpoint: module_list.N.… or model.N.…")
    like = _like(place, layout, shapes, kinds)
    theirs = dict(zip(_kinds(like, layout), shapes, strict=True))
    config, classes = _sized(place, like, {own: shapes[name] for own, name in theirs.items()})
    _check_shapes(place, outline(config, classes), theirs, shapes)
    return Recognised(config, classes, layout, theirs)


def _described(shapes: Shapes) -> str:
    return f"{len(shapes)} tensors, first {', '.join(list(shapes)[:3]) or 'none'}"


def _kind(name: str, shape: tuple[int, ...]) -> str:
    """Return what a tensor is, in words that do not depend on the layout."""
    last = name.rsplit(".", 1)[-1]
    if last in ("implicit", "z"):
        return "implicit"
    return f"convolution {shape[-1]}x{shape[-2]}" if len(shape) == 4 else last


@functools.lru_cache
def _kinds(config: NetworkConfig, layout: Layout) -> dict[str, str]:
    """Return what each tensor of a network is by our names, in the published order."""
    network = outline(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return {name: _kind(name, shapes[name]) for name in own_names(network, layout)}


def _like(place: str, layout: Layout, shapes: Shapes, kinds: Container[str]) -> NetworkConfig:
    """Return the published network whose tensors are of the same kinds in the same order."""
    found = [_kind(name, shape) for name, shape in shapes.items()]
    for title, config in FAMILY[layout].items():
        expected = [*_kinds(config, layout).values()]
        if expected == found:
            return _with_stem(place, config, kinds)
        if len(expected) == len(found):
            first = next(i for i, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1])
            raise WeightsError(
                f"{place}: found as many tensors as {title} has in the {layout} layout, but {list(shapes)[first]!r} is a "
                f"{found[first]}, expected a {expected[first]}; tensors must be in the order in which the network was saved"
            )
    counts = {title: _convolutions(_kinds(config, layout).values()) for title, config in FAMILY[layout].items()}
    raise WeightsError(
        f"{place}: found a network with names like YOLOR's in the {layout} layout, but with {_convolutions(found)} convolutions "
        f"in {_described(shapes)}; expected {', '.join(f'{title} ({count})' for title, count in counts.items())}"
    )


def _with_stem(place: str, config: NetworkConfig, kinds: Container[str]) -> NetworkConfig:
    """Return the network with the stem that the file's modules say: one without a convolution has no tensor that could tell."""
    if config.stem != "dwt" or WAVELET in kinds:
        return config
    if SPACE_TO_DEPTH in kinds:
        return replace(config, stem="s2d")
    log.warning("event=stem file=%s reason='no tensor tells wavelets from space to depth; wavelets are assumed'", place)
    return config


def _convolutions(kinds: Iterable[str]) -> int:
    return sum(kind.startswith("convolution") for kind in kinds)


def _sized(place: str, like: NetworkConfig, shapes: Shapes) -> tuple[NetworkConfig, int]:
    """Return a network with the widths and number of classes that our tensors' shapes in the file say."""
    stem = [shape[0] for name, shape in shapes.items() if name.startswith("backbone.stem.") and name.endswith("conv.weight")]
    stages = [shape[0] for name, shape in shapes.items() if name.startswith("backbone.stages.") and name.endswith("merge.out.conv.weight")]
    first = stem[0] if stem else like.stem_width
    widths = (stem[1], *stages) if like.stem in ("conv", "csp") else tuple(stages)
    outputs = shapes["head.levels.0.predict.weight"][0]
    classes, rest = divmod(outputs - 5 * like.anchors_per_level, like.anchors_per_level)
    if rest or classes < 1:
        raise WeightsError(
            f"{place}: found predictions of {outputs} numbers, expected {like.anchors_per_level} · (5 + classes) with 1 class or more"
        )
    if not all(0 < width <= WIDEST for width in (first, *widths)):
        raise WeightsError(f"{place}: found stages of {', '.join(map(str, widths))} channels, expected 8 to {WIDEST}")
    try:
        return replace(like, stem_width=first, widths=widths), classes
    except ConfigError as error:
        raise WeightsError(f"{place}: {error}") from error


def _check_shapes(place: str, network: Yolor, theirs: Mapping[str, str], shapes: Shapes) -> None:
    expected = network.state_dict()
    for own, name in theirs.items():
        found, wanted = shapes[name], tuple(expected[own].shape)
        if name.endswith(".implicit"):
            wanted = (1, *wanted, 1, 1)
        if found != wanted:
            raise WeightsError(f"{place}: {name!r} has shape {found}, expected {wanted} in {title_of(network.config)}")
