"""Read the keypoints of a YOLO data.yaml: `kpt_shape`, `kpt_names` and `flip_idx`.

A dataset stores no flip order, because the names tell which keypoint is the opposite of which. Where `flip_idx` says something else than
the names, names are changed so that they say the same.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from yaml import Node

from yolor_ray.data.augment.keypoint_flip import flipped_keypoint_order
from yolor_ray.io import yaml_text

logger = logging.getLogger(__name__)


class KeypointSpec(NamedTuple):
    """Keypoints of each object."""

    names: tuple[str, ...]
    """Name of each keypoint."""
    dims: int
    """Numbers per keypoint: 2 for x y, 3 for x y visibility."""


def read_keypoints(nodes: Mapping[str, Node]) -> KeypointSpec | None:
    """Return the keypoints that the nodes of a YAML file declare, or None if the file has no `kpt_shape`.

    Raises:
        ValueError: `kpt_shape`, `kpt_names` or `flip_idx` is malformed, or they contradict one another.
    """
    if "kpt_shape" not in nodes:
        return None
    shape = [yaml_text.to_number(node, "kpt_shape") for node in yaml_text.to_list(nodes["kpt_shape"], "kpt_shape")]
    if len(shape) != 2 or shape[0] < 1 or shape[1] not in (2, 3):
        raise ValueError(f"kpt_shape: {shape}, expected [number of keypoints, 2 or 3]")
    count = shape[0]
    names = _names(nodes["kpt_names"], count) if "kpt_names" in nodes else [f"keypoint_{index}" for index in range(count)]
    if "flip_idx" in nodes:
        names = _follow_flips(names, _flips(nodes["flip_idx"], count))
    return KeypointSpec(tuple(names), shape[1])


def _names(node: Node, count: int) -> list[str]:
    lists = [node] if node.id == "sequence" else list(yaml_text.to_mapping(node, "kpt_names").values())
    names = [[yaml_text.to_text(item, "a keypoint name").strip() for item in yaml_text.to_list(entry, "kpt_names")] for entry in lists]
    if not names or any(other != names[0] for other in names):
        raise ValueError(f"{len(names)} different lists as kpt_names, expected one for all classes")
    if len(names[0]) != count or len(set(names[0])) < count or "" in names[0]:
        raise ValueError(f"kpt_names: {names[0]}, expected {count} different names as kpt_shape says")
    return names[0]


def _flips(node: Node, count: int) -> list[int]:
    flips = [yaml_text.to_number(item, "flip_idx") for item in yaml_text.to_list(node, "flip_idx")]
    if sorted(flips) != list(range(count)) or any(flips[flips[index]] != index for index in flips):
        raise ValueError(f"flip_idx: {flips}, expected each of 0 to {count - 1} once, in pairs that name each other")
    return flips


def _follow_flips(names: Sequence[str], flips: Sequence[int]) -> list[str]:
    """Return the names, changed where their sides say something else than `flips`, the index of each keypoint's opposite."""
    by_names = flipped_keypoint_order(names).tolist()
    followed = [names[index] if flip == by_names[index] else _flipped_name(index, flip) for index, flip in enumerate(flips)]
    if flipped_keypoint_order(followed).tolist() != list(flips):
        followed = [_flipped_name(index, flip) for index, flip in enumerate(flips)]
    changed = [f"{old} -> {new}" for old, new in zip(names, followed, strict=True) if old != new and not old.startswith("keypoint_")]
    if changed:
        reason = "flip_idx pairs them otherwise than their names say"
        logger.warning("event=keypoints_renamed names='%s' reason='%s'", ", ".join(changed), reason)
    return followed


def _flipped_name(index: int, flip: int) -> str:
    """Return a name that tells a keypoint's opposite: `left` and `right` of a pair stand for no known side."""
    side = "" if flip == index else "_left" if index < flip else "_right"
    return f"keypoint_{min(index, flip)}{side}"
