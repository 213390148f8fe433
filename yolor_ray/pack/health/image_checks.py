"""Check the images of a dataset: number, sizes and aspects, image labels, annotated tasks and identities. I images."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.pack.health.findings import Example, Finding, make_finding
from yolor_ray.pack.health.scan import Scan

FEW_IMAGES = 100
MAX_SIZE_RATIO = 2.0
"""Ratio between the long sides at the 95th and the 5th percentile from which sizes are mixed."""
MAX_ASPECT = 3.0
"""Ratio of long to short side from which most of the square network input is grey."""
MAX_ENLARGEMENT = 1.5
"""Ratio between image_px and the median long side from which images are enlarged in vain."""


def check_images(dataset: Dataset, scan: Scan, image_px: int) -> list[Finding]:
    """Return the findings about images."""
    return [*_size_findings(scan, image_px), *_label_findings(dataset, scan), *_task_findings(dataset, scan), *_identity_findings(scan)]


def _size_findings(scan: Scan, image_px: int) -> Iterator[Finding]:
    if scan.images < FEW_IMAGES:
        yield make_finding("few_images", scan.images, f"Few images: {scan.images}.")
    long_sides, short_sides = scan.sizes_px.max(axis=1), scan.sizes_px.min(axis=1)
    low, median, high = np.quantile(long_sides, (0.05, 0.5, 0.95))
    if high > MAX_SIZE_RATIO * low:
        message = f"Long sides are mixed: 90 % of the images have {low:.0f} to {high:.0f} px."
        yield make_finding("mixed_sizes", scan.images, message, [_sized(scan, int(n)) for n in (long_sides.argmin(), long_sides.argmax())])
    if image_px > MAX_ENLARGEMENT * median:
        message = f"The median long side is {median:.0f} px, and image_px {image_px} enlarges it {image_px / median:.1f} times."
        yield make_finding("enlarged_images", int((long_sides < image_px).sum()), message)
    aspects = long_sides / np.maximum(short_sides, 1)
    extreme = np.flatnonzero(aspects > MAX_ASPECT)
    if len(extreme):
        extreme = extreme[np.argsort(-aspects[extreme], kind="stable")]
        message = f"Images more than {MAX_ASPECT:g} times as long as short: {len(extreme)} of {scan.images}."
        yield make_finding("extreme_aspect", len(extreme), message, [_sized(scan, int(n)) for n in extreme])


def _sized(scan: Scan, number: int) -> Example:
    return Example(number, scan.names[number], "{} × {} px".format(*scan.sizes_px[number]), whole=True)


def _label_findings(dataset: Dataset, scan: Scan) -> Iterator[Finding]:
    if "classify" in dataset.tasks:
        counts = np.bincount(scan.image_labels, minlength=len(dataset.image_classes))
        missing = [name for name, count in zip(dataset.image_classes, counts, strict=True) if count == 0]
        if missing:
            yield make_finding("label_without_images", len(missing), f"Labels that no image has: {', '.join(missing)}.")


def _task_findings(dataset: Dataset, scan: Scan) -> Iterator[Finding]:
    """Yield the finding of images that are not annotated for all tasks of the dataset."""
    lacking = Counter(task for tasks in scan.tasks for task in dataset.tasks if task not in tasks)
    if lacking:
        partly = [number for number, tasks in enumerate(scan.tasks) if set(tasks) != set(dataset.tasks)]
        message = "Images that are not annotated: " + ", ".join(f"{count} for {task}" for task, count in sorted(lacking.items())) + "."
        examples = [Example(n, scan.names[n], "annotated for " + (", ".join(scan.tasks[n]) or "no task"), whole=True) for n in partly]
        yield make_finding("partly_annotated", len(partly), message, examples)


def _identity_findings(scan: Scan) -> Iterator[Finding]:
    known = scan.identities[scan.identities >= 0]
    numbers, counts = np.unique(known, return_counts=True)
    single = int((counts == 1).sum())
    if single:
        yield make_finding("single_identities", single, f"Individuals on one image alone: {single} of {len(numbers)}.")
