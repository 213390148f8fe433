"""Find confusions of classes, the worst and the best images, and suspected errors of the annotations.

All of it concerns the detections over the best confidence of their class.
Legend: K classes, D detections, G annotated objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolor_ray.evaluate.diagnosis.comparison import Comparison, ImageBoxes, Kind, intersection_over_union

MIN_SUSPICION = 0.5
"""Least confidence of a detection that makes an annotation suspect."""


@dataclass(frozen=True)
class Suspect:
    """A detection that contradicts the annotations with confidence: the network may be right."""

    image_id: int
    reason: str
    """`not annotated` or `other class`."""
    confidence: float
    label: int
    """Class of the detection."""
    box_xyxy: tuple[float, float, float, float]
    """Pixels of the displayed image."""
    annotated_label: int = -1
    """Class of the annotation; -1 without one."""


@dataclass(frozen=True)
class RankedImage:
    """An image with the number of its right detections and of its errors."""

    image_id: int
    name: str
    right: int
    wrong: int
    """Wrong detections and missed objects."""

    @property
    def score(self) -> float:
        """F1 score of the image, 0 to 1; 1 without objects and detections."""
        return 2 * self.right / (2 * self.right + self.wrong) if self.right or self.wrong else 1.0


def confusion_matrix(images: Sequence[tuple[ImageBoxes, Comparison]], classes: int) -> np.ndarray:
    """Return counts (K + 1, K + 1): annotated class by detected class; the last row is the background, the last column are missed objects.

    A detection counts for the object that it finds or misnames, else for the background.
    """
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for image, comparison in images:
        on_object = (comparison.kinds == Kind.RIGHT) | (comparison.kinds == Kind.CLASS)
        others = ~on_object & (comparison.kinds != Kind.IGNORED)
        np.add.at(counts, (image.truth_labels[comparison.objects[on_object]], image.labels[on_object]), 1)
        np.add.at(counts, (classes, image.labels[others]), 1)
        named = np.zeros(len(image.crowd), bool)
        named[comparison.objects[on_object]] = True
        np.add.at(counts, (image.truth_labels[~named & ~image.crowd], classes), 1)
    return counts


def rank_images(images: Sequence[tuple[ImageBoxes, Comparison]]) -> list[RankedImage]:
    """Return the images, those with the lowest F1 score first, and of equal scores those with the most errors."""
    ranked = []
    for image, comparison in images:
        right = int((comparison.kinds == Kind.RIGHT).sum())
        wrong = int((comparison.kinds > Kind.RIGHT).sum()) + int((~comparison.found & ~image.crowd).sum())
        ranked.append(RankedImage(image.image_id, image.name, right, wrong))
    return sorted(ranked, key=lambda image: (image.score, -image.wrong, -image.right, image.name))


def best_images(ranked: Sequence[RankedImage], count: int) -> list[RankedImage]:
    """Return images with the highest F1 scores, of equal scores those with the most right detections; only images with a right one."""
    best = sorted(ranked, key=lambda image: (-image.score, -image.right, image.name))
    return [image for image in best if image.right][:count]


def suspected_label_errors(images: Sequence[tuple[ImageBoxes, Comparison]]) -> list[Suspect]:
    """Return confident detections that contradict the annotations, the most confident first.

    Suspect are detections on the background, which may show an object that nobody annotated, and detections on an object of another class
    that no detection of its own class found.
    """
    suspects = []
    for image, comparison in images:
        inside = intersection_over_union(image.boxes_xyxy, image.truth_xyxy[image.crowd]).max(axis=1, initial=0) > 0
        for d in np.flatnonzero((image.confidences >= MIN_SUSPICION) & ~inside):
            kind, index = comparison.kinds[d], comparison.objects[d]
            if kind == Kind.BACKGROUND:
                reason, annotated = "not annotated", -1
            elif kind == Kind.CLASS and not comparison.found[index]:
                reason, annotated = "other class", int(image.truth_labels[index])
            else:
                continue
            x1, y1, x2, y2 = image.boxes_xyxy[d].tolist()
            confidence, label = float(image.confidences[d]), int(image.labels[d])
            suspects.append(Suspect(image.image_id, reason, confidence, label, (x1, y1, x2, y2), annotated))
    return sorted(suspects, key=lambda suspect: (-suspect.confidence, suspect.image_id))
