"""Measure each kind of error: how often it occurs, and the AP50 that a network without it would gain (TIDE, arXiv 2008.08115).

Legend: K classes, D detections of all images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from yolor_ray.evaluate.diagnosis.comparison import Comparison, ImageBoxes, Kind
from yolor_ray.evaluate.diagnosis.curves import average_precision

MISSED = "missed"
"""Name of the objects that no detection found, beside the kinds of detections."""
KINDS: Mapping[str, Kind] = {
    "class": Kind.CLASS,
    "place": Kind.PLACE,
    "both": Kind.BOTH,
    "duplicate": Kind.DUPLICATE,
    "background": Kind.BACKGROUND,
}
"""Kinds of wrong detections by name."""
MAX_DETECTIONS = 100
"""Detections of one class on an image that count, as in COCO's table."""


@dataclass(frozen=True)
class ErrorKind:
    """One kind of error."""

    count: int
    """Errors of the detections over the best confidence of their class."""
    gain: float
    """AP50 that all detections would gain without this kind of error."""


@dataclass(frozen=True)
class _Scored:
    """Detections of all images as average precision sees them."""

    labels: np.ndarray
    """(D,) int64."""
    confidences: np.ndarray
    """(D,) float64."""
    right: np.ndarray
    """(D,) bool."""
    counted: np.ndarray
    """(D,) bool: False for detections that count neither as right nor as wrong."""
    objects: np.ndarray
    """(K,) int64: number of annotated objects of each class."""

    def ap50(self) -> float:
        """Return the mean AP50 of the classes with objects; NaN without such a class."""
        values = []
        for label in np.flatnonzero(self.objects):
            own = self.counted & (self.labels == label)
            values.append(average_precision(self.confidences[own], self.right[own], int(self.objects[label])))
        return float(np.mean(values)) if values else float("nan")


def error_kinds(
    over_threshold: Sequence[tuple[ImageBoxes, Comparison]], all_detections: Sequence[tuple[ImageBoxes, Comparison]], classes: int
) -> dict[str, ErrorKind]:
    """Return each kind of error by name.

    Args:
        over_threshold: images with the detections over the best confidence of their class, whose errors are counted.
        all_detections: the same images with all detections, from which AP50 is computed.
        classes: K.
    """
    counts = {name: sum(int((found.kinds == kind).sum()) for _, found in over_threshold) for name, kind in KINDS.items()}
    counts[MISSED] = sum(int(found.missed.sum()) for _, found in over_threshold)
    if not all_detections:
        return {name: ErrorKind(count, float("nan")) for name, count in counts.items()}
    table = _Table.of(all_detections)
    scored = table.scored(classes)
    before = scored.ap50()
    mended = {name: table.mend(scored, kind) for name, kind in KINDS.items()} | {MISSED: table.without_missed(scored)}
    return {name: ErrorKind(count, mended[name].ap50() - before) for name, count in counts.items()}


@dataclass(frozen=True)
class _Table:
    """Detections and objects of all images."""

    labels: np.ndarray
    confidences: np.ndarray
    kinds: np.ndarray
    objects: np.ndarray
    """(D,) int64: number of the detection's object among the objects of all images; -1 for none."""
    counted: np.ndarray
    truth_labels: np.ndarray
    found: np.ndarray
    missed: np.ndarray
    single: np.ndarray
    """True for objects that are no crowd region."""

    @classmethod
    def of(cls, images: Sequence[tuple[ImageBoxes, Comparison]]) -> "_Table":
        """Concatenate the comparisons of images."""
        starts = np.cumsum([0, *(len(image.crowd) for image, _ in images)])
        objects = [np.where(c.objects >= 0, c.objects + start, -1) for (_, c), start in zip(images, starts, strict=False)]
        return cls(
            labels=np.concatenate([image.labels for image, _ in images]),
            confidences=np.concatenate([image.confidences for image, _ in images]),
            kinds=np.concatenate([comparison.kinds for _, comparison in images]),
            objects=np.concatenate(objects),
            counted=np.concatenate([_within_limit(image.labels) for image, _ in images]),
            truth_labels=np.concatenate([image.truth_labels for image, _ in images]),
            found=np.concatenate([comparison.found for _, comparison in images]),
            missed=np.concatenate([comparison.missed for _, comparison in images]),
            single=np.concatenate([~image.crowd for image, _ in images]),
        )

    def scored(self, classes: int) -> _Scored:
        """Return the detections as they are."""
        counted = self.counted & (self.kinds != Kind.IGNORED)
        objects = np.bincount(self.truth_labels[self.single], minlength=classes)
        return _Scored(self.labels, self.confidences, self.kinds == Kind.RIGHT, counted, objects)

    def mend(self, scored: _Scored, kind: Kind) -> _Scored:
        """Return the detections without one kind of error.

        A detection of the wrong class or place becomes right if it is the most confident one for an object that no other finds; all other
        errors are left out.
        """
        wrong = np.flatnonzero((self.kinds == kind) & scored.counted)
        left_out = scored.counted.copy()
        left_out[wrong] = False
        if kind not in (Kind.CLASS, Kind.PLACE):
            return replace(scored, counted=left_out)
        wrong = wrong[np.argsort(-self.confidences[wrong], kind="stable")]
        targets, first = np.unique(self.objects[wrong], return_index=True)
        repaired, targets = wrong[first][~self.found[targets]], targets[~self.found[targets]]
        labels, right = self.labels.copy(), scored.right.copy()
        labels[repaired], right[repaired], left_out[repaired] = self.truth_labels[targets], True, True
        return replace(scored, labels=labels, right=right, counted=left_out)

    def without_missed(self, scored: _Scored) -> _Scored:
        """Return the detections on images without the objects that were missed."""
        return replace(scored, objects=scored.objects - np.bincount(self.truth_labels[self.missed], minlength=len(scored.objects)))


def _within_limit(labels: np.ndarray) -> np.ndarray:
    """Return True for the first `MAX_DETECTIONS` of each class, (D,) bool, of labels with the most confident first."""
    within = np.ones(len(labels), bool)
    for label in np.unique(labels):
        within[np.flatnonzero(labels == label)[MAX_DETECTIONS:]] = False
    return within
