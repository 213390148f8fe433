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
from ray import tune

from yolor_ray import storage
from yolor_ray.config import Train
from yolor_ray.config.named import replaced
from yolor_ray.config.space import choices
from yolor_ray.config_tune import Ablation
from yolor_ray.data.shards import Dataset
from yolor_ray.errors import DataError, TrainingError
from yolor_ray.evaluate.ablation import ablation_files
from yolor_ray.evaluate.detections import DETECTIONS_FILE, from_parquet
from yolor_ray.evaluate.predictions import truth_of
from yolor_ray.evaluate.resample import draws, resampled
from yolor_ray.evaluate.study import METRICS, Cost, Failure, Study, Trial
from yolor_ray.model.weights import load_weights
from yolor_ray.runtime.cluster import as_they_finish
from yolor_ray.runtime.costs import costs_of, priors_of
from yolor_ray.runtime.study import as_trial, circumstances, claim_study, folder_name, minutes_of, typed_words, with_data
from yolor_ray.runtime.trials import Plan, run_trials, shared_source, start_cluster, trial_cluster
from yolor_ray.variants import VARIANTS

logger = logging.getLogger(__name__)

RESAMPLES = 1000
RESAMPLING_SEED = 0


@dataclass(frozen=True)
class _Planned:
    """One network to train."""

    variant: str
    setting: str
    config: Train

    @property
    def run(self) -> str:
        return storage.join(self.config.run.storage, self.config.run.name)

    @property
    def finished(self) -> bool:
        return storage.is_published(storage.join(self.run, "weights"))


def ablation(study: Ablation) -> dict[str, Any]:
    """Train what is not trained yet, write the report and return `report`, `best`, `study` and the numbers of trials.

    Raises:
        TrainingError: not a single trial of the baseline came to its end, so that nothing can be compared.
    """
    folder = claim_study("ablation", study.train, study.search)
    train, train_set, val_set = with_data(study.train)
    planned = _planned(replace(study, train=train), folder)
    start_cluster(train.cluster)
    reasons = _train(study, [one for one in planned if not one.finished], train_set)
    finished = [one for one in planned if one.finished]
    if not any(one.variant == study.compared[0] for one in finished):
        raise TrainingError(f"{folder}: no trial of the baseline was trained: {next(iter(reasons.values()), 'no reason known')}")
    failures = [_failure(one, reasons.get(one.config.run.name, "")) for one in planned if one not in finished]
    found = Study(
        variants=study.compared,
        settings=tuple(dict.fromkeys(one.setting for one in planned)),
        trials=tuple(_measured(finished, val_set)),
        failures=tuple(failures),
        costs=_costs(finished, train),
        classes=val_set.classes,
        summary=_summary(study, folder, train_set, val_set),
    )
    return _publish(folder, found)


def _planned(study: Ablation, folder: str) -> list[_Planned]:
    """Return all trials, seed by seed, so that an unfinished study has whole comparisons."""
    dimensions = choices(study.train, study.search)
    combinations = [dict(zip(dimensions, values, strict=True)) for values in itertools.product(*dimensions.values())]
    first = study.train.run.seed
    return [
        _one(study.train, folder, variant, values, seed)
        for seed in range(first, first + study.seeds)
        for values in combinations
        for variant in study.compared
    ]


def _one(train: Train, folder: str, variant: str, values: dict[str, Any], seed: int) -> _Planned:
    setting = typed_words(values)
    config = replaced(train, values)
    network = replace(config.network, implicit=VARIANTS[variant].implicit)
    run = replace(config.run, seed=seed, validate_every=config.optim.epochs)
    name = folder_name(" ".join(part for part in (variant, setting, f"seed{seed}") if part).replace(" ", "-"))
    return _Planned(variant, setting, as_trial(replace(config, network=network, run=run), folder, name))


def _train(study: Ablation, pending: Sequence[_Planned], train_set: Dataset) -> dict[str, str]:
    """Train what is left and return why trials failed, by name."""
    if not pending:
        return {}
    configs = {one.config.run.name: one.config for one in pending}
    # With data sets as a dimension, each trial reads its own.
    same = all(config.data.train == train_set.url for config in configs.values())
    source = shared_source(train_set, study.train.cluster) if same else None
    plan = Plan(lambda values: configs[values["trial"]], trial_cluster(study.train.cluster), len(configs), study.concurrent)
    outcomes = run_trials(plan, {"trial": tune.grid_search(list(configs))}, source)
    return {outcome.values["trial"]: outcome.reason for outcome in outcomes if outcome.reason}


def _failure(planned: _Planned, reason: str) -> Failure:
    return Failure(planned.variant, planned.setting, planned.config.run.seed, planned.run, reason or "it did not finish")


def _measured(finished: Sequence[_Planned], val_set: Dataset) -> list[Trial]:
    """Return the trials with their numbers over resampled validation images, computed wherever there are CPUs."""
    truth = ray.put(truth_of(val_set))
    measure: Any = ray.remote(num_cpus=1, max_retries=3)(_measure)
    tasks = [measure.remote(index, one.run, truth) for index, one in enumerate(finished)]
    numbers = dict(as_they_finish(tasks))
    return [_trial(one, numbers[index]) for index, one in enumerate(finished)]


def _measure(index: int, run: str, truth: dict[str, Any]) -> tuple[int, np.ndarray]:
    place = storage.join(run, "report", DETECTIONS_FILE)
    try:
        rows = from_parquet(storage.read_bytes(place))
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    return index, resampled(truth, rows, draws(len(truth["images"]), RESAMPLES, RESAMPLING_SEED))


def _trial(planned: _Planned, numbers: np.ndarray) -> Trial:
    network, info = load_weights(storage.join(planned.run, "weights"))
    # COCO says -1 where there is nothing to measure.
    metrics = {name: info.metrics[name] if info.metrics[name] >= 0 else float("nan") for name in METRICS}
    return Trial(
        variant=planned.variant,
        setting=planned.setting,
        seed=planned.config.run.seed,
        run=planned.run,
        metrics=metrics,
        resampled=numbers,
        priors=priors_of(network),
        minutes=minutes_of(planned.run),
    )


def _costs(finished: Sequence[_Planned], train: Train) -> dict[str, Cost]:
    """Return what each variant costs, by a trained network of the first setting, measured when all trials are over."""
    first = finished[0].setting
    weights = {one.variant: storage.join(one.run, "weights") for one in reversed(finished) if one.setting == first}
    task: Any = ray.remote(num_cpus=1, num_gpus=int(train.cluster.gpu), max_retries=3)(costs_of)
    return next(as_they_finish([task.remote(weights, train.cluster.gpu)]))


def _summary(study: Ablation, folder: str, train_set: Dataset, val_set: Dataset) -> dict[str, Any]:
    train = study.train
    return {
        "study": folder,
        "training set": f"{train_set.url}, {train_set.images} images",
        "validation set": f"{val_set.url}, {val_set.images} images",
        "epochs": train.optim.epochs,
        "input": f"{train.data.image_px} px",
        "seeds": study.seeds,
        "resamples of the validation images": RESAMPLES,
        **circumstances(),
    }


def _publish(folder: str, study: Study) -> dict[str, Any]:
    for name, data in ablation_files(study).items():
        storage.write_bytes(storage.join(folder, name), data)
    means = {name: float(np.mean([t.metrics["AP"] for t in study.trials if t.variant == name] or [-1])) for name in study.variants}
    report = storage.join(folder, "report.md")
    logger.info("event=study_done report=%s", report)
    return {
        "study": folder,
        "report": report,
        "best": max(means, key=lambda name: means[name]),
        "trials": len(study.trials),
        "failed": len(study.failures),
    }
