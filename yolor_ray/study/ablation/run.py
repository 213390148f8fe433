"""Run an ablation: train every variant of implicit knowledge over several seeds, and report the differences with error bars.

Trials of one seed differ in their implicit knowledge alone. They share the initial explicit weights, the order of the data, the
augmentation and the anchors. Each trial is measured once, after its last epoch: the best of many validations would favour noise.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from yolor_ray.cluster.capacity import wait_for_resources
from yolor_ray.cluster.connect import as_completed
from yolor_ray.config import TrainConfig
from yolor_ray.config.dotted import replace_fields
from yolor_ray.config.search_space import ablation_choices
from yolor_ray.config.study import AblationConfig
from yolor_ray.config.variants import BASELINE, VARIANTS
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.errors import DataError, TrainingError
from yolor_ray.evaluate.against.bootstrap import draw_resamples, resampled_metrics
from yolor_ray.evaluate.coco import value_or
from yolor_ray.evaluate.detections import DETECTIONS_FILE, from_parquet
from yolor_ray.evaluate.predict import MAX_DETECTIONS, read_truth
from yolor_ray.io import storage
from yolor_ray.io.weights_url import WEIGHTS_FOLDER
from yolor_ray.model.weights import load_weights
from yolor_ray.study.ablation.costs import measure_costs, read_priors
from yolor_ray.study.ablation.report import ablation_files
from yolor_ray.study.ablation.summary import best_variant
from yolor_ray.study.results import METRICS, Cost, Failure, Study, TrialResult
from yolor_ray.study.trial_log import run_url
from yolor_ray.study.trials import start_cluster
from yolor_ray.study.workspace import (
    UNFINISHED,
    check_builtin,
    check_pretrained,
    describe_training,
    folder_name,
    format_settings,
    is_finished,
    lock_study,
    provenance,
    publish_study,
    resolve_data,
    stored_search,
    study_folder,
    train_pending,
    training_minutes,
    trial_config,
)

logger = logging.getLogger(__name__)

RESAMPLES = 1000
RESAMPLING_SEED = 0
DETECTION_BYTES = 1500
"""Memory of one detection during scoring."""


@dataclass(frozen=True)
class TrialSpec:
    """One trial of an ablation."""

    variant: str
    setting: str
    """Values of the further dimensions as command-line text."""
    config: TrainConfig

    @property
    def run(self) -> str:
        """URL of the run folder."""
        return run_url(self.config)

    @property
    def finished(self) -> bool:
        """True if the trial's weights are published."""
        return is_finished(self.config)


def run_ablation(study: AblationConfig) -> dict[str, Any]:
    """Train the unfinished trials, write the report and return `report`, `best`, `study` and the numbers of trials.

    Raises:
        TrainingError: no trial of the baseline finished, so nothing can be compared.

    """
    folder = study_folder(study.train)
    specs = make_specs(study, folder)
    for pretrained in sorted({spec.config.optim.pretrained for spec in specs}):
        check_pretrained(pretrained)
        of_start = [spec.config for spec in specs if spec.config.optim.pretrained == pretrained]
        check_builtin(of_start[0].optim, {config.network for config in of_start})
    val_set = resolve_data(study.train)[2]
    lock_study("ablation", study.train, study.search)
    start_cluster(study.train.cluster)
    reasons = train_pending(study.train, [spec.config for spec in specs if not spec.finished], study.max_concurrent_trials)
    finished = [spec for spec in specs if spec.finished]
    if not any(spec.variant == BASELINE for spec in finished):
        raise TrainingError(f"{folder}: no trial of the baseline was trained: {next(iter(reasons.values()), 'no reason known')}")
    costs, machine = _measure_costs([spec for spec in finished if spec.setting == specs[0].setting], study.train)
    results = Study(
        variants=study.variants_with_baseline,
        settings=tuple(dict.fromkeys(spec.setting for spec in specs)),
        trials=tuple(_measure_trials(finished, val_set)),
        failures=tuple(
            Failure(spec.variant, spec.setting, spec.config.run.seed, spec.run, reasons.get(spec.config.run.name) or UNFINISHED)
            for spec in specs
            if spec not in finished
        ),
        costs=costs,
        classes=val_set.classes,
        summary={**_summary(study, folder), "latency on": machine},
    )
    counts = {"trials": len(results.trials), "failed": len(results.failures)}
    return publish_study(folder, ablation_files(results), {"best": best_variant(results), **counts})


def make_specs(study: AblationConfig, folder: str) -> list[TrialSpec]:
    """Return all trials, ordered by seed, so that an interrupted study has complete comparisons."""
    dimensions = ablation_choices(study.train, study.search)
    points = [dict(zip(dimensions, values, strict=True)) for values in itertools.product(*dimensions.values())]
    # The training set may be a dimension.
    configs = [resolve_data(replace_fields(study.train, values))[0] for values in points]
    folder_names = [argument.partition("=")[0] for argument in stored_search(folder, study.search)]
    first_seed = study.train.run.seed
    return [
        make_spec(config, folder, variant, values, folder_names, seed)
        for seed in range(first_seed, first_seed + study.seeds)
        for config, values in zip(configs, points, strict=True)
        for variant in study.variants_with_baseline
    ]


def make_spec(config: TrainConfig, folder: str, variant: str, values: dict[str, Any], folder_names: Sequence[str], seed: int) -> TrialSpec:
    """Return the trial of a variant and a seed; `config` has the values, which the folder names in the order of the dimensions."""
    network = replace(config.network, implicit=VARIANTS[variant].implicit)
    run = replace(config.run, seed=seed, validate_epochs=config.optim.epochs)
    typed = format_settings(dict(zip(folder_names, values.values(), strict=True)))
    name = folder_name(" ".join(filter(None, (variant, typed, f"seed{seed}"))).replace(" ", "-"))
    return TrialSpec(variant, format_settings(values), trial_config(replace(config, network=network, run=run), folder, name))


def _measure_trials(finished: Sequence[TrialSpec], val_set: Dataset) -> list[TrialResult]:
    """Return the results of finished trials, with metrics on resampled validation images; each trial is one Ray task."""
    truth = ray.put(read_truth(val_set))
    # Ray would wait without end for memory that no node has.
    wait_for_resources({"CPU": 1}, "measure the trials")
    memory = min(val_set.images * MAX_DETECTIONS * DETECTION_BYTES, max(int(node["Resources"].get("memory", 0)) for node in ray.nodes()))
    measure: Any = ray.remote(num_cpus=1, memory=memory, max_retries=3)(_measure_trial)
    results = dict(as_completed([measure.remote(index, spec, truth) for index, spec in enumerate(finished)]))
    return [results[index] for index in range(len(finished))]


def _measure_trial(index: int, spec: TrialSpec, truth: dict[str, Any]) -> tuple[int, TrialResult]:
    network, info = load_weights(storage.join(spec.run, WEIGHTS_FOLDER))
    result = TrialResult(
        variant=spec.variant,
        setting=spec.setting,
        seed=spec.config.run.seed,
        run=spec.run,
        metrics={name: value_or(info.metrics[name], float("nan")) for name in METRICS},
        resampled=_resample(spec.run, truth),
        priors=read_priors(network),
        minutes=training_minutes(spec.run),
    )
    return index, result


def _resample(run: str, truth: dict[str, Any]) -> np.ndarray:
    """Return METRICS of a run's detections on resamples of the validation images, (R, M); NaN with fewer than two images."""
    images = len(truth["images"])
    if images < 2:
        return np.full((RESAMPLES, len(METRICS)), np.nan)
    url = storage.join(run, "report", DETECTIONS_FILE)
    try:
        rows = from_parquet(storage.read_bytes(url))
    except DataError as error:
        raise DataError(f"{url}: {error}") from error
    return resampled_metrics(truth, rows, draw_resamples(images, RESAMPLES, RESAMPLING_SEED))


def _measure_costs(finished: Sequence[TrialSpec], train: TrainConfig) -> tuple[dict[str, Cost], str]:
    """Return the cost of each variant and the machine, measured after all trials; a failure leaves the report without costs."""
    weights = {spec.variant: storage.join(spec.run, WEIGHTS_FOLDER) for spec in reversed(finished)}
    if BASELINE not in weights:
        return {}, "not measured"
    wait_for_resources({"CPU": 1, "GPU": int(train.cluster.gpu)}, "measure the costs")
    task: Any = ray.remote(num_cpus=1, num_gpus=int(train.cluster.gpu))(measure_costs)
    try:
        return next(as_completed([task.remote(weights, BASELINE, train.cluster.gpu)]))
    except ray.exceptions.RayError as error:
        logger.warning("event=costs_not_measured reason='%s'", error)
        return {}, "not measured"


def _summary(study: AblationConfig, folder: str) -> dict[str, Any]:
    """Return the setup for the report, without the further dimensions, which the tables show."""
    varied = ablation_choices(study.train, study.search)
    return {
        "study": folder,
        **{label: value for name, (label, value) in describe_training(study.train).items() if name not in varied},
        "seeds": study.seeds,
        "resamples of the validation images": RESAMPLES,
        **provenance(),
    }
