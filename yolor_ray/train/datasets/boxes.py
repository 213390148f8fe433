"""Check the boxes of a training set before the first epoch: boxes that are absent, too small to be seen, or of a few classes alone."""

import logging
from contextlib import closing

import numpy as np
import pyarrow as pa
import torch

from yolor_ray.data.augment.geometry import MIN_SIDE_PX
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.errors import DataError
from yolor_ray.train.datasets.columns import read_columns
from yolor_ray.train.teacher import load_teacher

logger = logging.getLogger(__name__)

MAX_SHOWN_CLASSES = 20
MEASURED_BOXES = 10_000
"""Boxes that are read where no anchors are fitted: their median size and largest side are enough."""


def read_box_sides(dataset: Dataset, image_px: int, *, most_boxes: int | None) -> tuple[np.ndarray, int]:
    """Return the (N, 2) widths and heights of boxes in pixels of the network input, and the number of images not annotated for detect.

    Crowd regions are not learned.

    Args:
        dataset: training set.
        image_px: side of the network input, pixels.
        most_boxes: reads row groups in a seeded order until they have that many boxes, one of which can be seen, so that the time is the
            same for larger datasets; None reads all.
    """
    groups = dataset.row_groups
    order = np.random.default_rng(0).permutation(len(groups)).tolist()
    sides, without_boxes, boxes, is_any_visible = {}, 0, 0, False
    columns = ["width", "height", "boxes_xyxy", "crowd", "tasks"]
    with closing(read_columns(dataset, columns, [groups[position] for position in order])) as tables:
        for position, table in zip(order, tables, strict=True):
            sides[position] = _box_sides(table.combine_chunks(), image_px)
            boxes += len(sides[position])
            is_any_visible |= bool((sides[position].min(axis=1) >= MIN_SIDE_PX).any())
            tasks = table["tasks"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            without_boxes += len(table) - int((tasks == "detect").sum())
            if most_boxes is not None and boxes >= most_boxes and is_any_visible:
                break
    return np.concatenate([np.zeros((0, 2), np.float32), *(sides[position] for position in sorted(sides))]), without_boxes


def _box_sides(table: pa.Table, image_px: int) -> np.ndarray:
    """Return the (N, 2) float32 sides of a row group's boxes without crowd regions, in pixels of the network input."""
    crowds = table["crowd"].combine_chunks()
    single = ~crowds.flatten().to_numpy(zero_copy_only=False)
    corners = table["boxes_xyxy"].combine_chunks().flatten().flatten().to_numpy().reshape(-1, 4)[single]
    scales = (image_px / np.maximum(table["width"].to_numpy(), table["height"].to_numpy())).astype(np.float32)
    image_of_box = np.repeat(np.arange(len(table)), crowds.value_lengths().to_numpy())[single]
    sides: np.ndarray = (corners[:, 2:] - corners[:, :2]) * scales[image_of_box, None]
    return sides


def check_teacher(url: str, dataset: Dataset, image_px: int, boxes: int, without_boxes: int) -> None:
    """Refuse a teacher of other classes, and a training set whose classes have neither boxes nor a teacher.

    Args:
        url: weights of the teacher.
        dataset: training set.
        image_px: side of the network input, pixels.
        boxes: boxes to learn in the training set.
        without_boxes: images that are not annotated for detect, which the teacher annotates.

    Raises:
        DataError: there is nothing to learn, or a class that nothing teaches.

    """
    teacher = load_teacher(url, dataset.classes, image_px, torch.device("cpu"))
    unknown = [name for label, name in enumerate(dataset.classes) if label not in teacher.labels.tolist()]
    if not boxes and not without_boxes:
        expected = "expected boxes of single objects, or images that are not annotated for detect for the teacher"
        raise DataError(f"{dataset.url}: found no box to learn on {dataset.images} images, all annotated for detect, {expected}")
    if not boxes and unknown:
        raise DataError(f"{dataset.url}: found no box, and no class {', '.join(unknown)} in {url}; expected a teacher of all classes")
    logger.info("event=teacher url=%s images_without_boxes=%d boxes=%d unknown_classes='%s'", url, without_boxes, boxes, ", ".join(unknown))


def check_sides(sides: np.ndarray, dataset: Dataset, image_px: int) -> None:
    """Refuse a training set without a box to learn, and warn of one whose boxes (N, 2) are all too small to be seen."""
    if not len(sides):
        found = f"found {dataset.boxes} boxes, all of them crowd regions" if dataset.boxes else f"found no box on {dataset.images} images"
        raise DataError(f"{dataset.url}: {found}, expected boxes of single objects to train on")
    if sides.min(axis=1).max() < MIN_SIDE_PX:
        reason = f"no box has {MIN_SIDE_PX:g} px in width and height at that size, so there is nothing to learn"
        logger.warning("event=boxes_too_small boxes=%d image_px=%d reason='%s'", len(sides), image_px, reason)


def warn_of_classes_without_boxes(dataset: Dataset) -> None:
    """Warn of classes that have no box in the training set, which the network cannot learn."""
    absent = [name for name in dataset.classes if not dataset.boxes_per_class.get(name)]
    if absent:
        reason = "no training image has a box of these classes, so that the network never finds them"
        shown = ", ".join(absent[:MAX_SHOWN_CLASSES]) + (", …" if len(absent) > MAX_SHOWN_CLASSES else "")
        logger.warning(
            "event=classes_without_boxes count=%d of=%d classes='%s' reason='%s'", *(len(absent), len(dataset.classes), shown, reason)
        )
