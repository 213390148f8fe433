"""Trials of a comparison of tasks: equal except for the learned tasks, and a study that resumes."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from first_steps import first_steps
from yolor_ray.config import ClusterConfig, DataConfig, ImplicitConfig, NetworkConfig, OptimConfig, RunConfig, TrainConfig
from yolor_ray.config.dotted import flatten
from yolor_ray.config.network import TASKS
from yolor_ray.config.presets import PLAIN, PRESETS
from yolor_ray.config.study import STUDIES, STUDY_DESCRIPTIONS, TasksConfig
from yolor_ray.errors import ConfigError, DataError, TrainingError
from yolor_ray.io import storage
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights
from yolor_ray.study.run import tune
from yolor_ray.study.tasks import run as tasks_run
from yolor_ray.study.tasks.results import IMPLICIT, JOINT, make_arms
from yolor_ray.study.tasks.run import _select_tasks, make_specs
from yolor_ray.study.trial_log import run_url
from yolor_ray.study.workspace import is_finished, lock_study, resolve_data

TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1)
METRICS = {"AP": 0.5, "AP50": 0.7, "classify/mAP": 0.6, "classify/F1": -1.0, "segment/AP": 0.3, "segment/AP50": 0.4}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    return TrainConfig(
        network=TINY,
        data=DataConfig(train="scenes:9", val="scenes:3", image_px=64),
        optim=OptimConfig(epochs=2, batch=4, nominal_batch=4),
        cluster=ClusterConfig(compute_threads=1),
        run=RunConfig(storage=str(tmp_path_factory.mktemp("studies")), name="tasks"),
    )


def make_study(config: TrainConfig, *tasks: str, **fields) -> TasksConfig:
    return TasksConfig(train=replace(config, network=replace(config.network, tasks=tasks)), **fields)


def specs_of(study: TasksConfig, folder: str):
    return make_specs(study, make_arms(_select_tasks(study.train)), folder)


def test_every_arm_is_trained_with_every_seed(config):
    specs = specs_of(TasksConfig(train=replace(config, run=replace(config.run, seed=5)), seeds=2), "/studies/t")
    trials = [(spec.config.run.seed, spec.arm.name) for spec in specs]
    assert trials == [(seed, name) for seed in (5, 6) for name in (*TASKS, JOINT, IMPLICIT)], "scenes are annotated for every task"
    assert run_url(specs[-1].config) == "/studies/t/trials/joint-implicit-seed6"


def test_trials_of_a_seed_differ_in_learned_tasks_and_name_only(config):
    multiplying = replace(config, network=replace(config.network, implicit=ImplicitConfig(align="multiply")))
    specs = specs_of(TasksConfig(train=multiplying, seeds=1), "/studies/t")
    by_arm = {spec.arm.name: flatten(dataclasses.asdict(spec.config)) for spec in specs}
    settings = list(by_arm.values())
    differing = {name for name in settings[0] if len({str(values[name]) for values in settings}) > 1}
    implicit, gains = {"network.implicit.align", "network.implicit.refine"}, {"loss.box", "loss.objectness", "loss.cls"}
    assert differing == {"run.name", "network.tasks"} | implicit | gains
    assert all(by_arm["classify"][name] == 0 for name in gains), "labels of whole images alone train the shared features"
    assert {by_arm[name]["network.implicit.align"] for name in (*TASKS, JOINT)} == {"none"}
    assert by_arm[IMPLICIT]["network.implicit.align"] == "multiply", "the implicit knowledge of the preset"
    assert by_arm["classify"]["network.tasks"] == ("detect", "classify") and by_arm["pose"]["network.tasks"] == ("detect", "pose")
    assert by_arm[JOINT]["network.tasks"] == by_arm[IMPLICIT]["network.tasks"] == TASKS
    assert {values["run.validate_epochs"] for values in settings} == {2}, "the best of several validations would favour noise"


def test_arms_start_with_equal_shared_weights_and_see_the_same_images(config, monkeypatch):
    specs = specs_of(TasksConfig(train=resolve_data(config)[0], seeds=1), f"{config.run.storage}/fair")
    selected = [spec for spec in specs if spec.arm.name in ("detect", JOINT, IMPLICIT)]
    starts = {spec.arm.name: first_steps(spec.config, monkeypatch, steps=2) for spec in selected}
    shared, expected = starts["detect"]
    for arm, (weights, images) in starts.items():
        assert all(np.array_equal(a, b) for a, b in zip(images, expected, strict=True)), arm
        assert all(torch.equal(weights[name], tensor) for name, tensor in shared.items()), arm
    joint, implicit = starts[JOINT][0], starts[IMPLICIT][0]
    assert all(torch.equal(implicit[name], tensor) for name, tensor in joint.items())
    assert len(implicit) > len(joint)


def test_the_study_has_the_tasks_of_the_network_or_all_annotated_tasks(config):
    assert _select_tasks(config) == TASKS
    assert _select_tasks(make_study(config, "segment", "detect", "classify").train) == ("detect", "classify", "segment")


def test_tasks_without_annotations_are_refused(config, monkeypatch):
    resolved, train_set, val_set = resolve_data(config)

    def annotate(train_tasks, val_tasks):
        data = resolved, replace(train_set, tasks=train_tasks), replace(val_set, tasks=val_tasks)
        monkeypatch.setattr(tasks_run, "resolve_data", lambda train: data)

    annotate(("classify", "detect", "pose"), ("classify", "detect"))
    assert _select_tasks(config) == ("detect", "classify")
    with pytest.raises(DataError, match=r"annotations for detect, classify, expected annotations for pose of network\.tasks too"):
        _select_tasks(make_study(config, "detect", "pose").train)
    annotate(("detect", "pose"), ("classify", "detect"))
    with pytest.raises(DataError, match=r"annotations for detect, pose at .* and for detect, classify at .*, expected at least one task"):
        _select_tasks(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 0}, "seeds: found 0, expected 1 or more"),
        ({"max_concurrent_trials": -1}, "max_concurrent_trials: found -1, expected 0 or more"),
        (
            {"train": TrainConfig(network=NetworkConfig(implicit=PLAIN))},
            "network.implicit: found .*, expected some: one arm of the study has it",
        ),
        ({"train": TrainConfig(run=RunConfig(validate_epochs=3))}, "run.validate_epochs: found 3, expected 10"),
    ],
)
def test_an_invalid_comparison_is_refused_before_training(config, fields, message):
    with pytest.raises(ConfigError, match=message):
        TasksConfig(**{"train": config, **fields})


def test_every_preset_makes_every_kind_of_study():
    assert STUDIES.keys() == STUDY_DESCRIPTIONS.keys()
    for preset in PRESETS.values():
        for name, make in STUDIES.items():
            assert make(preset).train.run.name == name


class FakeTraining:
    """Replaces `train_pending`: publishes untrained weights for every trial but the failing ones."""

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        self.failing = failing
        self.pending: list[str] = []

    def __call__(self, _: TrainConfig, pending: list[TrainConfig], max_concurrent_trials: int) -> dict[str, str]:
        self.pending = [trial.run.name for trial in pending]
        for trial in pending:
            if trial.run.name not in self.failing:
                labels = ("day", "night") if "classify" in trial.network.tasks else ()
                network = Yolor(trial.network, 2, torch.ones(3, 3, 2), image_classes=len(labels))
                metrics = {name: value + 0.1 * (trial.network.implicit != PLAIN) for name, value in METRICS.items()}
                info = WeightsInfo(trial.run.name, ("a", "b"), 64, metrics, image_classes=labels)
                save_weights(storage.join(run_url(trial), "weights"), network, info)
        return dict.fromkeys(self.failing, "out of memory")


def test_a_resumed_study_trains_the_missing_trials_and_reports_all(config, monkeypatch):
    monkeypatch.setattr(tasks_run, "start_cluster", lambda cluster: None)
    study = make_study(config, "detect", "classify", seeds=1)
    monkeypatch.setattr(tasks_run, "train_pending", first := FakeTraining(failing=("classify-seed0",)))
    result = tune(study)
    assert len(first.pending) == 4 and (result["trials"], result["failed"], result["best"]) == (3, 1, IMPLICIT)
    assert result["report"] == f"{result['study']}/report.md" and "out of memory" in Path(result["report"]).read_text()
    monkeypatch.setattr(tasks_run, "train_pending", second := FakeTraining())
    result = tune(replace(study, seeds=2))
    assert second.pending[0] == "classify-seed0" and len(second.pending) == 1 + 4, "finished trials are kept, and seeds may be added"
    assert (result["trials"], result["failed"]) == (8, 0)
    content = json.loads(Path(result["study"], "report.json").read_text())
    trial, joint, implicit = (next(trial for trial in content["trials"] if trial["form"] == arm) for arm in ("classify", JOINT, IMPLICIT))
    assert trial["metrics"] == {"classify/mAP": 0.6, "classify/F1": None}, "detection was not learned, and -1 is unknown"
    assert joint["parameters"] < implicit["parameters"] and joint["fused_parameters"] == implicit["fused_parameters"]
    with pytest.raises(ConfigError, match="kind was 'tasks' and is now 'ablation'"):
        lock_study("ablation", study.train, ())


def test_a_study_of_another_kind_is_refused(config):
    study = make_study(replace(config, run=replace(config.run, name="search")), "detect", "classify", seeds=1)
    lock_study("search", study.train, ())
    with pytest.raises(ConfigError, match="kind was 'search' and is now 'tasks'"):
        tune(study)


def test_without_a_finished_trial_there_is_no_report(config, monkeypatch):
    monkeypatch.setattr(tasks_run, "start_cluster", lambda cluster: None)
    study = make_study(replace(config, run=replace(config.run, name="failed")), "detect", "classify", seeds=1)
    names = tuple(spec.config.run.name for spec in specs_of(study, "/s"))
    monkeypatch.setattr(tasks_run, "train_pending", FakeTraining(failing=names))
    with pytest.raises(TrainingError, match="no trial was trained: out of memory"):
        tune(study)
    assert not is_finished(specs_of(study, f"{config.run.storage}/failed")[0].config)
