"""Check for images that a dataset has twice or shares with other datasets: the very same bytes, or images that look alike."""

from collections.abc import Iterator, Sequence

import numpy as np

from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.pack.health.findings import Example, Finding, make_finding
from yolor_ray.pack.health.scan import Scan
from yolor_ray.pack.health.similar import similar_between, similar_within

Match = tuple[int, int, int, float]
"""Image, dataset and image of its counterpart, correlation of both; see `Example` for the numbers."""


def check_duplicates(scan: Scan) -> list[Finding]:
    """Return the findings of images that a dataset has more than once."""
    first: dict[bytes, int] = {}
    copies = [(number, first.setdefault(digest, number)) for number, digest in enumerate(scan.digests)]
    exact = [(number, 0, earlier, 1.0) for number, earlier in copies if earlier != number]
    copied = {number for number, *_ in exact}
    pairs = [pair for pair in similar_within(scan.fingerprints) if pair.query not in copied]
    near = [(pair.query, 0, pair.reference, pair.correlation) for pair in pairs]
    return [
        *_found(scan, (scan,), "duplicate_image", exact, "with the very same bytes as another image of the dataset"),
        *_found(scan, (scan,), "near_duplicate", near, "that look almost like another image of the dataset"),
    ]


def check_leaks(dataset: Dataset, scan: Scan, others: Sequence[tuple[Dataset, Scan]]) -> list[Finding]:
    """Return the findings of images that are in other datasets, too, and of classes that differ there."""
    scans = (scan, *(other_scan for _, other_scan in others))
    exact: list[Match] = []
    near: list[Match] = []
    for member, (_, other_scan) in enumerate(others, start=1):
        numbers = {digest: number for number, digest in enumerate(other_scan.digests)}
        leaked = [(number, member, numbers[digest], 1.0) for number, digest in enumerate(scan.digests) if digest in numbers]
        leaked_numbers = {number for number, *_ in leaked}
        pairs = [pair for pair in similar_between(scan.fingerprints, other_scan.fingerprints) if pair.query not in leaked_numbers]
        near += [(pair.query, member, pair.reference, pair.correlation) for pair in pairs]
        exact += leaked
    return [
        *_found(scan, scans, "leak", exact, "that are in another set, too, byte for byte"),
        *_found(scan, scans, "near_leak", near, "that look almost like an image of another set"),
        *_class_differences(dataset, [other for other, _ in others]),
    ]


def _found(scan: Scan, scans: Sequence[Scan], code: str, matches: Sequence[Match], kind: str) -> Iterator[Finding]:
    if matches:
        count = len({number for number, *_ in matches})
        ordered = sorted(matches, key=lambda match: (-match[3], match[0]))
        examples = [_pair(scan, scans, match) for match in ordered]
        yield make_finding(code, count, f"Images {kind}: {count} of {scan.images}.", examples)


def _pair(scan: Scan, scans: Sequence[Scan], match: Match) -> Example:
    number, member, other, correlation = match
    counts = scan.object_counts[number], scans[member].object_counts[other]
    text = "same bytes" if scan.digests[number] == scans[member].digests[other] else f"correlation {min(correlation, 0.9999):.4f}"
    if counts[0] != counts[1]:
        text += f", but annotated with {counts[0]} and {counts[1]} objects"
    return Example(number, scan.names[number], text, (), True, member, other, scans[member].names[other])


def _class_differences(dataset: Dataset, others: Sequence[Dataset]) -> Iterator[Finding]:
    different = [other for other in others if other.classes != dataset.classes]
    if different:
        texts = [f"{other.url} has {_difference(dataset.classes, other.classes)}" for other in different]
        yield make_finding("classes_differ", len(different), f"The lists of classes differ: {'; '.join(texts)}.")


def _difference(classes: Sequence[str], others: Sequence[str]) -> str:
    added, lacking = np.setdiff1d(others, classes).tolist(), np.setdiff1d(classes, others).tolist()
    texts = [f"{', '.join(names[:12])} {word}" for names, word in ((added, "more"), (lacking, "less")) if names]
    return " and ".join(texts) or "the same classes in another order"
