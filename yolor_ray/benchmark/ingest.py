"""Compare the ingest alone, the training step alone and both together."""

import dataclasses
import functools
import logging
import statistics
import uuid
from collections.abc import Sequence
from typing import Any

from yolor_ray.benchmark.ingest_rounds import measure
from yolor_ray.config import TrainConfig
from yolor_ray.config.benchmark import IngestConfig
from yolor_ray.inference.timing import spread
from yolor_ray.io import storage
from yolor_ray.train.context import TrainContext
from yolor_ray.train.elastic.worker_group import run_in_process, run_on_workers
from yolor_ray.train.run import prepare

logger = logging.getLogger(__name__)

STILL_LR = 1e-6
"""Keeps the weights where they are, so that every round does the same work."""


def ingest(config: IngestConfig) -> dict[str, Any]:
    """Measure the ingest alone, the step alone and the whole in turns and return their rates and ratios.

    `ratio` is whole / min(ingest, step): 1 when the faster of the two costs nothing. `shared_ratio` is the whole over
    1 / (1/ingest + 1/step), what is left when both share the same cores: 1 or more means that nothing else costs time.
    Ratios are medians over rounds; spreads are (largest - smallest) / median.
    """
    run = storage.absolute(storage.join(config.train.run.storage, f"benchmark-{uuid.uuid4().hex[:8]}"))
    context = prepare(_steady(config), run)
    found = _measure(context, config)
    rounds = found["rounds"]
    for number, row in enumerate(rounds, start=1):
        logger.info("event=round number=%d %s", number, " ".join(f"{name}={value:.4g}" for name, value in row.items()))
    return {
        **_ratios(rounds),
        "images_per_s": {name: statistics.median(row[name] for row in rounds) for name in ("ingest", "step", "whole")},
        "spreads": {name: spread([row[name] for row in rounds]) for name in ("ingest", "step", "whole")},
        "first_batch_s": statistics.median(row["first_batch_s"] for row in rounds),
        "rounds": rounds,
        "settings": {**_settings(context, config.train), "steps": found["steps"], "parameters": found["parameters"]},
        "machine": found["machine"],
    }


def _steady(config: IngestConfig) -> TrainConfig:
    """Return the run in its steady state: no warm-up, whose steps cost more, and epochs enough for all rounds."""
    optim = config.train.optim
    epochs = max(optim.epochs, 2 * config.rounds + 1)
    return dataclasses.replace(config.train, optim=dataclasses.replace(optim, epochs=epochs, warmup_epochs=0.0, lr=STILL_LR))


def _ratios(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    ratios = [row["whole"] / min(row["ingest"], row["step"]) for row in rounds]
    shared = [row["whole"] * (1 / row["ingest"] + 1 / row["step"]) for row in rounds]
    return {"ratio": statistics.median(ratios), "ratio_spread": spread(ratios), "shared_ratio": statistics.median(shared)}


def _settings(context: TrainContext, train: TrainConfig) -> dict[str, Any]:
    return {
        "data": train.data.train,
        "images": context.train.images,
        "dataset_mb": round(sum(shard.bytes for shard in context.train.shards) / 1e6, 1),
        "image_px": train.data.image_px,
        "batch": train.optim.batch,
        "workers": train.cluster.worker_range[1],
        "decode_threads": train.data.decode_threads,
    }


def _measure(context: TrainContext, config: IngestConfig) -> dict[str, Any]:
    """Measure on the workers that training would run on."""
    work = functools.partial(measure, rounds=config.rounds, limit=config.steps)
    if config.train.cluster.worker_range[1] == 0:
        return run_in_process(context, work)
    try:
        return run_on_workers(context, work)
    finally:
        storage.delete(context.run)
