"""Make the files of a health report, health.json and health.html, from the measurements of a dataset."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolor_ray import __version__
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.io.storage import exists, join, read_bytes
from yolor_ray.pack.health.duplicate_checks import check_duplicates, check_leaks
from yolor_ray.pack.health.fault_checks import check_faults
from yolor_ray.pack.health.findings import SEVERITIES, Finding, by_severity, finding_json
from yolor_ray.pack.health.gallery import draw_all, example_pictures, label_pictures
from yolor_ray.pack.health.image_checks import check_images
from yolor_ray.pack.health.object_checks import check_objects
from yolor_ray.pack.health.pictures import Picture
from yolor_ray.pack.health.scan import Scan
from yolor_ray.pack.health.statistics import STRIDES_PX, describe
from yolor_ray.report.colours import colour
from yolor_ray.report.html import data_uri, render_page

FORMAT = "yolor_ray.health"
VERSION = 1
PAGE, DATA = "health.html", "health.json"
SHOWN_EXAMPLES = 6
"""Examples of a finding on the page."""


@dataclass(frozen=True)
class HealthReport:
    """Findings and tables of a dataset."""

    datasets: tuple[Dataset, ...]
    """The checked dataset, and then those that it was compared with."""
    image_px: int
    """Side of the network input, pixels."""
    findings: tuple[Finding, ...]
    tables: Mapping[str, Any]
    label_pictures: Mapping[str, Mapping[str, Sequence[Picture]]]
    """Pictures of labels by section, then by class, label or individual."""

    @property
    def counts(self) -> dict[str, int]:
        """Return the count of each finding by code, sorted by severity."""
        return {finding.code: finding.count for finding in self.findings}

    @property
    def severities(self) -> dict[str, int]:
        """Return the number of findings by severity."""
        counts = Counter(finding.severity for finding in self.findings)
        return {severity: counts[severity] for severity in SEVERITIES}


def make_report(dataset: Dataset, scan: Scan, others: Sequence[tuple[Dataset, Scan]], image_px: int) -> HealthReport:
    """Check a dataset, alone and against others."""
    findings = [
        *check_leaks(dataset, scan, others),
        *check_faults(dataset, scan),
        *check_objects(dataset, scan, image_px),
        *check_duplicates(scan),
        *check_images(dataset, scan, image_px),
    ]
    datasets = (dataset, *(other for other, _ in others))
    return HealthReport(datasets, image_px, tuple(by_severity(findings)), describe(dataset, scan, image_px), label_pictures(dataset, scan))


def is_current(dataset: Dataset, others: Sequence[Dataset]) -> bool:
    """Return True if the folder of a dataset has page and JSON of its content, compared with the others or with more."""
    url = join(dataset.url, DATA)
    if not (exists(url) and exists(join(dataset.url, PAGE))):
        return False
    try:
        report = json.loads(read_bytes(url))
    except ValueError:
        # A file that is no JSON is no report, and is written anew.
        return False
    compared = {other["digest"] for other in report.get("against", ())}
    return report.get("digest") == dataset.digest and compared >= {other.digest for other in others}


def report_files(report: HealthReport) -> dict[str, bytes]:
    """Return the page and the JSON, in the order in which to write them."""
    return {PAGE: _page(report), DATA: json.dumps(_json(report), indent=1, ensure_ascii=False).encode()}


def _json(report: HealthReport) -> dict[str, Any]:
    dataset, *others = report.datasets
    urls = [item.url for item in report.datasets]
    return {
        "format": FORMAT,
        "version": VERSION,
        **{name: getattr(dataset, name) for name in ("url", "digest", "images", "boxes", "crowds")},
        "against": [{"url": other.url, "digest": other.digest} for other in others],
        "image_px": report.image_px,
        "findings": [finding_json(finding, urls) for finding in report.findings],
        **report.tables,
    }


def _page(report: HealthReport) -> bytes:
    shown = {finding.code: [(example, example_pictures(example)) for example in _shown(finding)] for finding in report.findings}
    in_findings = [picture for examples in shown.values() for _, pictures in examples for picture in pictures]
    in_sections = [picture for rows in report.label_pictures.values() for pictures in rows.values() for picture in pictures]
    drawn = draw_all(report.datasets, [*in_findings, *in_sections])
    uris = {picture: data_uri(jpeg) for picture, jpeg in drawn.items()}
    content = {
        "report": report,
        "dataset": report.datasets[0],
        "examples": shown,
        "uris": uris,
        "strides": STRIDES_PX,
        "colour": colour,
        "version": __version__,
        **report.tables,
    }
    return render_page("pack/health/health.html", content)


def _shown(finding: Finding) -> Sequence[Any]:
    """Return the examples for the page: those with a picture first."""
    return sorted(finding.examples, key=lambda example: example.record < 0)[:SHOWN_EXAMPLES]
