"""Make the page of an evaluation from its dataset, its metrics and its detections.

The page needs no network: it is made from the files of the report. Its images show boxes; masks and keypoints count in the numbers alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yolor_ray import __version__
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.evaluate.detections import DETECTIONS_FILE
from yolor_ray.evaluate.diagnosis.comparison import Comparison, ImageBoxes, Kind, compare_all, read_images
from yolor_ray.evaluate.diagnosis.curves import Curve, calibration, class_curves
from yolor_ray.evaluate.diagnosis.error_kinds import error_kinds
from yolor_ray.evaluate.diagnosis.findings import Suspect, best_images, confusion_matrix, rank_images, suspected_label_errors
from yolor_ray.evaluate.examples import MIN_CONFIDENCE
from yolor_ray.evaluate.page.embedding_map import EMBEDDINGS_FILE, embedding_map
from yolor_ray.evaluate.page.pictures import Box, Picture, embed_images, whole_picture, zoomed_picture
from yolor_ray.report.colours import colour
from yolor_ray.report.html import render_page

PAGE_FILE = "index.html"
WORST, BEST, SUSPECTS = 12, 4, 12
"""Most images of each kind on the page."""
MAX_CONFUSED = 30
"""Most classes of a confusion matrix on the page; of more classes, those with the most confusions are shown."""


@dataclass(frozen=True)
class Subject:
    """What a page is about."""

    title: str
    facts: Mapping[str, str]
    """Facts by name, such as the training set and the settings."""
    history: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """Rows of `metrics.jsonl` of a training."""


def report_page(dataset: Dataset, files: Mapping[str, bytes], subject: Subject) -> bytes:
    """Return the page as UTF-8.

    Args:
        dataset: dataset of the evaluation, with the classes of the network.
        files: metrics.json, detections.parquet and, where the evaluation made it, embeddings.parquet.
        subject: title and facts.
    """
    # Imported here because matplotlib takes a second, and most processes that measure never draw.
    from yolor_ray.evaluate.page.charts import calibration_chart, f1_chart, precision_recall_chart, training_charts

    numbers = json.loads(files["metrics.json"])
    scores = [numbers["classes"][name] for name in dataset.classes]
    thresholds = np.array([MIN_CONFIDENCE if score["confidence"] is None else score["confidence"] for score in scores])
    images = read_images(dataset, files[DETECTIONS_FILE])
    over, everything = compare_all(images, thresholds), compare_all(images)
    curves = class_curves(everything, len(dataset.classes))
    bins, calibration_error = calibration(everything)
    ranked = rank_images(over)
    by_id = {image.image_id: (image, comparison) for image, comparison in over}
    worst = [image for image in ranked if image.wrong][:WORST]
    shown = {"worst": worst, "best": best_images(ranked[len(worst) :], BEST)}
    suspects = suspected_label_errors(over)
    pairs = {kind: [(image, *side_by_side(*by_id[image.image_id], dataset.classes)) for image in chosen] for kind, chosen in shown.items()}
    zoomed = [_suspect_picture(suspect, *by_id[suspect.image_id], dataset.classes) for suspect in suspects[:SUSPECTS]]
    pictures = [picture for rows in pairs.values() for _, *both in rows for picture in both] + zoomed
    content = {
        "subject": subject,
        "dataset": dataset,
        "numbers": numbers,
        "rows": [_class_row(*fields) for fields in zip(dataset.classes, scores, curves, thresholds, strict=True)],
        "charts": [precision_recall_chart(curves, dataset.classes), f1_chart(curves, dataset.classes, thresholds), calibration_chart(bins)],
        "training_charts": training_charts(subject.history),
        "calibration_error": calibration_error,
        "errors": error_kinds(over, everything, len(dataset.classes)),
        "confusion": _confusion(over, dataset.classes),
        "suspects": list(zip(suspects, zoomed, strict=False)),
        "suspect_count": len(suspects),
        "pairs": pairs,
        "map": embedding_map(files[EMBEDDINGS_FILE], dataset) if EMBEDDINGS_FILE in files else None,
        "images": embed_images(dataset, pictures),
        "colour": colour,
        "version": __version__,
    }
    return render_page("evaluate/page/index.html", content)


def _class_row(name: str, score: Mapping[str, Any], curve: Curve | None, threshold: float) -> dict[str, Any]:
    """Return a class's row of the table: its scores, and precision and recall at its best confidence."""
    row: dict[str, Any] = {"name": name, **score, "precision": None, "recall": None}
    if curve is not None and (taken := curve.taken(threshold)):
        row |= {"precision": float(curve.precision[taken - 1]), "recall": float(curve.recall[taken - 1])}
    return row


def _confusion(over: Sequence[tuple[ImageBoxes, Comparison]], classes: Sequence[str]) -> dict[str, Any]:
    """Return names and counts of the confusion matrix, reduced to the classes with the most confusions.

    A class without an object and without a detection is not in the matrix: weights may know classes of other datasets.
    """
    counts = confusion_matrix(over, len(classes))
    wrong = counts - np.diag(np.diag(counts))
    confusions = (wrong.sum(axis=0) + wrong.sum(axis=1))[:-1]
    present = np.flatnonzero((counts.sum(axis=0) + counts.sum(axis=1))[:-1])
    most = present[np.argsort(-confusions[present], kind="stable")[:MAX_CONFUSED]]
    shown = [*np.sort(most).tolist(), len(classes)]
    names = [*classes, "background"]
    return {
        "names": [names[label] for label in shown],
        "counts": counts[np.ix_(shown, shown)].tolist(),
        "left_out": len(present) - len(most),
    }


def side_by_side(image: ImageBoxes, comparison: Comparison, classes: Sequence[str]) -> tuple[Picture, Picture]:
    """Return the picture of the annotations, with missed objects pointed out, and that of the detections, with the errors pointed out."""
    truth = [
        Box(tuple(box), int(label), classes[label] + (", crowd" if crowd else ""), wrong=not (found or crowd))
        for box, label, found, crowd in zip(image.truth_xyxy.tolist(), image.truth_labels, comparison.found, image.crowd, strict=True)
    ]
    detected = [
        Box(tuple(box), int(label), f"{classes[label]} {confidence:.2f}", wrong=bool(kind > Kind.RIGHT))
        for box, label, confidence, kind in zip(image.boxes_xyxy.tolist(), image.labels, image.confidences, comparison.kinds, strict=True)
    ]
    return whole_picture(image.image_id, truth), whole_picture(image.image_id, detected)


def _suspect_picture(suspect: Suspect, image: ImageBoxes, _: Comparison, classes: Sequence[str]) -> Picture:
    annotated = [
        Box(tuple(box), int(label), classes[label]) for box, label in zip(image.truth_xyxy.tolist(), image.truth_labels, strict=True)
    ]
    box = Box(suspect.box_xyxy, suspect.label, f"{classes[suspect.label]} {suspect.confidence:.2f}", wrong=True)
    return zoomed_picture(suspect.image_id, suspect.box_xyxy, image.size, [*annotated, box])
