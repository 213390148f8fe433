"""Run a hyper-parameter search: Optuna proposes settings, Ray Tune trains them and stops weak trials, and the best become a preset file.

Run folders are named by their settings. A resumed search proposes its earlier trials first: finished trials report at once, and others
continue from their checkpoints. Optuna and the scheduler thus learn the earlier results again.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from yolor_ray.cluster.block_source import cluster_source
from yolor_ray.config import NetworkConfig, TrainConfig
from yolor_ray.config.dotted import flatten, from_json, replace_fields
from yolor_ray.config.search_space import Choice, Range, search_space, start_values
from yolor_ray.config.study import SearchConfig
from yolor_ray.errors import TrainingError
from yolor_ray.evaluate.coco import NO_VALUE, value_or
from yolor_ray.io import manifest, storage
from yolor_ray.io.weights_url import WEIGHTS_FOLDER
from yolor_ray.model.weights import load_weights
from yolor_ray.study.search.report import PRESET_FILE, search_files
from yolor_ray.study.search.results import SearchTrialResult, best_trial
from yolor_ray.study.search.unique_searcher import UniqueSearcher
from yolor_ray.study.trial_log import TrialOutcome, run_url
from yolor_ray.study.trials import TrialPlan, Values, run_trials, start_cluster
from yolor_ray.study.workspace import (
    TRIALS_FOLDER,
    check_builtin,
    format_settings,
    is_finished,
    lock_study,
    provenance,
    publish_study,
    resolve_data,
    study_folder,
    training_minutes,
    trial_config,
)
from yolor_ray.train.run_log import read_metrics
from yolor_ray.train.settings_lock import RUN_FILE
from yolor_ray.train.warm_start import resolve_pretrained

logger = logging.getLogger(__name__)

ASHA_REDUCTION = 3
"""ASHA lets one trial in three continue at each of its rungs."""
VALIDATIONS = 9
"""Evenly spaced validations of a trial; ASHA's rungs are the first and the third."""
SIGNIFICANT_DIGITS = 3
"""Digits of a proposed number: more digits would only be hard to read."""


def run_search(study: SearchConfig) -> dict[str, Any]:
    """Train `trials` proposals and return `report`, `best` (a preset file), `study`, the best `AP` and the numbers of trials.

    Raises:
        TrainingError: no trial has a measured AP.

    """
    folder = study_folder(study.train)
    train, train_set, val_set = resolve_data(study.train)
    dimensions = search_space(train, study.search)
    check_builtin(train.optim, _networks(train, dimensions))
    lock_study("search", study.train, study.search)
    earlier = _earlier_trials(folder, dimensions)
    # The preset's own settings come first: the search must improve on them.
    start = start_values(train, dimensions)
    first = [start, *(values for values in earlier.values() if values != start)]
    start_cluster(train.cluster)
    config_of = _make_config_of(train, folder, dimensions, earlier)
    plan = TrialPlan(config_of, train.cluster, max(study.trials, len(first)), study.max_concurrent_trials)
    outcomes = run_trials(
        plan,
        {name: _tune_domain(dimension) for name, dimension in dimensions.items()},
        cluster_source(train_set),
        samples=plan.count,
        scheduler=_scheduler(study),
        searcher=UniqueSearcher(
            # The earlier proposals are given, so Optuna needs a new seed to draw different ones.
            OptunaSearch(metric="AP", mode="max", points_to_evaluate=first, seed=train.run.seed + len(earlier)),
            lambda values: config_of(values).run.name,
        ),
    )
    summary = {
        "study": folder,
        "training set": f"{train_set.url}, {train_set.images} images",
        "validation set": f"{val_set.url}, {val_set.images} images",
        "epochs": train.optim.epochs,
        "pretrained weights": resolve_pretrained(train.optim, train.network) or "none",
        "scheduler": study.scheduler,
        **provenance(),
    }
    return _publish(folder, study.train, [_trial_result(outcome, plan) for outcome in outcomes], dimensions, summary)


def _networks(train: TrainConfig, dimensions: Mapping[str, Choice | Range]) -> set[NetworkConfig]:
    """Return the networks of a search that differ from its first one in at most one dimension."""
    first = replace_fields(train, start_values(train, dimensions))
    varied = {name: item.values if isinstance(item, Choice) else (item.low, item.high) for name, item in dimensions.items()}
    return {replace_fields(first, {name: value}).network for name, values in varied.items() for value in values}


def _earlier_trials(folder: str, dimensions: Mapping[str, Choice | Range]) -> dict[str, dict[str, Any]]:
    """Return the settings of the trials that earlier jobs of this study started, by folder name; finished trials come first.

    A scheduler then knows the finished trials before it judges the unfinished ones.
    """
    trials = storage.join(folder, TRIALS_FOLDER)
    finished_first = sorted(
        storage.list_names(trials), key=lambda name: not manifest.is_published(storage.join(trials, name, WEIGHTS_FOLDER))
    )
    files = {name: storage.join(trials, name, RUN_FILE) for name in finished_first}
    configs = {name: from_json(url, storage.read_bytes(url)) for name, url in files.items() if storage.exists(url)}
    settings = {name: flatten(dataclasses.asdict(config)) for name, config in configs.items()}
    return {name: {setting: values[setting] for setting in dimensions} for name, values in settings.items()}


def _make_config_of(
    train: TrainConfig, folder: str, dimensions: Mapping[str, Choice | Range], earlier: Mapping[str, Mapping[str, Any]]
) -> Callable[[Values], TrainConfig]:
    """Return a function from a proposal of Optuna to the trial's configuration, named by a digest of the settings.

    The settings of an earlier trial keep that trial's folder name: in version 0.1, the digest was of the former setting names.
    """
    train = replace(train, run=replace(train.run, validate_epochs=_validation_interval(train)))
    defaults = flatten(dataclasses.asdict(train))
    earlier_names = {_digest(values): name for name, values in earlier.items()}

    def config_of(values: Values) -> TrainConfig:
        chosen = {name: _rounded(values[name], dimensions[name], defaults[name]) for name in dimensions}
        digest = _digest(chosen)
        return trial_config(replace_fields(train, chosen), folder, earlier_names.get(digest, digest))

    return config_of


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(format_settings(dict(sorted(values.items()))).encode()).hexdigest()[:12]


def _rounded(value: Any, dimension: Choice | Range, default: Any) -> Any:
    """Return a drawn number with few digits, inside its range; a choice and the preset's own value stay unchanged."""
    if isinstance(dimension, Choice) or dimension.integer or value == default:
        return value
    return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), dimension.low), dimension.high)


def _validation_interval(train: TrainConfig) -> int:
    return max(1, train.optim.epochs // VALIDATIONS)


def _tune_domain(dimension: Choice | Range) -> Any:
    """Return a dimension as a search domain of Ray Tune."""
    if isinstance(dimension, Choice):
        return tune.choice(list(dimension.values))
    low, high = dimension.low, dimension.high
    if dimension.integer:
        draw = tune.lograndint if dimension.log else tune.randint
        return draw(int(low), int(high) + 1)
    return tune.loguniform(low, high) if dimension.log else tune.uniform(low, high)


def _scheduler(study: SearchConfig) -> TrialScheduler:
    interval = _validation_interval(study.train)
    options: dict[str, Any] = {"time_attr": "epoch", "metric": "AP", "mode": "max"}
    if study.scheduler == "asha":
        # max_t is the last rung. Without stop_last_trials, trials that ASHA lets continue there train to their end.
        return ASHAScheduler(
            **options, grace_period=interval, max_t=interval * ASHA_REDUCTION, reduction_factor=ASHA_REDUCTION, stop_last_trials=False
        )
    if study.scheduler == "median":
        # With too few trials to compare, Tune would pause a trial; trials of this package cannot resume from a pause.
        return MedianStoppingRule(**options, grace_period=interval * 2, min_time_slice=study.train.optim.epochs)
    return FIFOScheduler()


def _trial_result(outcome: TrialOutcome, plan: TrialPlan) -> SearchTrialResult:
    config = plan.config_of(outcome.values)
    settings, run = flatten(dataclasses.asdict(config)), run_url(config)
    # A finished trial stays finished if a scheduler stops the trial while its validations are reported again.
    finished = is_finished(config)
    ap = load_weights(storage.join(run, WEIGHTS_FOLDER))[1].metrics["AP"] if finished else outcome.metrics.get("AP", NO_VALUE)
    return SearchTrialResult(
        values={name: settings[name] for name in outcome.values},
        AP=value_or(ap, None),
        epochs=len(read_metrics(run)),
        state="finished" if finished else "failed" if outcome.reason else "stopped",
        run=run,
        reason="" if finished else outcome.reason,
        minutes=training_minutes(run),
    )


def _publish(
    folder: str,
    train: TrainConfig,
    trials: Sequence[SearchTrialResult],
    dimensions: Mapping[str, Choice | Range],
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the report, and the settings of the best trial as a preset."""
    best = best_trial(trials)
    if best is None:
        raise TrainingError(
            f"{folder}: no trial was measured: {next((trial.reason for trial in trials if trial.reason), 'no reason known')}"
        )
    config = replace_fields(train, best.values)
    config = replace(config, run=replace(config.run, name=f"{train.run.name}-best"))
    preset_url = storage.join(folder, PRESET_FILE)
    preset = json.dumps(dataclasses.asdict(config), indent=1).encode()
    files = search_files(trials, dimensions, start_values(train, dimensions), preset, {**summary, "preset": preset_url})
    states = [trial.state for trial in trials]
    counts = {"trials": len(states), "stopped": states.count("stopped"), "failed": states.count("failed")}
    result = publish_study(folder, files, {"best": preset_url, "AP": best.AP, **counts})
    logger.info("event=preset_written preset=%s next='python jobs/train.py --preset-file %s'", preset_url, preset_url)
    return result
