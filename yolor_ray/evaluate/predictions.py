"""Run a network over row groups of a packed data set and return COCO result rows, image by image.

Needs no Ray: the evaluate job and the validation of the training loop spread row groups over workers, and both run this.
Legend: B images, S side of the square network input in pixels.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch

from yolor_ray.data.decode import Letterbox, decode, letterbox
from yolor_ray.data.records import Objects, Record
from yolor_ray.data.shards import SCHEMA, Dataset, RowGroup, read_row_group, records
from yolor_ray.errors import DataError, ImageError
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.plots import Picture
from yolor_ray.model.predict import Detections

CONFIDENCE = 0.001
"""Precision is measured down to nearly every prediction."""
IOU = 0.65
MAX_DETECTIONS = 300
"""Per image; COCO's table counts the best 100 of each class."""
BATCHES_AHEAD = 2
PICTURE_CONFIDENCE = 0.25
"""Least confidence drawn where no better one was measured."""

Item = TypeVar("Item")
Detect = Callable[..., list[Detections]]
"""Takes images (B, S, S, 3) uint8 and, by name, confidence, iou and max_detections; see `model.predict`."""


@dataclass(frozen=True)
class Batch:
    """Neighbouring images of one row group, ready for the network."""

    images: np.ndarray
    """(B, S, S, 3) uint8 RGB."""
    letterboxes: tuple[Letterbox, ...]
    """Where each image lies in its square."""
    records: tuple[Record, ...]
    """What the images come from."""
    first_id: int
    """Image id of the first; the others count on from it."""


def check_classes(classes: Sequence[str], weights: str, dataset: Dataset) -> None:
    """Raise DataError unless weights and data set name the same classes in the same order."""
    if tuple(classes) != dataset.classes:
        raise DataError(
            f"{dataset.url}: found classes {', '.join(dataset.classes)}; expected those of {weights}, in its order: {', '.join(classes)}"
        )


def shares(groups: Sequence[RowGroup], workers: int) -> list[list[RowGroup]]:
    """Deal row groups out so that workers get about as many rows each; a worker gets none when there are too few."""
    dealt: list[list[RowGroup]] = [[] for _ in range(workers)]
    rows = [0] * workers
    for group in sorted(groups, key=lambda g: (-g.rows, g.first_record)):
        least = rows.index(min(rows))
        dealt[least].append(group)
        rows[least] += group.rows
    return [sorted(share, key=lambda g: g.first_record) for share in dealt]


def images_of(dataset: Dataset, groups: Sequence[RowGroup], image_px: int, batch: int, threads: int = 1) -> Iterator[Batch]:
    """Yield every image of the row groups once, in order; reading and decoding run ahead in threads.

    No batch crosses a row group, so that the same images share a forward pass however the groups are spread.
    """
    with ThreadPoolExecutor(threads) as decoders:
        yield from _ahead(_batches(dataset, groups, image_px, batch, decoders))


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    with ThreadPoolExecutor(1) as maker:
        coming = deque(maker.submit(next, items, None) for _ in range(BATCHES_AHEAD))
        try:
            while (item := coming.popleft().result()) is not None:
                coming.append(maker.submit(next, items, None))
                yield item
        finally:
            maker.shutdown(cancel_futures=True)


def _batches(dataset: Dataset, groups: Sequence[RowGroup], image_px: int, batch: int, decoders: ThreadPoolExecutor) -> Iterator[Batch]:
    for group in groups:
        found = records(read_row_group(dataset.url, group))
        for start in range(0, len(found), batch):
            part = found[start : start + batch]
            images = np.empty((len(part), image_px, image_px, 3), np.uint8)
            boxes = decoders.map(_fit, part, images, [dataset.url] * len(part))
            yield Batch(images, tuple(boxes), tuple(part), group.first_record + start)


def _fit(record: Record, out: np.ndarray, url: str) -> Letterbox:
    return letterbox(_pixels(record, url, len(out)), record.width, record.height, out)


def _pixels(record: Record, url: str, fit_px: int | None = None) -> np.ndarray:
    try:
        return decode(record.image, fit_px=fit_px)
    except ImageError as error:
        raise ImageError(error.code, f"{url}, image {record.name!r}: {error}") from error


def predict_groups(
    detect: Detect, dataset: Dataset, groups: Sequence[RowGroup], image_px: int, batch: int, threads: int = 1
) -> Iterator[tuple[int, list[coco.Row]]]:
    """Yield (image id, COCO result rows) for every image of the row groups."""
    for found in images_of(dataset, groups, image_px, batch, threads):
        images = torch.from_numpy(found.images)
        detections = detect(images, confidence=CONFIDENCE, iou=IOU, max_detections=MAX_DETECTIONS)
        for index, (one, box) in enumerate(zip(detections, found.letterboxes, strict=True)):
            image_id = found.first_id + index
            boxes_xyxy = box.to_image(one.boxes_xyxy.double().numpy())
            yield image_id, coco.detection_rows(image_id, boxes_xyxy, one.confidences.double().numpy(), one.labels.numpy())


def merge(parts: Sequence[Mapping[int, list[coco.Row]]], images: int) -> list[coco.Row]:
    """Return the rows of all parts in the order of the image ids; every image must have been predicted exactly once."""
    rows = {image_id: found for part in parts for image_id, found in part.items()}
    predicted = sum(len(part) for part in parts)
    assert predicted == images and rows.keys() == set(range(images)), f"{predicted} predictions of {len(rows)} images, {images} expected"
    return [row for image_id in range(images) for row in rows[image_id]]


def truth_of(dataset: Dataset) -> dict[str, Any]:
    """Return the annotations of a packed data set as COCO JSON, without reading any image."""
    annotated = (
        (group.first_record + index, record.width, record.height, record.objects)
        for group in dataset.row_groups
        for index, record in enumerate(_annotations(dataset, group))
    )
    return coco.truth(annotated, dataset.classes)


def _annotations(dataset: Dataset, group: RowGroup) -> list[Record]:
    table = read_row_group(dataset.url, group, [name for name in SCHEMA.names if name != "image"])
    return records(table.append_column(SCHEMA.field("image"), pa.array([b""] * len(table), pa.binary())))


def pictures(dataset: Dataset, rows: Sequence[coco.Row], measured: coco.Measured, count: int = 9) -> list[Picture]:
    """Return images from all over the data set with their detections of at least the best confidence of each class."""
    least = [c.confidence if c.confidence > 0 else PICTURE_CONFIDENCE for c in measured.classes.values()]
    chosen = np.linspace(0, dataset.images - 1, min(count, dataset.images)).round().astype(int).tolist()
    confident = [row for row in rows if row["image_id"] in set(chosen) and row["score"] >= least[row["category_id"]]]
    found = []
    for group in dataset.row_groups:
        inside = [image_id for image_id in chosen if 0 <= image_id - group.first_record < group.rows]
        neighbours = records(read_row_group(dataset.url, group)) if inside else []
        for image_id in inside:
            detected = [row for row in confident if row["image_id"] == image_id]
            record = neighbours[image_id - group.first_record]
            found.append(_picture(_pixels(record, dataset.url), record.objects, detected))
    return found


def _picture(image: np.ndarray, truth: Objects, rows: Sequence[coco.Row]) -> Picture:
    boxes_xywh = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    boxes_xyxy = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
    scores = np.array([row["score"] for row in rows])
    return Picture(image, boxes_xyxy, scores, np.array([row["category_id"] for row in rows], np.int64), truth)
