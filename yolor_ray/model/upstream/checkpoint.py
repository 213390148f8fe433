"""Find the network in the content of a checkpoint's pickle: a state dict, or a module with its parameters and children."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from yolor_ray.errors import WeightsError
from yolor_ray.model.upstream.archive import TensorLocation, parse_tensor
from yolor_ray.model.upstream.pickles import TENSOR, ObjectRecord

NETWORK_KEYS = ("ema", "model", "state_dict")
"""Keys of a checkpoint that may hold the network, in order of preference."""
MAX_DEPTH, MAX_TENSORS = 16, 10_000
"""Limits of nested modules and of tensors read: several times the needs of the family."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a network by name, in the order of the file, and class names if the file has them."""

    tensors: dict[str, TensorLocation]
    classes: tuple[str, ...]
    module_classes: frozenset[str]
    """Class names of the network's modules; empty for a state dict."""


def find_network(url: str, root: Any) -> Checkpoint:
    """Return the tensors and class names in the content of a pickle.

    Raises:
        WeightsError: there is no tensor under the keys that hold the network.
    """
    entries = [root.get(key) for key in NETWORK_KEYS] if isinstance(root, dict) else []
    holder = next((entry for entry in entries if isinstance(entry, dict | ObjectRecord)), root)
    if isinstance(holder, ObjectRecord):
        # DataParallel keeps the network as its only child.
        holder = _named_children(holder, "_modules").get("module", holder)
    visited: dict[int, str] = {}
    named_records = _module_tensors(url, holder, visited) if isinstance(holder, ObjectRecord) else _dict_tensors(holder)
    records = dict(itertools.islice(named_records, MAX_TENSORS))
    if not records:
        keys = [key for key in root if isinstance(key, str)] if isinstance(root, dict) else [getattr(root, "name", type(root).__name__)]
        raise WeightsError(f"{url}: found no tensors in a pickle of {', '.join(keys)[:200]}, expected a state dict or a module")
    prefix = "module." if all(name.startswith("module.") for name in records) else ""
    tensors = {name.removeprefix(prefix): parse_tensor(f"{url}: {name!r}", record) for name, record in records.items()}
    return Checkpoint(tensors, _class_names(holder) or _class_names(root), frozenset(visited.values()))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, ObjectRecord) and value.name == TENSOR


def _dict_tensors(holder: Any) -> Iterator[tuple[str, ObjectRecord]]:
    entries = holder.items() if isinstance(holder, dict) else ()
    yield from ((name, value) for name, value in entries if isinstance(name, str) and _is_tensor(value))


def _named_children(module: ObjectRecord, attribute: str) -> dict[str, Any]:
    children = module.state.get(attribute)
    return {name: child for name, child in children.items() if isinstance(name, str)} if isinstance(children, dict) else {}


def _module_tensors(
    url: str, module: ObjectRecord, visited: dict[int, str], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, ObjectRecord]]:
    """Yield the tensors of a module and its children, with the names and in the order of the state dict; each module once.

    `visited` collects the class name of each module by the identity of its record.
    """
    visited[id(module)] = module.name
    if depth > MAX_DEPTH:
        raise WeightsError(f"{url}: found more than {MAX_DEPTH} modules inside each other at {prefix[:80]!r}, expected fewer")
    for attribute in ("_parameters", "_buffers"):
        yield from ((f"{prefix}{name}", value) for name, value in _named_children(module, attribute).items() if _is_tensor(value))
    for name, child in _named_children(module, "_modules").items():
        if isinstance(child, ObjectRecord) and id(child) not in visited:
            yield from _module_tensors(url, child, visited, f"{prefix}{name}.", depth + 1)


def _class_names(holder: Any) -> tuple[str, ...]:
    """Return class names from a list, or from a dict by label; an empty tuple if there is neither."""
    state = holder.state if isinstance(holder, ObjectRecord) else holder
    names = state.get("names") if isinstance(state, dict) else None
    if isinstance(names, dict) and list(names) == list(range(len(names))):
        names = list(names.values())
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
