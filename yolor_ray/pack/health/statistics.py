"""Count classes, sizes, labels and tasks of a dataset, for the tables of a health report. I images, N objects."""

from typing import Any

import numpy as np

from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.pack.health.scan import Scan

SIZE_EDGES_PX = (0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Lower edges of the classes of box sizes, pixels of the network input."""
OBJECT_EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 101)
"""Lower edges of the classes of objects per image; COCO compares 100 detections."""
STRIDES_PX = (8, 16, 32)
"""Strides of the prediction levels that all presets have."""
MAX_SIZES = 10
"""Most image sizes that are listed one by one."""


def describe(dataset: Dataset, scan: Scan, image_px: int) -> dict[str, Any]:
    """Return the tables of a health report; sizes of boxes are square roots of areas, px after the letterbox to `image_px`."""
    sizes = np.sqrt(scan.scaled_sides(image_px).prod(axis=1))
    single = ~scan.crowd
    return {
        "classes": _classes(dataset, scan, sizes),
        "box_sizes": _binned(sizes[single], SIZE_EDGES_PX),
        "objects_per_image": _binned(np.bincount(scan.image_of_object[single], minlength=scan.images), OBJECT_EDGES),
        "image_sizes": _image_sizes(scan),
        "aspects": _aspects(scan),
        "image_labels": dict(zip(dataset.image_classes, _counts(scan.image_labels, len(dataset.image_classes)), strict=True)),
        "tasks": {task: sum(task in tasks for tasks in scan.tasks) for task in dataset.tasks},
        "individuals": len(np.unique(scan.identities[scan.identities >= 0])),
    }


def _counts(labels: np.ndarray, classes: int) -> list[int]:
    return np.bincount(labels, minlength=classes).tolist()


def _classes(dataset: Dataset, scan: Scan, sizes: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return the numbers of each class: boxes, images, crowd regions, and percentiles of the size."""
    table = {}
    for label, name in enumerate(dataset.classes):
        of_class = scan.labels == label
        single = of_class & ~scan.crowd
        low, median, high = np.quantile(sizes[single], (0.05, 0.5, 0.95)).round(1).tolist() if single.any() else (None,) * 3
        table[name] = {
            "boxes": int(single.sum()),
            "images": len(np.unique(scan.image_of_object[single])),
            "crowds": int((of_class & scan.crowd).sum()),
            "size_px": {"p5": low, "median": median, "p95": high},
        }
    return table


def _binned(values: np.ndarray, edges: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the number of values from each edge up to the next; the last class has no upper edge (None)."""
    counts = np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges)).tolist()
    return [{"from": low, "below": high, "count": count} for low, high, count in zip(edges, (*edges[1:], None), counts, strict=True)]


def _image_sizes(scan: Scan) -> list[dict[str, Any]]:
    """Return the commonest sizes of images, and the number of images of all other sizes."""
    sizes, counts = np.unique(scan.sizes_px, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    listed = [{"width": int(sizes[n][0]), "height": int(sizes[n][1]), "images": int(counts[n])} for n in order[:MAX_SIZES]]
    rest = order[MAX_SIZES:]
    return listed + ([{"width": None, "height": None, "sizes": len(rest), "images": int(counts[rest].sum())}] if len(rest) else [])


def _aspects(scan: Scan) -> dict[str, int]:
    """Return the number of images by the kind of their aspect, width over height."""
    aspects = scan.sizes_px[:, 0] / np.maximum(scan.sizes_px[:, 1], 1)
    names = ("over 3:1 tall", "tall", "square", "wide", "over 3:1 wide")
    counts = np.bincount(np.searchsorted((1 / 3, 0.95, 1.05, 3), aspects, side="right"), minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))
