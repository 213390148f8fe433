"""Run an ablation: every form of implicit knowledge, trained alike over several seeds, and a report with error bars.

Trials of one seed share everything but their implicit knowledge: the initial explicit weights, the order of the data, its
augmentation and the anchors. Each is measured once, after its last epoch: the best of many validations would favour noise.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from yolor_ray.cluster.connect import as_they_finish
from yolor_ray.config import TrainConfig
from yolor_ray.config.dotted import replace_fields
from yolor_ray.config.search_space import ablation_choices
from yolor_ray.config.study import AblationConfig
from yolor_ray.config.variants import BASELINE, VARIANTS
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.errors import DataError, TrainingError
from yolor_ray.evaluate.detections import DETECTIONS_FILE, from_parquet
from yolor_ray.evaluate.predict import MAX_DETECTIONS, truth_of
from yolor_ray.io import storage
from yolor_ray.model.weights import load_weights
from yolor_ray.study.ablation.costs import costs_of, priors_of
from yolor_ray.study.ablation.report import ablation_files, best
from yolor_ray.study.bootstrap import draws, resampled
from yolor_ray.study.results import METRICS, Cost, Failure, Study, TrialResult
from yolor_ray.study.trials import start_cluster
from yolor_ray.study.workspace import (
    as_trial,
    check_start,
    done_on,
    folder_name,
    folder_of,
    is_finished,
    lock_study,
    minutes_of,
    provenance,
    publish_study,
    run_of,
    train_pending,
    typed_words,
    with_data,
)

logger = logging.getLogger(__name__)

RESAMPLES = 1000
RESAMPLING_SEED = 0
DETECTION_BYTES = 1500
"""Memory of one detection while it is scored."""


@dataclass(frozen=True)
class TrialSpec:
    """One network to train."""

    variant: str
    setting: str
    config: TrainConfig

    @property
    def run(self) -> str:
        return run_of(self.config)

    @property
    def finished(self) -> bool:
        return is_finished(self.config)


def ablation(study: AblationConfig) -> dict[str, Any]:
    """Train what is not trained yet, write the report and return `report`, `best`, `study` and the numbers of trials.

    Raises:
        TrainingError: not a single trial of the baseline came to its end, so that nothing can be compared.
    """
    folder = folder_of(study.train)
    planned = make_specs(study, folder)
    for pretrained in sorted({one.config.optim.pretrained for one in planned}):
        check_start(pretrained)
    val_set = with_data(study.train)[2]
    lock_study("ablation", study.train, study.search)
    start_cluster(study.train.cluster)
    reasons = train_pending(study.train, [one.config for one in planned if not one.finished], study.max_concurrent_trials)
    finished = [one for one in planned if one.finished]
    if not any(one.variant == BASELINE for one in finished):
        raise TrainingError(f"{folder}: no trial of the baseline was trained: {next(iter(reasons.values()), 'no reason known')}")
    costs, place = _costs([one for one in finished if one.setting == planned[0].setting], study.train)
    found = Study(
        variants=study.compared,
        settings=tuple(dict.fromkeys(one.setting for one in planned)),
        trials=tuple(_measured(finished, val_set)),
        failures=tuple(_failure(one, reasons.get(one.config.run.name, "")) for one in planned if one not in finished),
        costs=costs,
        classes=val_set.classes,
        summary={**_summary(study, folder), "latency on": place},
    )
    result = {"best": best(found), "trials": len(found.trials), "failed": len(found.failures)}
    return publish_study(folder, ablation_files(found), result)


def make_specs(study: AblationConfig, folder: str) -> list[TrialSpec]:
    """Return all trials, seed by seed, so that an unfinished study has whole comparisons."""
    dimensions = ablation_choices(study.train, study.search)
    combinations = [dict(zip(dimensions, values, strict=True)) for values in itertools.product(*dimensions.values())]
    first = study.train.run.seed
    return [
        make_spec(study.train, folder, variant, values, seed)
        for seed in range(first, first + study.seeds)
        for values in combinations
        for variant in study.compared
    ]


def make_spec(train: TrainConfig, folder: str, variant: str, values: dict[str, Any], seed: int) -> TrialSpec:
    setting = typed_words(values)
    config, _, _ = with_data(replace_fields(train, values))
    network = replace(config.network, implicit=VARIANTS[variant].implicit)
    run = replace(config.run, seed=seed, validate_epochs=config.optim.epochs)
    name = folder_name(" ".join(part for part in (variant, setting, f"seed{seed}") if part).replace(" ", "-"))
    return TrialSpec(variant, setting, as_trial(replace(config, network=network, run=run), folder, name))


def _failure(planned: TrialSpec, reason: str) -> Failure:
    return Failure(planned.variant, planned.setting, planned.config.run.seed, planned.run, reason or "it did not finish")


def _measured(finished: Sequence[TrialSpec], val_set: Dataset) -> list[TrialResult]:
    """Return the trials with their numbers over resampled validation images, computed wherever there is room."""
    truth = ray.put(truth_of(val_set))
    # What no node had, Ray would wait for without end.
    memory = min(val_set.images * MAX_DETECTIONS * DETECTION_BYTES, max(int(node["Resources"].get("memory", 0)) for node in ray.nodes()))
    measure: Any = ray.remote(num_cpus=1, memory=memory, max_retries=3)(_measure)
    numbers = dict(as_they_finish([measure.remote(index, one, truth) for index, one in enumerate(finished)]))
    return [numbers[index] for index in range(len(finished))]


def _measure(index: int, planned: TrialSpec, truth: dict[str, Any]) -> tuple[int, TrialResult]:
    network, info = load_weights(storage.join(planned.run, "weights"))
    trial = TrialResult(
        variant=planned.variant,
        setting=planned.setting,
        seed=planned.config.run.seed,
        run=planned.run,
        # COCO says -1 where there is nothing to measure.
        metrics={name: info.metrics[name] if info.metrics[name] >= 0 else float("nan") for name in METRICS},
        resampled=_resampled(planned.run, truth),
        priors=priors_of(network),
        minutes=minutes_of(planned.run),
    )
    return index, trial


def _resampled(run: str, truth: dict[str, Any]) -> np.ndarray:
    images = len(truth["images"])
    if images < 2:
        # One image says nothing about the chance of having chosen it.
        return np.full((RESAMPLES, len(METRICS)), np.nan)
    place = storage.join(run, "report", DETECTIONS_FILE)
    try:
        rows = from_parquet(storage.read_bytes(place))
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    return resampled(truth, rows, draws(images, RESAMPLES, RESAMPLING_SEED))


def _costs(finished: Sequence[TrialSpec], train: TrainConfig) -> tuple[dict[str, Cost], str]:
    """Return what each variant costs and on which machine, measured when all trials are over; a report must not fail for it."""
    weights = {one.variant: storage.join(one.run, "weights") for one in reversed(finished)}
    if BASELINE not in weights:
        return {}, "not measured"
    task: Any = ray.remote(num_cpus=1, num_gpus=int(train.cluster.gpu))(costs_of)
    try:
        return next(as_they_finish([task.remote(weights, BASELINE, train.cluster.gpu)]))
    except ray.exceptions.RayError as error:
        logger.warning("event=costs_unknown reason='%s'", error)
        return {}, "not measured"


def _summary(study: AblationConfig, folder: str) -> dict[str, Any]:
    """Return what was done; what a further dimension says is told with its tables."""
    varied = ablation_choices(study.train, study.search)
    return {
        "study": folder,
        **{what: value for name, (what, value) in done_on(study.train).items() if name not in varied},
        "seeds": study.seeds,
        "resamples of the validation images": RESAMPLES,
        **provenance(),
    }
