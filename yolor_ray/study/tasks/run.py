"""Compare tasks learned alone with tasks learned jointly, without and with implicit knowledge, over several seeds.

Networks with one seed start from the same explicit weights of backbone, neck and detection and see the same data in the same order.
Each network is measured once, after its last epoch: the best of many validations would favour noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from yolor_ray.config import TrainConfig
from yolor_ray.config.network import TASKS, Task
from yolor_ray.config.presets import PLAIN
from yolor_ray.config.study import TasksConfig
from yolor_ray.errors import DataError, TrainingError
from yolor_ray.evaluate.coco import value_or
from yolor_ray.io import storage
from yolor_ray.io.weights_url import WEIGHTS_FOLDER
from yolor_ray.model.fuse import fuse
from yolor_ray.model.weights import load_weights
from yolor_ray.study.ablation.costs import count_parameters
from yolor_ray.study.results import Failure
from yolor_ray.study.tasks.report import tasks_files
from yolor_ray.study.tasks.results import IMPLICIT, StudyArm, TasksStudy, TaskTrialResult, best_arm, make_arms
from yolor_ray.study.trial_log import run_url
from yolor_ray.study.trials import start_cluster
from yolor_ray.study.workspace import (
    UNFINISHED,
    check_pretrained,
    describe_training,
    is_finished,
    lock_study,
    provenance,
    publish_study,
    resolve_data,
    study_folder,
    train_pending,
    training_minutes,
    trial_config,
)


@dataclass(frozen=True)
class TrialSpec:
    """One trial of a comparison of tasks."""

    arm: StudyArm
    config: TrainConfig


def run_tasks(study: TasksConfig) -> dict[str, Any]:
    """Train the unfinished trials, write the report and return `report`, `best`, `study` and the numbers of trials.

    Raises:
        DataError: the datasets have fewer than two common tasks, or lack annotations for a task of network.tasks.
        TrainingError: no trial finished.

    """
    folder = study_folder(study.train)
    arms = make_arms(_select_tasks(study.train))
    check_pretrained(resolve_data(study.train)[0].optim.pretrained)
    lock_study("tasks", study.train, ())
    specs = make_specs(study, arms, folder)
    pending = [spec.config for spec in specs if not is_finished(spec.config)]
    if pending:
        start_cluster(study.train.cluster)
    reasons = train_pending(study.train, pending, study.max_concurrent_trials)
    finished = [spec for spec in specs if is_finished(spec.config)]
    if not finished:
        raise TrainingError(f"{folder}: no trial was trained: {next(iter(reasons.values()), 'no reason known')}")
    results = TasksStudy(
        arms=arms,
        trials=tuple(_trial_result(spec) for spec in finished),
        failures=tuple(
            Failure(spec.arm.name, "", spec.config.run.seed, run_url(spec.config), reasons.get(spec.config.run.name) or UNFINISHED)
            for spec in specs
            if spec not in finished
        ),
        summary=_summary(study, arms, folder),
    )
    counts = {"trials": len(results.trials), "failed": len(results.failures)}
    return publish_study(folder, tasks_files(results), {"best": best_arm(results), **counts})


def _select_tasks(train: TrainConfig) -> tuple[Task, ...]:
    """Return the tasks of the study, in the order of TASKS."""
    _, train_set, val_set = resolve_data(train)
    measurable = [task for task in TASKS if task in val_set.tasks]
    requested = train.network.tasks
    missing = [task for task in requested if task not in measurable]
    if missing:
        raise DataError(
            f"{val_set.url}: found annotations for {', '.join(measurable)}, expected annotations for {', '.join(missing)} "
            "of network.tasks too, to measure them"
        )
    tasks = tuple(task for task in measurable if task in (requested if len(requested) > 1 else train_set.tasks))
    if len(tasks) < 2:
        annotated = f"annotations for {', '.join(train_set.tasks)} at {train_set.url} and for {', '.join(measurable)} at {val_set.url}"
        raise DataError(f"data: found {annotated}, expected at least one task beside detect in both: there is nothing to compare")
    return tasks


def make_specs(study: TasksConfig, arms: Sequence[StudyArm], folder: str) -> list[TrialSpec]:
    """Return all trials, ordered by seed, so that an interrupted study has complete comparisons."""
    first_seed = study.train.run.seed
    config = resolve_data(study.train)[0]
    return [make_spec(config, folder, arm, seed) for seed in range(first_seed, first_seed + study.seeds) for arm in arms]


def make_spec(config: TrainConfig, folder: str, arm: StudyArm, seed: int) -> TrialSpec:
    """Return the trial of an arm and a seed."""
    tasks = tuple(task for task in TASKS if task in ("detect", *arm.tasks))
    network = replace(config.network, tasks=tasks, implicit=config.network.implicit if arm.name == IMPLICIT else PLAIN)
    # Every network has a detection head. Without weight on its losses, the head does not train the shared features.
    loss = config.loss if "detect" in arm.tasks else replace(config.loss, box=0.0, objectness=0.0, cls=0.0)
    run = replace(config.run, seed=seed, validate_epochs=config.optim.epochs)
    varied = replace(config, network=network, loss=loss, run=run)
    return TrialSpec(arm, trial_config(varied, folder, f"{arm.name}-seed{seed}"))


def _trial_result(spec: TrialSpec) -> TaskTrialResult:
    run = run_url(spec.config)
    network, info = load_weights(storage.join(run, WEIGHTS_FOLDER))
    return TaskTrialResult(
        arm=spec.arm.name,
        seed=spec.config.run.seed,
        run=run,
        metrics=_learned_metrics(info.metrics, spec.arm.tasks),
        parameters=count_parameters(network),
        fused_parameters=count_parameters(fuse(network)),
        minutes=training_minutes(run),
    )


def _learned_metrics(metrics: dict[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """Return the metrics of the learned tasks; a detection metric's name has no task."""
    task_of = {name: name.partition("/")[0] if "/" in name else "detect" for name in metrics}
    return {name: value_or(value, float("nan")) for name, value in metrics.items() if task_of[name] in tasks}


def _summary(study: TasksConfig, arms: Sequence[StudyArm], folder: str) -> dict[str, Any]:
    implicit = study.train.network.implicit
    return {
        "study": folder,
        **dict(describe_training(study.train).values()),
        "tasks": ", ".join(arms[-1].tasks),
        "implicit knowledge": f"align {implicit.align}, refine {implicit.refine}",
        "seeds": study.seeds,
        **provenance(),
    }
