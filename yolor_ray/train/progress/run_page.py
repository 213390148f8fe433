"""Make the page of a run: the page of its best evaluation, with the facts and the curves of the training."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from yolor_ray import __version__
from yolor_ray.config import TrainConfig
from yolor_ray.config.dotted import flatten
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.evaluate.detections import DETECTIONS_FILE
from yolor_ray.evaluate.page.embedding_map import EMBEDDINGS_FILE
from yolor_ray.evaluate.page.page import PAGE_FILE, Subject, report_page
from yolor_ray.io import manifest, storage
from yolor_ray.report.provenance import machine
from yolor_ray.train.checkpoint.attempts import read_attempts
from yolor_ray.train.context import TrainContext
from yolor_ray.train.run_log import read_metrics

REPORT_FOLDER = "report"
NAMED_ELSEWHERE = ("run.storage", "run.name", "data.train", "data.val")
"""Settings that the page shows in other rows."""


def publish_run_page(context: TrainContext) -> None:
    """Add the page to the report of a run that has trained all its epochs."""
    folder = storage.join(context.run, REPORT_FOLDER)
    entries = manifest.read_manifest(folder)
    names = ["metrics.json", DETECTIONS_FILE, *({EMBEDDINGS_FILE} & entries.keys())]
    files = manifest.read_published(folder, names)
    rows = read_metrics(context.run)
    page = report_page(context.val, files, Subject(f"Run {context.config.run.name}", _facts(context, rows), rows))
    written = {name: entry for name, entry in entries.items() if name != PAGE_FILE}
    manifest.publish_with(folder, written, {PAGE_FILE: page})


def _facts(context: TrainContext, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    used = machine()
    measured = [row for row in rows if "AP" in row]
    best = max(measured, key=lambda row: row["AP"], default=None)
    seconds = sum(row.get("seconds", 0) for row in rows)
    attempts = len(read_attempts(context.run))
    return {
        "Training set": _describe(context.train),
        "Validation set": _describe(context.val),
        "Settings": " ".join(_changed_settings(context.config)) or "defaults",
        "Epochs": f"{len(rows)} of {context.config.optim.epochs}" + (f", highest AP in epoch {best['epoch']}" if best else ""),
        "Time of training": f"{timedelta(seconds=round(seconds))}, {attempts} {'attempt' if attempts == 1 else 'attempts'}",
        "Machine": f"{used['gpu'] or used['cpu']}, {used['cores']} cores",
        "Software": f"yolor_ray {__version__}, torch {used['torch']}, ray {used['ray']}, Python {used['python']}",
    }


def _describe(dataset: Dataset) -> str:
    return f"{dataset.url}: {dataset.images} images, {dataset.boxes} boxes, content {dataset.digest[:12]}"


def _changed_settings(config: TrainConfig) -> list[str]:
    """Return the settings that are not the defaults, as flags."""
    defaults = flatten(asdict(TrainConfig()))
    changed = {name: value for name, value in flatten(asdict(config)).items() if value != defaults[name] and name not in NAMED_ELSEWHERE}
    return [f"--{name} {' '.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in changed.items()]
