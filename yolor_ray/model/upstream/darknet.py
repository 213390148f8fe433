"""Read darknet `.weights`: a short header, then the numbers of one section after the other, without names or shapes.

The length of the file must fit a network exactly. If the length fits several networks, the numbers decide.
"""

import functools
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
from yolor_ray.model.upstream.family import MAIN_BRANCH, make_meta_network
from yolor_ray.model.upstream.layouts import Layout, ordered_modules

MAX_CLASSES = 10_000
WIDE_COUNTER_MINOR_VERSION = 2
"""From version 0.2 on, the header's counter of training images has 8 bytes instead of 4."""
CONV_TENSORS = ("norm.bias", "norm.weight", "norm.running_mean", "norm.running_var", "conv.weight")
PREDICTION_TENSORS = ("bias", "weight")
Networks = Mapping[str, NetworkConfig]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A network whose size fits the length of a file."""

    name: str
    config: NetworkConfig
    classes: int
    layout: Layout
    complete: bool
    """False if the network has implicit vectors and the file does not."""


def is_darknet(data: bytes) -> bool:
    """Return True if a file begins with a darknet header of version 0.1 or 0.2."""
    return len(data) >= 16 and tuple(np.frombuffer(data, "<i4", 2)) in ((0, 1), (0, 2))


def read_darknet(url: str, data: bytes, networks: Networks = MAIN_BRANCH) -> tuple[Candidate, dict[str, Tensor]]:
    """Return the network in a file, and its tensors by our names.

    The main branch's writer leaves out implicit vectors; absent vectors start neutral.

    Raises:
        WeightsError: no network fits, or more than one.
    """
    numbers = _read_numbers(url, data)
    candidates = [candidate for name, config in networks.items() for candidate in _candidates(name, config, len(numbers))]
    fits = [(candidate, dict(_split_tensors(candidate, numbers))) for candidate in candidates]
    fits = [(candidate, tensors) for candidate, tensors in fits if _is_plausible(tensors)]
    # A file that fits YOLOv4-CSP completely is not YOLOR-CSP without its implicit vectors, although the numbers are equal.
    fits = [(candidate, tensors) for candidate, tensors in fits if candidate.complete] or fits
    if not fits:
        raise WeightsError(f"{url}: found {len(numbers)} numbers, {_describe_mismatch(candidates)}; expected {_describe_sizes(networks)}")
    if len(fits) > 1:
        described = "; ".join(f"{candidate.name} with {candidate.classes} classes, layout {candidate.layout}" for candidate, _ in fits)
        raise WeightsError(f"{url}: found {len(numbers)} numbers that fit {described}; expected one network")
    candidate, tensors = fits[0]
    if candidate.layout == "interleaved":
        raise WeightsError(
            f"{url}: found {candidate.name} of darknet's own configuration, with Mish activations and heads between the neck's blocks, "
            "expected YOLOR's SiLU network; the same numbers would give other predictions"
        )
    if candidate.config.implicit.align == "none":
        logger.warning("event=no_implicit file=%s reason='the same numbers may be YOLOR written without its implicit vectors'", url)
    elif not candidate.complete:
        logger.warning("event=neutral_implicit file=%s reason='the file holds no implicit vectors; they start at 0 and 1'", url)
    return candidate, tensors


def _read_numbers(url: str, data: bytes) -> np.ndarray:
    minor_version = int(np.frombuffer(data, "<i4", 2)[1])
    header = 20 if minor_version >= WIDE_COUNTER_MINOR_VERSION else 16
    if (len(data) - header) % 4 or len(data) <= header:
        raise WeightsError(f"{url}: found {len(data)} bytes, expected a darknet header of {header} and whole numbers of 4; truncated?")
    return np.frombuffer(data, "<f4", offset=header)


@functools.cache
def _count_numbers(config: NetworkConfig, classes: int) -> tuple[int, int]:
    """Return the count of a network's numbers in a file, and the count of those in implicit vectors."""
    sizes = {name: tensor.numel() for name, tensor in make_meta_network(config, classes).state_dict().items()}
    vectors = sum(size for name, size in sizes.items() if name.endswith(".z"))
    return sum(size for name, size in sizes.items() if not name.endswith(("num_batches_tracked", "head.anchors"))), vectors


def _candidates(name: str, config: NetworkConfig, count: int) -> Iterator[Candidate]:
    """Yield each layout of a network, with the number of classes that gives exactly `count` numbers."""
    (total_1, vectors_1), (total_2, vectors_2) = (_count_numbers(config, classes) for classes in (1, 2))
    layouts: tuple[Layout, ...] = ("main",) if vectors_1 else ("main", "interleaved")
    for complete in (True, False) if vectors_1 else (True,):
        absent_1, absent_2 = (0, 0) if complete else (vectors_1, vectors_2)
        per_class = (total_2 - absent_2) - (total_1 - absent_1)
        more_classes, remainder = divmod(count - (total_1 - absent_1), per_class)
        if not remainder and 0 <= more_classes < MAX_CLASSES:
            yield from (Candidate(name, config, 1 + more_classes, layout, complete) for layout in layouts)


def _split_tensors(candidate: Candidate, numbers: np.ndarray) -> Iterator[tuple[str, Tensor]]:
    """Split the numbers into tensors, section by section; each tensor is a copy."""
    network = make_meta_network(candidate.config, candidate.classes)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    start = 0
    for name, neutral in _section_tensors(network, candidate.layout):
        size = shapes[name].numel()
        if neutral is not None and not candidate.complete:
            yield name, torch.full(shapes[name], neutral)
            continue
        yield name, torch.from_numpy(numbers[start : start + size].astype(np.float32)).view(shapes[name])
        start += size


def _section_tensors(network: Yolor, layout: Layout) -> Iterator[tuple[str, float | None]]:
    """Yield our names of tensors in the file's order, with the neutral constant of each implicit vector and None for others."""
    names = {module: name for name, module in network.named_modules()}
    for module in ordered_modules(network, layout):
        if isinstance(module, Implicit):
            yield f"{names[module]}.z", NEUTRAL[module.operator]
        else:
            tensors = CONV_TENSORS if isinstance(module, Conv) else PREDICTION_TENSORS
            yield from ((f"{names[module]}.{tensor}", None) for tensor in tensors)


def _is_plausible(tensors: Mapping[str, Tensor]) -> bool:
    """Return True if all numbers are finite and all variances 0 or more; at a wrong offset, variances are weights of either sign."""
    variances = (tensor for name, tensor in tensors.items() if name.endswith("running_var"))
    return all(bool((tensor >= 0).all()) for tensor in variances) and all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def _describe_mismatch(candidates: list[Candidate]) -> str:
    if not candidates:
        return "which fit no network of the family"
    described = ", ".join(dict.fromkeys(f"{candidate.name} with {candidate.classes} classes" for candidate in candidates))
    return f"as many as {described}, but then variances are negative or numbers not finite: another network, or damaged"


def _describe_sizes(networks: Networks) -> str:
    sizes = []
    for name, config in networks.items():
        at_1, at_2 = (_count_numbers(config, classes)[0] for classes in (1, 2))
        sizes.append(f"{name} {at_1 + 79 * (at_2 - at_1)} at 80 classes and {at_2 - at_1} for each more")
    return "; ".join(sizes)
