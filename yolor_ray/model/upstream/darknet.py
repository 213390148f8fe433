"""Read darknet `.weights`: a short header, then the numbers of one section after the other, without names or shapes.

So the file's length has to fit a network exactly, and of several that fit, the numbers tell which one it is.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yolor_ray.config import NetworkConfig
from yolor_ray.errors import WeightsError
from yolor_ray.model.implicit import NEUTRAL, Implicit
from yolor_ray.model.layers import Conv
from yolor_ray.model.network import Yolor
from yolor_ray.model.upstream.family import MAIN, outline
from yolor_ray.model.upstream.layouts import Layout, in_published_order

MOST_CLASSES = 10_000
WIDE_SEEN = 2
"""From version 0.2 on, the number of images seen takes 8 bytes instead of 4."""
CONV = ("norm.bias", "norm.weight", "norm.running_mean", "norm.running_var", "conv.weight")
PREDICTION = ("bias", "weight")
Networks = Mapping[str, NetworkConfig]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """Hold a network that a file's length fits: `whole` says whether its implicit vectors, if any, are in the file."""

    title: str
    config: NetworkConfig
    classes: int
    layout: Layout
    whole: bool


def is_darknet(data: bytes) -> bool:
    """Tell whether a file begins as darknet's do, with version 0.1 or 0.2."""
    return len(data) >= 16 and tuple(np.frombuffer(data, "<i4", 2)) in ((0, 1), (0, 2))


def read_darknet(place: str, data: bytes, networks: Networks = MAIN) -> tuple[Fit, dict[str, Tensor]]:
    """Return which of the networks a file holds, and its tensors by our names.

    Implicit vectors that the file leaves out, as the main branch's writer does, start neutral.

    Raises:
        WeightsError: no network fits, or more than one.
    """
    numbers = _numbers(place, data)
    fits = [fit for title, config in networks.items() for fit in _fits(title, config, len(numbers))]
    read = [(fit, dict(_tensors(fit, numbers))) for fit in fits]
    likely = [(fit, tensors) for fit, tensors in read if _plausible(tensors)]
    # A file that is whole as YOLOv4-CSP is not YOLOR-CSP with its implicit vectors left out, though the numbers are the same.
    likely = [(fit, tensors) for fit, tensors in likely if fit.whole] or likely
    if not likely:
        raise WeightsError(f"{place}: found {len(numbers)} numbers, {_unfit(fits)}; expected {_sizes(networks)}")
    if len(likely) > 1:
        named = "; ".join(f"{fit.title} with {fit.classes} classes, heads {fit.layout}" for fit, _ in likely)
        raise WeightsError(f"{place}: found {len(numbers)} numbers that fit {named}; expected one network")
    fit, tensors = likely[0]
    if fit.layout == "heads in line":
        raise WeightsError(
            f"{place}: found {fit.title} as darknet's own configuration has it, with Mish activations and heads in line, "
            "expected the SiLU network of YOLOR's; its numbers would predict something else"
        )
    if fit.config.implicit.align == "none":
        log.warning("event=no_implicit file=%s reason='the same numbers may be YOLOR written without its implicit vectors'", place)
    elif not fit.whole:
        log.warning("event=neutral_implicit file=%s reason='the file holds no implicit vectors; they start at 0 and 1'", place)
    return fit, tensors


def _numbers(place: str, data: bytes) -> np.ndarray:
    minor = int(np.frombuffer(data, "<i4", 2)[1])
    header = 20 if minor >= WIDE_SEEN else 16
    if (len(data) - header) % 4 or len(data) <= header:
        raise WeightsError(f"{place}: found {len(data)} bytes, expected a darknet header of {header} and whole numbers of 4; truncated?")
    return np.frombuffer(data, "<f4", offset=header)


def _count(config: NetworkConfig, classes: int) -> tuple[int, int]:
    """Return how many numbers a network has in a file, and how many of them are implicit vectors."""
    sizes = {name: tensor.numel() for name, tensor in outline(config, classes).state_dict().items()}
    vectors = sum(size for name, size in sizes.items() if name.endswith(".z"))
    return sum(size for name, size in sizes.items() if not name.endswith(("num_batches_tracked", "head.anchors"))), vectors


def _fits(title: str, config: NetworkConfig, count: int) -> Iterator[Fit]:
    """Yield the ways in which a network with some number of classes has just so many numbers."""
    (one, vectors_of_one), (two, vectors_of_two) = (_count(config, classes) for classes in (1, 2))
    layouts: tuple[Layout, ...] = ("main",) if vectors_of_one else ("main", "heads in line")
    for whole in (True, False) if vectors_of_one else (True,):
        left_out_one, left_out_two = (0, 0) if whole else (vectors_of_one, vectors_of_two)
        each = (two - left_out_two) - (one - left_out_one)
        more, rest = divmod(count - (one - left_out_one), each)
        if not rest and 0 <= more < MOST_CLASSES:
            yield from (Fit(title, config, 1 + more, layout, whole) for layout in layouts)


def _tensors(fit: Fit, numbers: np.ndarray) -> Iterator[tuple[str, Tensor]]:
    """Cut the numbers into tensors, section by section; each gets memory of its own."""
    network = outline(fit.config, fit.classes)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    start = 0
    for name, neutral in _sections(network, fit.layout):
        size = shapes[name].numel()
        if neutral is not None and not fit.whole:
            yield name, torch.full(shapes[name], neutral)
            continue
        yield name, torch.from_numpy(numbers[start : start + size].astype(np.float32)).view(shapes[name])
        start += size


def _sections(network: Yolor, layout: Layout) -> Iterator[tuple[str, float | None]]:
    """Yield our names of tensors in the file's order; of an implicit vector also the constant that changes nothing."""
    names = {module: name for name, module in network.named_modules()}
    for module in in_published_order(network, layout):
        if isinstance(module, Implicit):
            yield f"{names[module]}.z", NEUTRAL[module.operator]
        else:
            yield from ((f"{names[module]}.{part}", None) for part in (CONV if isinstance(module, Conv) else PREDICTION))


def _plausible(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether variances are variances: read from a wrong place, they would be weights of either sign."""
    variances = (tensor for name, tensor in tensors.items() if name.endswith("running_var"))
    return all(bool((tensor >= 0).all()) for tensor in variances) and all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def _unfit(fits: list[Fit]) -> str:
    if not fits:
        return "which fit no network of the family"
    named = ", ".join(dict.fromkeys(f"{fit.title} with {fit.classes} classes" for fit in fits))
    return f"as many as {named}, but then variances are negative or numbers not finite: another network, or damaged"


def _sizes(networks: Networks) -> str:
    sizes = []
    for title, config in networks.items():
        at_80, one_more = (_count(config, classes)[0] for classes in (80, 81))
        sizes.append(f"{title} {at_80} at 80 classes and {one_more - at_80} for each more")
    return "; ".join(sizes)
