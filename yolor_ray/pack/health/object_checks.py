"""Check the objects of a dataset: their classes, sizes and shapes, and boxes that contradict each other. N objects."""

from collections.abc import Iterator, Sequence

import numpy as np

from yolor_ray.data.coco_rules import MAX_DETECTIONS
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.pack.health.findings import MAX_EXAMPLES, Example, Finding, make_finding
from yolor_ray.pack.health.scan import Scan

MIN_LEARNED_PX = 2.0
"""Training leaves out boxes that are not longer on both sides; MIN_SIDE_PX of augmentation."""
TINY_PX = 8.0
"""Stride of the finest prediction level: a smaller object is less than one cell."""
FEW_BOXES = 20
"""Boxes of a class below which a class is reported as rare, and its sizes are not judged."""
MAX_IMBALANCE = 20
"""Ratio of boxes between the commonest and the rarest class from which imbalance is reported."""
MAX_ROBUST_Z = 4.0
"""Distance from the median of a class, in robust standard deviations of the logarithm, from which a size or shape is unusual."""
MIN_SPREAD = 0.15
"""Least robust standard deviation of a logarithm: objects of a class that are all alike may still differ by a sixth."""
MIN_FACTOR = 2.5
"""Least ratio to the median of the class of an unusual size or shape."""

UNUSUAL = {
    "unusual_size": ("far larger or smaller than is usual", "larger", "smaller"),
    "unusual_shape": ("far wider or narrower than is usual", "wider for its height", "narrower for its height"),
}
"""Words for unusual sizes and shapes, and for values above and below the median."""


def check_objects(dataset: Dataset, scan: Scan, image_px: int) -> list[Finding]:
    """Return the findings about objects; crowd regions count only where a finding names them."""
    return [*_class_findings(dataset, scan), *_size_findings(dataset, scan, image_px), *_pair_findings(dataset, scan), *_limits(scan)]


def object_example(scan: Scan, number: int, text: str) -> Example:
    """Make an example of one object of the N."""
    return objects_example(scan, (number,), text)


def objects_example(scan: Scan, numbers: Sequence[int], text: str) -> Example:
    """Make an example of several objects of one image."""
    record = int(np.searchsorted(np.cumsum(scan.object_counts), numbers[0], side="right"))
    boxes = tuple(tuple(scan.boxes_xyxy[number].tolist()) for number in numbers)
    return Example(record, scan.names[record], text, boxes)


def _class_findings(dataset: Dataset, scan: Scan) -> Iterator[Finding]:
    if len(scan.labels) == 0:
        if "detect" in dataset.tasks:
            yield make_finding("only_background", scan.images, f"Images with an object: none of {scan.images}.")
        return
    if scan.crowd.all():
        yield make_finding("only_crowds", len(scan.crowd), f"Boxes that are no crowd regions: none of {len(scan.crowd)}.")
        return
    counts = np.bincount(scan.labels[~scan.crowd], minlength=len(dataset.classes))
    if missing := [name for name, count in zip(dataset.classes, counts, strict=True) if count == 0]:
        yield make_finding("class_without_boxes", len(missing), f"Classes without a box: {_listed(missing)}.")
    if few := [f"{name} ({count})" for name, count in zip(dataset.classes, counts, strict=True) if 0 < count < FEW_BOXES]:
        yield make_finding("few_boxes", len(few), f"Classes with fewer than {FEW_BOXES} boxes: {_listed(few)}.")
    present = np.flatnonzero(counts)
    most, least = present[counts[present].argmax()], present[counts[present].argmin()]
    if counts[most] >= MAX_IMBALANCE * counts[least]:
        ratio = f"{counts[most] / counts[least]:.0f} boxes of {dataset.classes[most]} for each of {dataset.classes[least]}"
        yield make_finding("class_imbalance", len(present), f"The classes are uneven: {ratio}.")


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _size_findings(dataset: Dataset, scan: Scan, image_px: int) -> Iterator[Finding]:
    sides = scan.scaled_sides(image_px)
    single = np.flatnonzero(~scan.crowd)
    if len(single) == 0:
        return
    shorter, size = sides.min(axis=1), np.sqrt(sides.prod(axis=1))
    too_small = single[shorter[single] <= MIN_LEARNED_PX]
    if len(too_small):
        where = f"at image_px {image_px}"
        message = f"Boxes with a side of {MIN_LEARNED_PX:g} px or less {where}: {_share(len(too_small), len(single))}."
        yield make_finding("too_small_boxes", len(too_small), message, [_sized(scan, sides, number) for number in too_small[:MAX_EXAMPLES]])
    tiny = single[(size[single] < TINY_PX) & (shorter[single] > MIN_LEARNED_PX)]
    if len(tiny):
        larger = image_px * TINY_PX / max(float(np.quantile(size[single], 0.02)), 1e-6)
        hint = f" At image_px {_rounded(larger)}, 98 % of all boxes are larger." if larger > image_px else ""
        cell = f"one cell of the finest level, {TINY_PX:g} px, at image_px {image_px}"
        message = f"Boxes smaller than {cell}: {_share(len(tiny), len(single))}.{hint}"
        yield make_finding("tiny_boxes", len(tiny), message, [_sized(scan, sides, number) for number in tiny[:MAX_EXAMPLES]])
    yield from _unusual(dataset, scan, np.log(size), "unusual_size")
    yield from _unusual(dataset, scan, np.log(sides[:, 0] / sides[:, 1]), "unusual_shape")


def _rounded(image_px: float) -> int:
    return int(-(-image_px // 32) * 32)


def _share(count: int, of: int) -> str:
    return f"{count} of {of} ({100 * count / of:.2g} %)"


def _sized(scan: Scan, sides: np.ndarray, number: int) -> Example:
    return object_example(scan, int(number), "{:.1f} × {:.1f} px".format(*sides[number]))


def _unusual(dataset: Dataset, scan: Scan, values: np.ndarray, code: str) -> Iterator[Finding]:
    """Yield a finding of the objects whose logarithmic size or shape (N,) lies far from the median of their class."""
    distances, factors = np.zeros(len(values)), np.zeros(len(values))
    # Boxes that the border cuts are small and narrow for a good reason.
    judged = ~scan.crowd & ~_touches_border(scan)
    for label in range(len(dataset.classes)):
        members = np.flatnonzero(judged & (scan.labels == label))
        if len(members) >= FEW_BOXES:
            factors[members] = values[members] - np.median(values[members])
            spread = max(1.4826 * float(np.median(np.abs(factors[members]))), MIN_SPREAD)
            distances[members] = np.abs(factors[members]) / spread
    numbers = np.flatnonzero((distances > MAX_ROBUST_Z) & (np.abs(factors) > np.log(MIN_FACTOR)))
    if len(numbers):
        numbers = numbers[np.argsort(-distances[numbers], kind="stable")]
        kind, *words = UNUSUAL[code]
        shown = numbers[:MAX_EXAMPLES]
        examples = [object_example(scan, int(n), _compared(dataset.classes[scan.labels[n]], factors[n], words)) for n in shown]
        yield make_finding(code, len(numbers), f"Boxes {kind} for their class: {_share(len(numbers), len(values))}.", examples)


def _compared(name: str, factor: float, words: Sequence[str]) -> str:
    return f"{name}, {np.exp(abs(factor)):.1f} times {words[int(factor < 0)]} than the median"


def _touches_border(scan: Scan, margin_px: float = 1.0) -> np.ndarray:
    """Return (N,) bool: the box ends at the border of its image."""
    ends = scan.sizes_px[scan.image_of_object]
    return (scan.boxes_xyxy[:, :2] <= margin_px).any(axis=1) | (scan.boxes_xyxy[:, 2:] >= ends - margin_px).any(axis=1)


def _pair_findings(dataset: Dataset, scan: Scan) -> Iterator[Finding]:
    """Yield the findings about two boxes of one object: of one class, and of different classes."""
    first, second = scan.same_objects[:, 0], scan.same_objects[:, 1]
    same_class = scan.labels[first] == scan.labels[second]
    different = (scan.identities[first] != scan.identities[second]) & (scan.identities[first] >= 0) & (scan.identities[second] >= 0)
    words = {"annotated_twice": (same_class & ~different, "of the same class"), "class_conflict": (~same_class, "of different classes")}
    for code, (chosen, kind) in words.items():
        pairs = scan.same_objects[chosen].tolist()
        if pairs:
            shown = pairs[:MAX_EXAMPLES]
            texts = [" and ".join(dict.fromkeys(dataset.classes[scan.labels[number]] for number in pair)) for pair in shown]
            examples = [objects_example(scan, pair, text) for pair, text in zip(shown, texts, strict=True)]
            yield make_finding(code, len(pairs), f"Pairs of boxes {kind} that overlap by more than 90 %: {len(pairs)}.", examples)


def _limits(scan: Scan) -> Iterator[Finding]:
    """Yield the finding of images with more objects of a class than COCO compares detections."""
    over = [number for number, tasks in enumerate(scan.exceeded) if tasks]
    if over:
        tasks = sorted({task for number in over for task in scan.exceeded[number]})
        limits = ", ".join(f"{MAX_DETECTIONS[task]} for {task}" for task in tasks)
        message = f"Images with more objects of one class than COCO compares detections ({limits}): {len(over)} of {scan.images}."
        over.sort(key=lambda number: -int(scan.object_counts[number]))
        counted = [Example(n, scan.names[n], f"{scan.object_counts[n]} objects", whole=True) for n in over]
        yield make_finding("detection_limit", len(over), message, counted)
