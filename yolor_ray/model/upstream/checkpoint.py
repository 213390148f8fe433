"""Find the network in what a checkpoint's pickle describes: a state dict, or a module with its parameters and children."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from yolor_ray.errors import WeightsError
from yolor_ray.model.upstream.archive import StoredTensor, stored_tensor
from yolor_ray.model.upstream.pickles import TENSOR, Made

HOLDERS = ("ema", "model", "state_dict")
"""Where checkpoints keep the network, the one to use first."""
DEPTH, TENSORS = 16, 10_000
"""Most modules inside each other, and most tensors, that are looked at: several times what the family needs."""


@dataclass(frozen=True)
class Checkpoint:
    """Hold a network's tensors by name, in the file's order, and its class names where the file has them."""

    tensors: dict[str, StoredTensor]
    classes: tuple[str, ...]
    kinds: frozenset[str]
    """Names of the classes of its modules; empty for a state dict."""


def find_network(place: str, root: Any) -> Checkpoint:
    """Return the tensors and class names in what a pickle describes.

    Raises:
        WeightsError: there is no tensor where checkpoints keep the network.
    """
    holder = _holder(root)
    if isinstance(holder, Made):
        # DataParallel keeps the network itself as its only child.
        holder = _children(holder, "_modules").get("module", holder)
    seen: dict[int, str] = {}
    found = _module_tensors(place, holder, seen) if isinstance(holder, Made) else _dict_tensors(holder)
    made = dict(itertools.islice(found, TENSORS))
    if not made:
        held = [key for key in root if isinstance(key, str)] if isinstance(root, dict) else [getattr(root, "name", type(root).__name__)]
        raise WeightsError(f"{place}: found no tensors in a pickle of {', '.join(held)[:200]}, expected a state dict or a module")
    prefix = "module." if all(name.startswith("module.") for name in made) else ""
    tensors = {name.removeprefix(prefix): stored_tensor(f"{place}: {name!r}", value) for name, value in made.items()}
    return Checkpoint(tensors, _names(holder) or _names(root), frozenset(seen.values()))


def _holder(root: Any) -> Any:
    for key in HOLDERS:
        if isinstance(root, dict) and isinstance(root.get(key), dict | Made):
            return root[key]
    return root


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Made) and value.name == TENSOR


def _dict_tensors(holder: Any) -> Iterator[tuple[str, Made]]:
    entries = holder.items() if isinstance(holder, dict) else ()
    yield from ((name, value) for name, value in entries if isinstance(name, str) and _is_tensor(value))


def _children(module: Made, kind: str) -> dict[str, Any]:
    children = module.state.get(kind)
    return {name: child for name, child in children.items() if isinstance(name, str)} if isinstance(children, dict) else {}


def _module_tensors(place: str, module: Made, seen: dict[int, str], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Made]]:
    """Yield the tensors of a module and its children by the names and in the order of its state dict; of each module once."""
    seen[id(module)] = module.name
    if depth > DEPTH:
        raise WeightsError(f"{place}: found more than {DEPTH} modules inside each other at {prefix[:80]!r}, expected fewer")
    for kind in ("_parameters", "_buffers"):
        yield from ((f"{prefix}{name}", value) for name, value in _children(module, kind).items() if _is_tensor(value))
    for name, child in _children(module, "_modules").items():
        if isinstance(child, Made) and id(child) not in seen:
            yield from _module_tensors(place, child, seen, f"{prefix}{name}.", depth + 1)


def _names(holder: Any) -> tuple[str, ...]:
    """Return class names from a list, or from a dict by label; nothing where they are neither."""
    state = holder.state if isinstance(holder, Made) else holder
    names = state.get("names") if isinstance(state, dict) else None
    if isinstance(names, dict) and list(names) == list(range(len(names))):
        names = list(names.values())
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
