"""Read the faults that packing met, and make one finding of each code, with the image of a fault where the dataset has it."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.io.storage import exists, join, read_bytes
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.health.findings import FAULT_ADVICE, Example, Finding
from yolor_ray.pack.health.scan import Scan

FAULTS_FILE = "faults.jsonl"
FRAME_CODE = "size_mismatch"
"""Fault of images whose annotations were made in another frame, so that the box of a fault has no known place on the image."""


def read_faults(dataset: Dataset) -> list[Fault]:
    """Read the list of faults in the folder of a dataset; datasets of other programs have none."""
    url = join(dataset.url, FAULTS_FILE)
    lines = read_bytes(url).decode().splitlines() if exists(url) else []
    return [Fault(**json.loads(line)) for line in lines]


def check_faults(dataset: Dataset, scan: Scan) -> list[Finding]:
    """Return one finding for each code of fault that packing met; duplicate images have a finding of their own."""
    faults = defaultdict(list)
    for fault in read_faults(dataset):
        faults[fault.code].append(fault)
    counts = {code: count for code, count in dataset.faults.items() if code != "duplicate_image"}
    records = _records(scan)
    other_frame = {_subject(fault) for fault in faults[FRAME_CODE]}
    findings = []
    for code, count in sorted(counts.items(), key=lambda item: -item[1]):
        examples = tuple(_example(fault, scan, records, other_frame) for fault in faults[code])
        message = f"Faults of this kind that packing met: {count}."
        findings.append(Finding(code, "warning", count, message, FAULT_ADVICE, examples))
    return findings


def _subject(fault: Fault) -> str:
    """Return the beginning of a fault's message, which names the image that the fault is about: `image 'a.jpg'`."""
    return fault.message.partition(": ")[0]


def _records(scan: Scan) -> Mapping[str, int]:
    """Return the number of each record by its name, by the subject of a fault, and by its stem where only one record has that stem."""
    by_stem: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(scan.names):
        by_stem[PurePosixPath(name).stem].append(number)
    stems = {stem: numbers[0] for stem, numbers in by_stem.items() if len(numbers) == 1}
    return stems | {key: number for number, name in enumerate(scan.names) for key in (name, f"image {name!r}")}


def _example(fault: Fault, scan: Scan, records: Mapping[str, int], other_frame: Collection[str]) -> Example:
    # Annotation files of one image are called like the image.
    keys = fault.image, _subject(fault), PurePosixPath(fault.file).stem
    record = next((records[key] for key in keys if key in records), -1)
    is_placed = record >= 0 and _subject(fault) not in other_frame
    boxes = _boxes(fault.box, scan.sizes_px[record].tolist()) if is_placed else ()
    # A box without area on the image is a mark, which needs the whole image around it.
    has_area = any(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in boxes)
    return Example(record, fault.location, fault.message, boxes, whole=not has_area)


def _boxes(box: Sequence[Any] | None, size_px: Sequence[int]) -> tuple[tuple[float, float, float, float], ...]:
    """Return the box of a fault in pixels, clipped to the image."""
    if not box or not any(box):
        return ()
    factors = np.tile(size_px, 2) if all(-1 <= side <= 2 for side in box) else 1
    x1, y1, x2, y2 = np.clip(np.array(box) * factors, 0, np.tile(size_px, 2)).tolist()
    return ((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)),)
