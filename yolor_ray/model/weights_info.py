"""Describe weights beside their tensors: names of outputs, input size, metrics and thresholds, as `config.json` has them.

Weights folders and exported graphs have the same description.
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yolor_ray.class_names import class_keypoints_problem, complete_class_keypoints, keypoint_flags, keypoint_indices, unusable_name
from yolor_ray.errors import WeightsError

Checks = dict[str, tuple[Callable[[Any], bool], str]]
"""Check and expectation for the value of a key, by key."""

MAX_IMAGE_PX = 16384
"""Largest side of the network input that weights may ask for, pixels; an image of that size takes 3 GB."""


def are_names(value: Any) -> bool:
    """Return True for a list of names without control characters."""
    return isinstance(value, list) and unusable_name(value) is None


INFO_CHECKS: Checks = {
    "name": (lambda v: unusable_name([v]) is None, "text without control characters"),
    "classes": (lambda v: are_names(v) and len(v) > 0, "a list of at least one name, without control characters"),
    "image_px": (lambda v: type(v) is int and 0 < v <= MAX_IMAGE_PX and v % 32 == 0, f"a positive multiple of 32, at most {MAX_IMAGE_PX}"),
    "metrics": (lambda v: isinstance(v, dict) and all(isinstance(m, int | float) for m in v.values()), "numbers by name"),
    "thresholds": (
        lambda v: isinstance(v, dict) and all(type(t) in (int, float) and 0 <= t <= 1 for t in v.values()),
        "numbers from 0 to 1 by class name",
    ),
    "image_classes": (are_names, "a list of names without control characters"),
    "keypoint_names": (are_names, "a list of names without control characters"),
}
"""Check and expectation for the value of each key that describes weights."""
OPTIONAL: dict[str, Any] = {"image_classes": [], "keypoint_names": [], "class_keypoints": {}, "thresholds": {}}
"""Values of the keys that files of older versions do not have."""


@dataclass(frozen=True)
class WeightsInfo:
    """Description of weights beside their tensors."""

    name: str
    """Name of the run that trained the weights."""
    classes: tuple[str, ...]
    """Class names in the order of the network's outputs."""
    image_px: int
    """Side of the square network input in training, pixels."""
    metrics: dict[str, float] = field(default_factory=dict)
    """COCO metrics on the validation set."""
    version: str = ""
    """First 12 hexadecimal digits of the SHA-256 of the tensors file; set by reading."""
    image_classes: tuple[str, ...] = ()
    """Names of the image labels, in the order of the network's outputs."""
    keypoint_names: tuple[str, ...] = ()
    """Names of the keypoints of all classes together, in the order of the network's outputs."""
    class_keypoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the keypoints of each object class that has some; left out, every class has all `keypoint_names`."""
    tasks: tuple[str, ...] = ("detect",)
    """Tasks of the network; set by reading."""
    fused: bool = False
    """True if batch norm and implicit vectors are folded; set by reading."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Confidence threshold with the best F1 score on the validation set, by class name; absent for classes not found there."""

    def __post_init__(self) -> None:
        """Give every class all keypoints where `class_keypoints` is left out."""
        object.__setattr__(self, "class_keypoints", complete_class_keypoints(self.class_keypoints, self.classes, self.keypoint_names))

    @functools.cached_property
    def keypoint_indices(self) -> tuple[np.ndarray, ...]:
        """For each class, the indices of its keypoints among the network's outputs, int64, in the order of the class."""
        return keypoint_indices(self)

    @functools.cached_property
    def keypoint_flags(self) -> np.ndarray:
        """(K, J) bool: the keypoints that each class has."""
        return keypoint_flags(self)


def info_json(info: WeightsInfo) -> dict[str, Any]:
    """Return the part of `config.json` that describes weights."""
    return {
        "name": info.name,
        "classes": list(info.classes),
        "image_classes": list(info.image_classes),
        "keypoint_names": list(info.keypoint_names),
        "class_keypoints": {name: list(keypoints) for name, keypoints in info.class_keypoints.items()},
        "image_px": info.image_px,
        "metrics": info.metrics,
        "thresholds": info.thresholds,
    }


def read_config(url: str, data: bytes, kind: dict[str, Any], checks: Checks) -> dict[str, Any]:
    """Return the checked content of a `config.json`.

    Args:
        url: URL of the file, for messages.
        data: content of the file.
        kind: keys and values that say which kind of file it is.
        checks: checks of further keys than those of INFO_CHECKS.

    Raises:
        WeightsError: the file is no JSON, of another kind, or has a value that is missing or out of range.
    """
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{url}: not JSON: {error}") from error
    found = tuple(config.get(key) for key in kind) if isinstance(config, dict) else None
    if found != tuple(kind.values()):
        raise WeightsError(f"{url}: found format and version {found!r:.200}, expected {tuple(kind.values())!r}")
    config = {**OPTIONAL, **config}
    checks = INFO_CHECKS | checks
    missing = checks.keys() - config.keys()
    if missing:
        raise WeightsError(f"{url}: keys {sorted(missing)} are missing")
    for key, (is_valid, expected) in checks.items():
        if not is_valid(config[key]):
            raise WeightsError(f"{url}: {key}: found {config[key]!r:.200}, expected {expected}")
    unknown = sorted(config["thresholds"].keys() - set(config["classes"]))
    if unknown:
        raise WeightsError(f"{url}: thresholds: found {unknown[0]!r}, expected names among classes")
    if problem := class_keypoints_problem(config["class_keypoints"], config["classes"], config["keypoint_names"]):
        raise WeightsError(f"{url}: class_keypoints: found {problem}")
    return config


def parse_info(config: Mapping[str, Any], *, version: str, tasks: tuple[str, ...], fused: bool) -> WeightsInfo:
    """Return the description of weights from the checked content of `config.json`, and from what the other files say."""
    return WeightsInfo(
        name=config["name"],
        classes=tuple(config["classes"]),
        image_px=config["image_px"],
        metrics=config["metrics"],
        thresholds=config["thresholds"],
        version=version,
        image_classes=tuple(config["image_classes"]),
        keypoint_names=tuple(config["keypoint_names"]),
        class_keypoints={name: tuple(keypoints) for name, keypoints in config["class_keypoints"].items()},
        tasks=tasks,
        fused=fused,
    )
