"""A study's trials of tasks: they differ in what they learn, and in nothing else."""

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
from yolor_ray.study.tasks import run as tasks_study
from yolor_ray.study.tasks.results import IMPLICIT, JOINT, make_arms
from yolor_ray.study.tasks.run import _tasks_of, make_specs
from yolor_ray.study.workspace import is_finished, lock_study, run_of, with_data

TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1)
METRICS = {"AP": 0.5, "AP50": 0.7, "classify/mAP": 0.6, "classify/F1": -1.0, "segment/AP": 0.3, "segment/AP50": 0.4}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> TrainConfig:
    return TrainConfig(
        network=TINY,
        data=DataConfig(train="scenes:9", val="scenes:3", image_px=64),
        optim=OptimConfig(epochs=2, batch=4, nominal_batch=4),
        cluster=ClusterConfig(compute_threads=1),
        run=RunConfig(storage=str(tmp_path_factory.mktemp("studies")), name="tasks"),
    )


def learning(run: TrainConfig, *tasks: str, **words) -> TasksConfig:
    return TasksConfig(train=replace(run, network=replace(run.network, tasks=tasks)), **words)


def planned_of(study: TasksConfig, folder: str):
    return make_specs(study, make_arms(_tasks_of(study.train)), folder)


def test_every_form_is_trained_with_every_seed(run):
    planned = planned_of(TasksConfig(train=replace(run, run=replace(run.run, seed=5)), seeds=2), "/studies/t")
    found = [(one.config.run.seed, one.form.name) for one in planned]
    assert found == [(seed, name) for seed in (5, 6) for name in (*TASKS, JOINT, IMPLICIT)], "scenes are annotated for every task"
    assert run_of(planned[-1].config) == "/studies/t/trials/joint-implicit-seed6"


def test_trials_of_a_seed_differ_in_what_they_learn_and_their_names_alone(run):
    gated = replace(run, network=replace(run.network, implicit=ImplicitConfig(align="multiply")))
    by_form = {
        one.form.name: flatten(dataclasses.asdict(one.config)) for one in planned_of(TasksConfig(train=gated, seeds=1), "/studies/t")
    }
    settings = list(by_form.values())
    differing = {name for name in settings[0] if len({str(each[name]) for each in settings}) > 1}
    implicit, gains = {"network.implicit.align", "network.implicit.refine"}, {"loss.box", "loss.objectness", "loss.cls"}
    assert differing == {"run.name", "network.tasks"} | implicit | gains
    assert all(by_form["classify"][name] == 0 for name in gains), "labels of whole images alone teach the shared features"
    assert {by_form[name]["network.implicit.align"] for name in (*TASKS, JOINT)} == {"none"}
    assert by_form[IMPLICIT]["network.implicit.align"] == "multiply", "the form that the user asked for"
    assert by_form["classify"]["network.tasks"] == ("detect", "classify") and by_form["pose"]["network.tasks"] == ("detect", "pose")
    assert by_form[JOINT]["network.tasks"] == by_form[IMPLICIT]["network.tasks"] == TASKS
    assert {each["run.validate_epochs"] for each in settings} == {2}, "the best of several validations would favour noise"


def test_forms_start_from_the_same_shared_weights_and_see_the_same_images(run, monkeypatch):
    planned = planned_of(TasksConfig(train=with_data(run)[0], seeds=1), f"{run.run.storage}/fair")
    extremes = [one for one in planned if one.form.name in ("detect", JOINT, IMPLICIT)]
    starts = {one.form.name: first_steps(one.config, monkeypatch, steps=2) for one in extremes}
    weights, expected = starts["detect"]
    for form, (found, images) in starts.items():
        assert all(np.array_equal(a, b) for a, b in zip(images, expected, strict=True)), form
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items()), form
    joint, implicit = starts[JOINT][0], starts[IMPLICIT][0]
    assert all(torch.equal(implicit[name], tensor) for name, tensor in joint.items())
    assert len(implicit) > len(joint)


def test_tasks_are_those_that_are_named_or_all_that_are_annotated(run):
    assert _tasks_of(run) == TASKS
    assert _tasks_of(learning(run, "segment", "detect", "classify").train) == ("detect", "classify", "segment")


def test_tasks_that_cannot_be_measured_or_compared_are_refused_with_what_there_is(run, monkeypatch):
    config, train_set, val_set = with_data(run)

    def annotated(for_training, for_measuring):
        sets = config, replace(train_set, tasks=for_training), replace(val_set, tasks=for_measuring)
        monkeypatch.setattr(tasks_study, "with_data", lambda train: sets)

    annotated(("classify", "detect", "pose"), ("classify", "detect"))
    assert _tasks_of(run) == ("detect", "classify")
    with pytest.raises(DataError, match=r"annotations for detect, classify, expected some for network\.tasks: pose too"):
        _tasks_of(learning(run, "detect", "pose").train)
    annotated(("detect", "pose"), ("classify", "detect"))
    with pytest.raises(DataError, match=r"annotations for detect, pose at .* and for detect, classify at .*, expected at least one task"):
        _tasks_of(run)


@pytest.mark.parametrize(
    ("words", "message"),
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
def test_a_study_that_makes_no_sense_is_refused_before_anything_is_trained(run, words, message):
    with pytest.raises(ConfigError, match=message):
        TasksConfig(**{"train": run, **words})


def test_every_preset_makes_every_kind_of_study():
    assert STUDIES.keys() == STUDY_DESCRIPTIONS.keys()
    for preset in PRESETS.values():
        for kind, make in STUDIES.items():
            assert make(preset).train.run.name == kind


def pretend(lost: tuple[str, ...] = ()):
    """Return what trains trials by publishing weights at once, but for those whose names are lost."""

    def train_pending(_: TrainConfig, pending: list[TrainConfig], max_concurrent_trials: int) -> dict[str, str]:
        train_pending.asked = [one.run.name for one in pending]
        for one in pending:
            if one.run.name not in lost:
                labels = ("day", "night") if "classify" in one.network.tasks else ()
                network = Yolor(one.network, 2, torch.ones(3, 3, 2), image_classes=len(labels))
                better = {name: value + 0.1 * (one.network.implicit != PLAIN) for name, value in METRICS.items()}
                info = WeightsInfo(one.run.name, ("a", "b"), 64, better, image_classes=labels)
                save_weights(storage.join(run_of(one), "weights"), network, info)
        return dict.fromkeys(lost, "out of memory")

    return train_pending


def test_a_study_trains_what_is_missing_and_reports_all_that_there_is(run, monkeypatch):
    monkeypatch.setattr(tasks_study, "start_cluster", lambda cluster: None)
    study = learning(run, "detect", "classify", seeds=1)
    monkeypatch.setattr(tasks_study, "train_pending", first := pretend(lost=("classify-seed0",)))
    found = tune(study)
    assert len(first.asked) == 4 and (found["trials"], found["failed"], found["best"]) == (3, 1, IMPLICIT)
    assert found["report"] == f"{found['study']}/report.md" and "out of memory" in Path(found["report"]).read_text()
    monkeypatch.setattr(tasks_study, "train_pending", second := pretend())
    again = tune(replace(study, seeds=2))
    assert second.asked[0] == "classify-seed0" and len(second.asked) == 1 + 4, "what is trained is kept, and seeds may be added"
    assert (again["trials"], again["failed"]) == (8, 0)
    told = json.loads(Path(again["study"], "report.json").read_text())
    trial = next(one for one in told["trials"] if one["form"] == "classify")
    assert trial["metrics"] == {"classify/mAP": 0.6, "classify/F1": None}, "detection was no part of it, and -1 is unknown"
    joint, implicit = (next(one for one in told["trials"] if one["form"] == name) for name in (JOINT, IMPLICIT))
    assert joint["parameters"] < implicit["parameters"] and joint["fused_parameters"] == implicit["fused_parameters"]
    with pytest.raises(ConfigError, match="kind was 'tasks' and is now 'ablation'"):
        lock_study("ablation", study.train, ())


def test_a_study_of_another_kind_is_left_alone(run):
    named = learning(replace(run, run=replace(run.run, name="theirs")), "detect", "classify", seeds=1)
    lock_study("search", named.train, ())
    with pytest.raises(ConfigError, match="kind was 'search' and is now 'tasks'"):
        tune(named)


def test_without_a_single_network_there_is_no_report(run, monkeypatch):
    monkeypatch.setattr(tasks_study, "start_cluster", lambda cluster: None)
    study = learning(replace(run, run=replace(run.run, name="hopeless")), "detect", "classify", seeds=1)
    names = tuple(one.config.run.name for one in planned_of(study, "/s"))
    monkeypatch.setattr(tasks_study, "train_pending", pretend(lost=names))
    with pytest.raises(TrainingError, match="no trial was trained: out of memory"):
        tune(study)
    assert not is_finished(planned_of(study, f"{run.run.storage}/hopeless")[0].config)
