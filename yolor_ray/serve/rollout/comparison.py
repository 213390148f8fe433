"""Judge a new version by the version before: seconds and detections of both on the same images.

A bound is exceeded only by a difference that chance does not explain: the error of the mean, from the differences of single images, is a
part of each rule. Only classes that both versions have are compared.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from yolor_ray.inference.detect import Detections
from yolor_ray.model.weights import WeightsInfo

MIN_IMAGES = 16
"""Images before the first judgement."""
MIN_BOXES = 16
"""Boxes of each version before confidences and classes are judged."""
ENOUGH_IMAGES, ENOUGH_BOXES, RARE_BOXES_IMAGES = 128, 64, 1280
"""A comparison is complete with this many images and boxes of the version before, or with so many images that boxes are rare in them."""
MAX_SLOWDOWN, SLOWDOWN_S = 2.0, 0.005
"""Largest median of the seconds of an image, as a multiple of the other version's, and the seconds that never count as slow."""
MAX_COUNT_RATIO = 2.0
"""Largest ratio of the boxes per image, in both directions."""
MAX_CONFIDENCE_CHANGE = 0.2
"""Largest change of the mean confidence."""
MAX_MIX_CHANGE = 0.3
"""Largest share of boxes that changed class: half the sum of the changes of the shares of all classes."""
ERRORS_OF_MEAN = 4.0
"""Errors of the mean that a difference must exceed: chance does so once in 16,000 times."""
ERRORS_OF_MIX = 3.0
"""The same for the change of the mix of classes, whose expected value without a change is not 0."""


@dataclass(frozen=True)
class Found:
    """Boxes of one version in one image."""

    classes: tuple[str, ...]
    """Class of each box."""
    confidences: np.ndarray
    """(D,) float, 0 to 1."""
    seconds: float
    """Time of the forward pass and NMS of this image alone."""


@dataclass
class _Totals:
    """Sums over the images of one version."""

    seconds: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    classes: Counter[str] = field(default_factory=Counter)

    def add(self, found: Found, common: frozenset[str]) -> None:
        kept = [index for index, name in enumerate(found.classes) if name in common]
        self.seconds.append(found.seconds)
        self.counts.append(len(kept))
        self.confidences += [float(found.confidences[index]) for index in kept]
        self.classes.update(found.classes[index] for index in kept)


class Comparison:
    """Images on which two versions were run, and the judgement on them."""

    def __init__(self, before: WeightsInfo, new: WeightsInfo, allow_changes: bool = False) -> None:
        """Begin without images; `allow_changes` admits slower versions and other detections."""
        self._common = frozenset(before.classes) & frozenset(new.classes)
        self._allow_changes = allow_changes
        self._before, self._new = _Totals(), _Totals()

    @property
    def images(self) -> int:
        """Return the number of images."""
        return len(self._new.counts)

    @property
    def is_complete(self) -> bool:
        """Return True if the images say enough about a version to accept it."""
        images, boxes = self.images, len(self._before.confidences)
        return images >= ENOUGH_IMAGES and (boxes >= ENOUGH_BOXES or images >= RARE_BOXES_IMAGES)

    def add(self, before: Found, new: Found) -> None:
        """Add an image."""
        self._before.add(before, self._common)
        self._new.add(new, self._common)

    def fault(self) -> str | None:
        """Return the bound that the new version exceeds, in words; None if there is none, or too few images."""
        if self.images < MIN_IMAGES or self._allow_changes:
            return None
        faults = (self._slowdown(), self._count_change(), self._confidence_change(), self._mix_change())
        return next((f"{fault} ({self.images} images)" for fault in faults if fault), None)

    def _slowdown(self) -> str | None:
        before_s, new_s = (float(np.median(totals.seconds)) for totals in (self._before, self._new))
        allowed_s = max(MAX_SLOWDOWN * before_s, before_s + SLOWDOWN_S)
        if new_s <= allowed_s:
            return None
        expected = f"at most {allowed_s * 1e3:.1f} ms, as the version before takes {before_s * 1e3:.1f} ms"
        return f"latency: found a median of {new_s * 1e3:.1f} ms, expected {expected}"

    def _count_change(self) -> str | None:
        before, new = (np.array(totals.counts, float) for totals in (self._before, self._new))
        change, error = new - before, (new - before).std(ddof=1) / np.sqrt(self.images)
        low, high = before.mean() / MAX_COUNT_RATIO, before.mean() * MAX_COUNT_RATIO
        if low <= new.mean() <= high or abs(change.mean()) <= ERRORS_OF_MEAN * error:
            return None
        expected = f"{low:.2f} to {high:.2f}, as the version before has {before.mean():.2f}"
        return f"detections per image: found {new.mean():.2f}, expected {expected}"

    def _confidence_change(self) -> str | None:
        before, new = (np.array(totals.confidences) for totals in (self._before, self._new))
        if min(len(before), len(new)) < MIN_BOXES:
            return None
        change, error = abs(new.mean() - before.mean()), np.sqrt(before.var(ddof=1) / len(before) + new.var(ddof=1) / len(new))
        if change <= max(MAX_CONFIDENCE_CHANGE, ERRORS_OF_MEAN * error):
            return None
        return f"mean confidence: found {new.mean():.2f}, expected {before.mean():.2f} within {MAX_CONFIDENCE_CHANGE:g}"

    def _mix_change(self) -> str | None:
        totals = self._before.classes.total(), self._new.classes.total()
        if min(totals) < MIN_BOXES:
            return None
        names = sorted(self._common)
        before, new = (_shares(classes, names) for classes in (self._before.classes, self._new.classes))
        change = np.abs(new - before).sum() / 2
        mean = (before + new) / 2
        # Mean of the absolute value of a normal distribution, for each class.
        expected = np.sqrt(2 / np.pi * mean * (1 - mean) * sum(1 / total for total in totals)).sum() / 2
        if change <= max(MAX_MIX_CHANGE, ERRORS_OF_MIX * expected):
            return None
        most = names[int(np.abs(new - before).argmax())]
        shares = f"{most}: {before[names.index(most)]:.2f} to {new[names.index(most)]:.2f}"
        return f"class mix: found {change:.2f} of the boxes in other classes (share of {shares}), expected at most {MAX_MIX_CHANGE:g}"


def found_in(detections: Detections, classes: Sequence[str], seconds: float) -> Found:
    """Return the boxes of one image, without their places.

    Raises:
        FloatingPointError: an output has a value that is not finite.
    """
    outputs = ("boxes_xyxy", "confidences", "keypoints", "embeddings", "coefficients", "image_labels")
    for name in outputs:
        values = getattr(detections, name)
        if values is not None and not values.isfinite().all():
            raise FloatingPointError(f"found values in {name} that are not finite, expected numbers")
    return Found(tuple(classes[label] for label in detections.labels.tolist()), detections.confidences.double().numpy(), seconds)


def _shares(counts: Counter[str], names: Sequence[str]) -> np.ndarray:
    return np.array([counts[name] for name in names]) / counts.total()
