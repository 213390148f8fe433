"""Search for a recipe: Optuna proposes settings, Ray Tune trains them and stops the bad ones, and the best become a preset file.

Run folders are named by their settings, so that a search that goes on proposes its earlier trials first: finished ones answer
at once, others go on from their checkpoints, and Optuna and the scheduler learn again what they knew.
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

from yolor_ray.config import TrainConfig
from yolor_ray.config.dotted import coerce, flatten, replace_fields
from yolor_ray.config.search_space import Choice, Range, search_space, start_values
from yolor_ray.config.study import SearchConfig
from yolor_ray.errors import TrainingError
from yolor_ray.io import manifest, storage
from yolor_ray.model.weights import load_weights
from yolor_ray.study.search.report import PRESET_FILE, REPORT_FILE, SearchTrialResult, best, search_files
from yolor_ray.study.search.unique_searcher import UniqueSearcher
from yolor_ray.study.trials import TrialOutcome, TrialPlan, Values, run_trials, shared_source, start_cluster
from yolor_ray.study.workspace import TRIALS, as_trial, folder_of, lock_study, minutes_of, provenance, typed_words, with_data
from yolor_ray.train.run_log import read_metrics
from yolor_ray.train.settings_lock import RUN_FILE

logger = logging.getLogger(__name__)

REDUCTION = 3
"""ASHA lets one trial in three go on at each of its looks."""
LOOKS = 9
"""Trials are validated this many times, evenly: ASHA looks at the first and the third."""
DIGITS = 3
"""Significant digits of what is proposed: more would only be hard to read."""


def search(study: SearchConfig) -> dict[str, Any]:
    """Train `trials` proposals and return `report`, `best` (a preset file), `study`, the best `AP` and the numbers of trials.

    Raises:
        TrainingError: no trial was measured even once.
    """
    folder = folder_of(study.train)
    train, train_set, val_set = with_data(study.train)
    dimensions = search_space(train, study.search)
    lock_study("search", study.train, study.search)
    known = _begun(folder, dimensions)
    # The preset's own settings come first: what is found must be better.
    start = start_values(train, dimensions)
    first = [start, *(values for values in known if values != start)]
    start_cluster(train.cluster)
    config_of = _config_of(train, folder, dimensions)
    plan = TrialPlan(config_of, train.cluster, max(study.trials, len(first)), study.max_concurrent_trials)
    outcomes = run_trials(
        plan,
        {name: _domain(dimension) for name, dimension in dimensions.items()},
        shared_source(train_set, train.cluster),
        samples=plan.count,
        scheduler=_scheduler(study),
        searcher=UniqueSearcher(
            # Earlier proposals are given, so Optuna must draw others than it did then.
            OptunaSearch(metric="AP", mode="max", points_to_evaluate=first, seed=train.run.seed + len(known)),
            lambda values: config_of(values).run.name,
        ),
    )
    tried = [_tried(outcome, plan) for outcome in outcomes]
    summary = {
        "study": folder,
        "training set": f"{train_set.url}, {train_set.images} images",
        "validation set": f"{val_set.url}, {val_set.images} images",
        "epochs": train.optim.epochs,
        "scheduler": study.scheduler,
        **provenance(),
    }
    return _publish(folder, study.train, tried, dimensions, summary)


def _begun(folder: str, dimensions: Mapping[str, Choice | Range]) -> list[dict[str, Any]]:
    """Return the settings of all trials that an earlier job of this study began, those first that came to an end.

    So a scheduler knows them before it judges what was still under way.
    """
    trials = storage.join(folder, TRIALS)
    names = sorted(storage.list_names(trials), key=lambda name: not manifest.is_published(storage.join(trials, name, "weights")))
    places = [storage.join(trials, name, RUN_FILE) for name in names]
    settings = [flatten(json.loads(storage.read_bytes(place))) for place in places if storage.exists(place)]
    return [{name: coerce(name, found[name]) for name in dimensions} for found in settings]


def _config_of(train: TrainConfig, folder: str, dimensions: Mapping[str, Choice | Range]) -> Callable[[Values], TrainConfig]:
    """Return a function that makes the run of a trial from what Optuna proposes, named by a digest of it."""
    train = replace(train, run=replace(train.run, validate_epochs=_look_every(train)))
    own = flatten(dataclasses.asdict(train))

    def config_of(values: Values) -> TrainConfig:
        chosen = {name: _rounded(values[name], dimensions[name], own[name]) for name in dimensions}
        name = hashlib.sha256(typed_words(dict(sorted(chosen.items()))).encode()).hexdigest()[:12]
        return as_trial(replace_fields(train, chosen), folder, name)

    return config_of


def _rounded(value: Any, dimension: Choice | Range, own: Any) -> Any:
    """Return a drawn number with few digits, inside its range; what somebody chose stays as it is."""
    if isinstance(dimension, Choice) or dimension.integer or value == own:
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), dimension.low), dimension.high)


def _look_every(train: TrainConfig) -> int:
    return max(1, train.optim.epochs // LOOKS)


def _domain(dimension: Choice | Range) -> Any:
    """Return a dimension in Tune's words."""
    if isinstance(dimension, Choice):
        return tune.choice(list(dimension.values))
    low, high = dimension.low, dimension.high
    if dimension.integer:
        draw = tune.lograndint if dimension.log else tune.randint
        return draw(int(low), int(high) + 1)
    return tune.loguniform(low, high) if dimension.log else tune.uniform(low, high)


def _scheduler(study: SearchConfig) -> TrialScheduler:
    first = _look_every(study.train)
    words: dict[str, Any] = {"time_attr": "epoch", "metric": "AP", "mode": "max"}
    if study.scheduler == "asha":
        # The largest look is the last one that ASHA takes; it need not stop trials there that it lets go on.
        return ASHAScheduler(**words, grace_period=first, max_t=first * REDUCTION, reduction_factor=REDUCTION, stop_last_trials=False)
    if study.scheduler == "median":
        # Tune would pause trials for want of others to compare them with; ours could not go on from there.
        return MedianStoppingRule(**words, grace_period=first * 2, min_time_slice=study.train.optim.epochs)
    return FIFOScheduler()


def _tried(outcome: TrialOutcome, plan: TrialPlan) -> SearchTrialResult:
    config = plan.config_of(outcome.values)
    settings, run = flatten(dataclasses.asdict(config)), storage.join(config.run.storage, config.run.name)
    weights = storage.join(run, "weights")
    # A finished trial that a scheduler stopped when it was told again is finished all the same.
    done = manifest.is_published(weights)
    return SearchTrialResult(
        values={name: settings[name] for name in outcome.values},
        AP=_known(load_weights(weights)[1].metrics["AP"] if done else outcome.metrics.get("AP")),
        epochs=len(read_metrics(run)),
        state="finished" if done else "failed" if outcome.reason else "stopped",
        run=run,
        reason="" if done else outcome.reason,
        minutes=minutes_of(run),
    )


def _known(ap: float | None) -> float | None:
    # COCO says -1 where there is nothing to measure.
    return None if ap is None or ap < 0 else ap


def _publish(
    folder: str, train: TrainConfig, tried: Sequence[SearchTrialResult], dimensions: Mapping[str, Choice | Range], summary: dict[str, Any]
) -> dict[str, Any]:
    """Write the report, and the settings of the best trial as a preset."""
    winner = best(tried)
    if winner is None:
        raise TrainingError(f"{folder}: no trial was measured: {next((one.reason for one in tried if one.reason), 'no reason known')}")
    config = replace_fields(train, winner.values)
    config = replace(config, run=replace(config.run, name=f"{train.run.name}-best"))
    preset, report = storage.join(folder, PRESET_FILE), storage.join(folder, REPORT_FILE)
    data = json.dumps(dataclasses.asdict(config), indent=1).encode()
    files = search_files(tried, dimensions, start_values(train, dimensions), data, {**summary, "preset": preset})
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)
    logger.info("event=study_done report=%s next='python jobs/train.py --preset-file %s'", report, preset)
    states = [one.state for one in tried]
    counts = {"trials": len(states), "stopped": states.count("stopped"), "failed": states.count("failed")}
    return {"study": folder, "report": report, "best": preset, "AP": winner.AP, **counts}
