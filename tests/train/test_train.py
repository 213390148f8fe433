"""Train in this process: the run folder, exact resume, and what a run refuses."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from yolor_ray.config import AugmentConfig, ClusterConfig, DataConfig, ImplicitConfig, NetworkConfig, OptimConfig, RunConfig, TrainConfig
from yolor_ray.data.loading.epoch_ledger import from_json
from yolor_ray.data.shards.dataset import open_dataset, write_dataset
from yolor_ray.errors import ConfigError, DataError, Preempted, StorageError, WeightsError
from yolor_ray.io import storage
from yolor_ray.model.weights import load_weights, save_weights
from yolor_ray.pack.run import pack_scenes
from yolor_ray.train.checkpoint.attempts import read_attempts
from yolor_ray.train.checkpoint.checkpoint import newest_checkpoint
from yolor_ray.train.elastic.worker_group import run_in_process
from yolor_ray.train.learner import Learner
from yolor_ray.train.run import open_datasets, prepare, train
from yolor_ray.train.run_log import RunLogger, read_metrics

TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def tiny_run(folder: Path, name: str, **run: object) -> TrainConfig:
    return TrainConfig(
        network=TINY,
        data=DataConfig(train="scenes:21", val="scenes:5", image_px=64),
        augment=AugmentConfig(mixup=0.3, multi_scale=0.3, close_mosaic_epochs=1),
        optim=OptimConfig(epochs=3, batch=4, nominal_batch=8),
        cluster=ClusterConfig(compute_threads=1),
        run=RunConfig(storage=str(folder), name=name, validate_epochs=2, checkpoint_epochs=1, **run),
    )


class Killed(BaseException):
    """What a test throws into the loop in the place of a kill."""


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    learn = Learner.learn

    def learn_or_die(self: Learner, *args: object, **kwargs: object) -> object:
        if self.step >= steps:
            raise Killed
        return learn(self, *args, **kwargs)

    monkeypatch.setattr(Learner, "learn", learn_or_die)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    return Path(train(tiny_run(folder, "whole"))["run"])


def final_state(run: Path) -> tuple[dict[str, torch.Tensor], dict]:
    found = newest_checkpoint(str(run))
    assert found is not None
    return found


@pytest.mark.parametrize(("steps", "minutes"), [(3, 0.0), (6, 15.0), (8, 0.0), (11, 0.0)])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(folder: Path, whole: Path, monkeypatch, steps: int, minutes: float) -> None:
    config = tiny_run(folder, f"killed-{steps}", checkpoint_minutes=minutes)
    with monkeypatch.context() as patch:
        kill_after(patch, steps)
        with pytest.raises(Killed):
            train(config)
    resumed = Path(train(config)["run"])
    assert read_attempts(str(resumed))[-1].from_step > 0
    expected, expected_state = final_state(whole)
    found, state = final_state(resumed)
    assert found.keys() == expected.keys()
    assert any(name.startswith("momentum/") for name in found)
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert {k: state[k] for k in ("step", "updates", "epoch", "best_fitness")} == {
        k: expected_state[k] for k in ("step", "updates", "epoch", "best_fitness")
    }


def test_sigterm_writes_a_checkpoint_of_the_moment_and_the_same_command_goes_on(folder: Path, whole: Path, monkeypatch) -> None:
    config = tiny_run(folder, "preempted")
    learn = Learner.learn

    def learn_and_hear(self: Learner, *args: object, **kwargs: object) -> object:
        if self.step == 7:
            signal.raise_signal(signal.SIGTERM)
        return learn(self, *args, **kwargs)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", learn_and_hear)
        with pytest.raises(Preempted, match="the same command goes on from its newest checkpoint"):
            train(config)
    assert signal.getsignal(signal.SIGTERM) is before
    state = final_state(folder / "preempted")[1]
    assert state["step"] == 8 and from_json(state["seen"]).sum() == 8, "two steps of the second epoch"
    train(config)
    found, expected = final_state(folder / "preempted")[0], final_state(whole)[0]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    [first, second] = read_attempts(str(folder / "preempted"))
    assert (second.from_step, second.lost_steps, first.lost_steps) == (8, 0, 0)


def test_sigterm_between_epochs_of_one_step_is_heard(folder: Path, monkeypatch) -> None:
    config = tiny_run(folder, "short")
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, epochs=2, batch=21, nominal_batch=21))
    add = RunLogger.add

    def add_and_hear(self: RunLogger, row: dict, **kwargs: object) -> None:
        add(self, row, **kwargs)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLogger, "add", add_and_hear)
        with pytest.raises(Preempted):
            train(config)
    assert final_state(folder / "short")[1]["epoch"] == 1
    train(config)
    assert [row["epoch"] for row in read_metrics(str(folder / "short"))] == [1, 2]


@pytest.mark.parametrize("what", ["metrics.jsonl", "best/"])
def test_what_cannot_be_written_before_the_last_epoch_does_not_end_training(folder: Path, whole: Path, monkeypatch, caplog, what) -> None:
    write, failures = storage.write_bytes, [1]

    def fail_once(url: str, data: bytes) -> None:
        if what in url and failures:
            failures.pop()
            raise StorageError(f"{url}: cannot write it: No space left on device")
        write(url, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", fail_once)
        run = Path(train(tiny_run(folder, f"full-{len(what)}"))["run"])
    assert not failures and "No space left on device" in caplog.text
    assert [row["epoch"] for row in read_metrics(str(run))] == [1, 2, 3]
    found, expected = final_state(run)[0], final_state(whole)[0]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_folder_that_a_worker_does_not_see_is_told_before_training(folder: Path) -> None:
    context = prepare(tiny_run(folder, "elsewhere"), str(folder / "elsewhere"))
    with pytest.raises(ConfigError, match=r"run\.storage: found no config\.json in .*elsewhere on a worker's node, expected"):
        run_in_process(context)


def test_each_epoch_tells_that_it_learned_from_every_record(whole: Path) -> None:
    assert [row["records"] for row in read_metrics(str(whole))] == [21, 21, 21]


def test_a_run_folder_holds_what_people_look_at(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [("AP" in row) for row in rows] == [False, True, True]
    assert all(np.isfinite(row["loss"]) and row["images_per_s"] > 0 for row in rows)
    for picture in ("curves.png", "report/predictions.png", "report/precision_recall.png"):
        assert (whole / picture).read_bytes().startswith(b"\x89PNG")
    assert list((whole / "tensorboard").glob("events.*"))
    assert len(list((whole / "checkpoints").iterdir())) == 2


def test_the_published_weights_are_those_of_the_best_validation(whole: Path) -> None:
    _, info = load_weights(str(whole / "weights"))
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert info.metrics["AP"] == max(row.get("AP", -1) for row in rows)
    assert info.image_px == 64


def test_a_finished_run_answers_at_once(folder: Path, whole: Path, monkeypatch) -> None:
    kill_after(monkeypatch, 0)
    assert train(tiny_run(folder, "whole"))["weights"] == str(whole / "weights")


def test_another_seed_under_the_same_name_is_refused(folder: Path, whole: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.seed was 0 and is now 1"):
        train(tiny_run(folder, "whole", seed=1))


def test_another_setting_under_the_same_name_is_refused_by_its_dotted_name(folder: Path, whole: Path) -> None:
    config = tiny_run(folder, "whole")
    with pytest.raises(ConfigError, match=r"optim\.lr was 0\.01 and is now 0\.5"):
        train(dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=0.5)))


def test_a_run_of_an_older_version_goes_on_though_it_lacks_newer_settings(folder: Path, whole: Path) -> None:
    place = whole / "config.json"
    kept = place.read_text()
    older = json.loads(kept)
    del older["network"]["implicit"], older["optim"]["pretrained"]
    place.write_text(json.dumps(older))
    try:
        assert train(tiny_run(folder, "whole"))["weights"] == str(whole / "weights")
        plain = dataclasses.replace(TINY, implicit=ImplicitConfig(align="none"))
        with pytest.raises(ConfigError, match=r"network\.implicit\.align was 'add' and is now 'none'"):
            train(dataclasses.replace(tiny_run(folder, "whole"), network=plain))
    finally:
        place.write_text(kept)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(whole: Path) -> None:
    checkpoints = sorted((whole / "checkpoints").iterdir())
    tensors = checkpoints[-1] / "trainer.safetensors"
    good = tensors.read_bytes()
    tensors.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        assert final_state(whole)[1]["step"] == int(checkpoints[-2].name.partition("-")[0])
    finally:
        tensors.write_bytes(good)


def test_an_unfinished_checkpoint_does_not_count(whole: Path) -> None:
    newest = sorted((whole / "checkpoints").iterdir())[-1]
    half = newest.with_name("999999999")
    half.mkdir()
    (half / "state.json").write_bytes((newest / "state.json").read_bytes())
    try:
        assert final_state(whole)[1]["step"] == int(newest.name.partition("-")[0])
    finally:
        storage.delete(str(half))


def test_a_checkpoint_of_another_data_set_is_refused(folder: Path, monkeypatch) -> None:
    config = tiny_run(folder, "moved")
    with monkeypatch.context() as patch:
        kill_after(patch, 7)
        with pytest.raises(Killed):
            train(config)
    (folder / "moved" / "config.json").unlink()
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, train="scenes:22"))
    with pytest.raises(WeightsError, match=r"was trained on data set .* found"):
        train(other)


def test_a_run_starts_from_pretrained_weights_and_says_what_is_fresh(folder: Path, whole: Path, caplog) -> None:
    source, info = load_weights(str(whole / "weights"))
    renamed = dataclasses.replace(info, classes=("zeppelin", *info.classes[1:]))
    save_weights(str(folder / "renamed"), source, renamed)
    config = tiny_run(folder, "pretrained", seed=5)
    optim = dataclasses.replace(config.optim, pretrained=str(folder / "renamed"), epochs=1, lr=1e-12, warmup_epochs=0.0)
    with caplog.at_level("INFO"):
        run = Path(train(dataclasses.replace(config, optim=optim))["run"])
    network, _ = load_weights(str(run / "weights"))
    kept, theirs = (n.backbone.stem[1].conv.weight for n in (network, source))
    torch.testing.assert_close(kept, theirs, rtol=0, atol=1e-6)
    # One class of the data set is new to the weights; its outputs alone start fresh.
    found, expected = (n.head.levels[0].predict.weight.view(3, 5 + len(info.classes), -1) for n in (network, source))
    fresh = (found - expected).abs().amax(dim=(0, 2)) > 0.01
    assert fresh.tolist() == [False] * 5 + [True] + [False] * (len(info.classes) - 1)
    said = next(r.getMessage() for r in caplog.records if "event=pretrained" in r.getMessage())
    assert f"classes_fresh='{info.classes[0]}'" in said
    assert any("event=outputs_reinitialised" in r.getMessage() and "head.levels.0.predict.weight" in r.getMessage() for r in caplog.records)
    assert any("origin=pretrained" in r.getMessage() for r in caplog.records)


def test_a_run_goes_on_without_the_weights_that_it_started_from(folder: Path, whole: Path, monkeypatch) -> None:
    shutil.copytree(whole / "weights", folder / "origin")
    config = tiny_run(folder, "goes-on")
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, pretrained=str(folder / "origin")))
    with monkeypatch.context() as patch:
        kill_after(patch, 8)
        with pytest.raises(Killed):
            train(config)
    shutil.rmtree(folder / "origin")
    assert final_state(Path(train(config)["run"]))[1]["epoch"] == 3


def test_pretrained_weights_of_another_network_are_refused_before_training(folder: Path, whole: Path) -> None:
    config = tiny_run(folder, "misfit")
    config = dataclasses.replace(
        config,
        network=dataclasses.replace(TINY, neck_depth=2),
        optim=dataclasses.replace(config.optim, pretrained=str(whole / "weights")),
    )
    with pytest.raises(WeightsError, match=r"network\.neck_depth: found 1, expected 2"):
        train(config)


def test_a_task_without_anything_to_learn_from_is_refused(folder: Path) -> None:
    url = str(folder / "alone")
    pack_scenes(url, 2, seed=0)
    scenes_set = open_dataset(url)
    write_dataset(dataclasses.replace(scenes_set, url=url, image_classes=()))
    config = tiny_run(folder, "labels")
    network = dataclasses.replace(config.network, tasks=("detect", "classify"))
    config = dataclasses.replace(config, network=network, data=dataclasses.replace(config.data, train=url, val=url))
    with pytest.raises(DataError, match=r"expected some for network.tasks: classify too"):
        open_datasets(config)
