"""Compare tasks learned alone with tasks learned together, without and with implicit knowledge, over several seeds.

Networks of one seed start from the same explicit weights of backbone, neck and detection and see the same data in the same order.
Each is measured once, after its last epoch: the best of many validations would favour noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from yolor_ray.config import TrainConfig
from yolor_ray.config.network import TASKS, Task
from yolor_ray.config.presets import PLAIN
from yolor_ray.config.study import TasksConfig
from yolor_ray.errors import DataError, TrainingError
from yolor_ray.io import storage
from yolor_ray.model.fuse import fuse
from yolor_ray.model.weights import load_weights
from yolor_ray.study.ablation.costs import parameters
from yolor_ray.study.results import Failure
from yolor_ray.study.tasks.report import tasks_files
from yolor_ray.study.tasks.results import IMPLICIT, StudyArm, TasksStudy, TaskTrialResult, best, make_arms
from yolor_ray.study.trials import start_cluster
from yolor_ray.study.workspace import (
    as_trial,
    check_start,
    done_on,
    folder_of,
    is_finished,
    lock_study,
    minutes_of,
    provenance,
    publish_study,
    run_of,
    train_pending,
    with_data,
)


@dataclass(frozen=True)
class TrialSpec:
    """One network to train."""

    form: StudyArm
    config: TrainConfig


def tasks_study(study: TasksConfig) -> dict[str, Any]:
    """Train what is not trained yet, write the report and return `report`, `best`, `study` and the numbers of trials.

    Raises:
        DataError: there are not two tasks that both data sets are annotated for, or not those that were asked for.
        TrainingError: not a single trial came to its end.
    """
    folder = folder_of(study.train)
    forms = make_arms(_tasks_of(study.train))
    check_start(with_data(study.train)[0].optim.pretrained)
    lock_study("tasks", study.train, ())
    planned = make_specs(study, forms, folder)
    pending = [one.config for one in planned if not is_finished(one.config)]
    if pending:
        start_cluster(study.train.cluster)
    reasons = train_pending(study.train, pending, study.max_concurrent_trials)
    finished = [one for one in planned if is_finished(one.config)]
    if not finished:
        raise TrainingError(f"{folder}: no trial was trained: {next(iter(reasons.values()), 'no reason known')}")
    found = TasksStudy(
        forms=forms,
        trained=tuple(_trained(one) for one in finished),
        failures=tuple(_failure(one, reasons.get(one.config.run.name, "")) for one in planned if one not in finished),
        summary=_summary(study, forms, folder),
    )
    result = {"best": best(found), "trials": len(found.trained), "failed": len(found.failures)}
    return publish_study(folder, tasks_files(found), result)


def _tasks_of(train: TrainConfig) -> tuple[Task, ...]:
    """Return the tasks of the study, in the order of TASKS."""
    _, train_set, val_set = with_data(train)
    measured = [task for task in TASKS if task in val_set.tasks]
    asked = train.network.tasks
    missing = [task for task in asked if task not in measured]
    if missing:
        found = f"found annotations for {', '.join(measured)}"
        raise DataError(f"{val_set.url}: {found}, expected some for network.tasks: {', '.join(missing)} too, so that they can be measured")
    tasks = tuple(task for task in measured if task in (asked if len(asked) > 1 else train_set.tasks))
    if len(tasks) < 2:
        learned = f"annotations for {', '.join(train_set.tasks)} at {train_set.url} and for {', '.join(measured)} at {val_set.url}"
        raise DataError(f"data: found {learned}, expected at least one task beside detect in both: there is nothing to compare")
    return tasks


def make_specs(study: TasksConfig, forms: Sequence[StudyArm], folder: str) -> list[TrialSpec]:
    """Return all trials, seed by seed, so that an unfinished study has whole comparisons."""
    first = study.train.run.seed
    return [make_spec(study.train, folder, form, seed) for seed in range(first, first + study.seeds) for form in forms]


def make_spec(train: TrainConfig, folder: str, form: StudyArm, seed: int) -> TrialSpec:
    config, _, _ = with_data(train)
    tasks = tuple(task for task in TASKS if task in ("detect", *form.tasks))
    network = replace(config.network, tasks=tasks, implicit=config.network.implicit if form.name == IMPLICIT else PLAIN)
    # A network always has a head for boxes; without weight on what it says, it teaches the shared features nothing.
    loss = config.loss if "detect" in form.tasks else replace(config.loss, box=0.0, objectness=0.0, cls=0.0)
    run = replace(config.run, seed=seed, validate_epochs=config.optim.epochs)
    varied = replace(config, network=network, loss=loss, run=run)
    return TrialSpec(form, as_trial(varied, folder, f"{form.name}-seed{seed}"))


def _trained(planned: TrialSpec) -> TaskTrialResult:
    run = run_of(planned.config)
    network, info = load_weights(storage.join(run, "weights"))
    return TaskTrialResult(
        form=planned.form.name,
        seed=planned.config.run.seed,
        run=run,
        metrics=_learned(info.metrics, planned.form.tasks),
        parameters=parameters(network),
        fused_parameters=parameters(fuse(network)),
        minutes=minutes_of(run),
    )


def _learned(metrics: dict[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """Return the numbers of tasks that were learned; those of detection are named without it."""
    owners = {name: name.partition("/")[0] if "/" in name else "detect" for name in metrics}
    # Where there is nothing to measure, a number is -1.
    return {name: value if value >= 0 else float("nan") for name, value in metrics.items() if owners[name] in tasks}


def _failure(planned: TrialSpec, reason: str) -> Failure:
    return Failure(planned.form.name, "", planned.config.run.seed, run_of(planned.config), reason or "it did not finish")


def _summary(study: TasksConfig, forms: Sequence[StudyArm], folder: str) -> dict[str, Any]:
    implicit = study.train.network.implicit
    return {
        "study": folder,
        **dict(done_on(study.train).values()),
        "tasks": ", ".join(forms[-1].tasks),
        "implicit knowledge": f"align {implicit.align}, refine {implicit.refine}",
        "seeds": study.seeds,
        **provenance(),
    }
