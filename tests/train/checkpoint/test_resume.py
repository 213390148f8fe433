"""Exact resume in this process: after kills, stop signals, failed writes, damaged checkpoints and an upgrade."""

import dataclasses
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiny_run import TINY, assert_equal_tensors, final_state, tiny_run, train_until_killed
from yolor_ray.cluster.stop_signal import ProcessStopSignal
from yolor_ray.config import (
    ImplicitConfig,
    renamed,
)
from yolor_ray.data.loading.epoch_ledger import from_json
from yolor_ray.errors import ConfigError, Preempted, StorageError, WeightsError
from yolor_ray.io import manifest, storage
from yolor_ray.train.checkpoint.attempts import read_attempts
from yolor_ray.train.learner import Learner
from yolor_ray.train.run import train
from yolor_ray.train.run_log import RunLogger, read_metrics

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize(("steps", "minutes"), [(3, 0.0), (6, 15.0), (8, 0.0), (11, 0.0)])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    folder: Path, uninterrupted: Path, monkeypatch, steps: int, minutes: float
) -> None:
    config = tiny_run(folder, f"killed-{steps}", checkpoint_minutes=minutes)
    train_until_killed(config, monkeypatch, steps)
    resumed = Path(train(config)["run"])
    assert read_attempts(str(resumed))[-1].from_step > 0
    assert_equal_tensors(resumed, uninterrupted)
    tensors, state = final_state(resumed)
    assert any(name.startswith("optimizer/exp_avg/") for name in tensors)
    expected_state = final_state(uninterrupted)[1]
    for key in ("step", "updates", "epoch", "best_fitness"):
        assert state[key] == expected_state[key], key


def test_a_run_on_equal_shares_of_two_datasets_resumes_exactly(folder: Path, monkeypatch) -> None:
    data = dataclasses.replace(tiny_run(folder, "mixed").data, train="scenes:17,scenes:5", mix="equal")
    configs = [dataclasses.replace(tiny_run(folder, name, checkpoint_minutes=0.0), data=data) for name in ("mixed-whole", "mixed-killed")]
    train(configs[0])
    for steps in (4, 13):
        train_until_killed(configs[1], monkeypatch, steps)
    train(configs[1])
    assert_equal_tensors(folder / "mixed-killed", folder / "mixed-whole")
    assert [row["records"] for row in read_metrics(str(folder / "mixed-killed"))] == [22, 22, 22]


def test_a_run_resumes_with_recomputed_activations_to_the_same_weights(folder: Path, uninterrupted: Path, monkeypatch) -> None:
    config = tiny_run(folder, "recomputed", checkpoint_minutes=0.0)
    train_until_killed(config, monkeypatch, 5)
    network_of_learner = []
    learn = Learner.learn

    def note_network(self: Learner, *args: object, **kwargs: object) -> object:
        network_of_learner.append(self.network)
        return learn(self, *args, **kwargs)

    monkeypatch.setattr(Learner, "learn", note_network)
    train(dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, recompute_activations=True)))
    assert network_of_learner[0].backbone.recompute and network_of_learner[0].neck.recompute
    assert_equal_tensors(folder / "recomputed", uninterrupted)


@pytest.fixture
def default_handlers() -> Iterator[None]:
    """Give the signals the handlers of a job in the foreground: a shell starts background jobs with an ignored SIGINT."""
    defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("default_handlers")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_writes_a_checkpoint_of_the_step_and_the_same_command_resumes(
    folder: Path, uninterrupted: Path, monkeypatch, capfd, name: str
) -> None:
    config, number = tiny_run(folder, f"stopped-{name}"), getattr(signal, name)
    learn = Learner.learn

    def learn_and_preempt(self: Learner, *args: object, **kwargs: object) -> object:
        if self.step == 7:
            signal.raise_signal(number)
        return learn(self, *args, **kwargs)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", learn_and_preempt)
        with pytest.raises(Preempted, match=f"{name} ended training; the same command resumes from the newest checkpoint") as error:
            train(config)
    assert error.value.signal_name == name and signal.getsignal(number) is before
    assert f"event=stop_signal signal={name} next='a checkpoint, then the end" in capfd.readouterr().err
    state = final_state(folder / config.run.name)[1]
    assert state["step"] == 8 and from_json(state["seen"]).sum() == 8, "two steps of the second epoch"
    train(config)
    assert_equal_tensors(folder / config.run.name, uninterrupted)
    [first, second] = read_attempts(str(folder / config.run.name))
    assert (second.from_step, second.lost_steps, first.lost_steps) == (8, 0, 0)


@pytest.mark.usefixtures("default_handlers")
@pytest.mark.parametrize(("name", "error"), [("SIGINT", KeyboardInterrupt), ("SIGTERM", SystemExit)])
def test_a_second_signal_ends_training_at_once(name: str, error: type[BaseException]) -> None:
    with ProcessStopSignal() as stop_signal, pytest.raises(error):
        signal.raise_signal(getattr(signal, name))
        assert stop_signal() == name
        signal.raise_signal(getattr(signal, name))


def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ProcessStopSignal() as stop_signal:
            signal.raise_signal(signal.SIGHUP)
            assert stop_signal() == ""
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigterm_stops_a_run_whose_epochs_have_one_step(folder: Path, monkeypatch) -> None:
    config = tiny_run(folder, "short")
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, epochs=2, batch=21, nominal_batch=21))
    log_epoch = RunLogger.log_epoch

    def log_and_preempt(self: RunLogger, row: dict, **kwargs: object) -> None:
        log_epoch(self, row, **kwargs)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLogger, "log_epoch", log_and_preempt)
        with pytest.raises(Preempted):
            train(config)
    assert final_state(folder / "short")[1]["epoch"] == 1
    train(config)
    assert [row["epoch"] for row in read_metrics(str(folder / "short"))] == [1, 2]


@pytest.mark.parametrize("file", ["metrics.jsonl", "best/"])
def test_a_failed_write_before_the_last_epoch_does_not_end_training(
    folder: Path, uninterrupted: Path, monkeypatch, caplog, file: str
) -> None:
    write, failures = storage.write_bytes, [1]

    def fail_once(url: str, data: bytes) -> None:
        if file in url and failures:
            failures.pop()
            raise StorageError(f"{url}: cannot write it: No space left on device")
        write(url, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", fail_once)
        patch.setattr(manifest, "write_bytes", fail_once)
        run = Path(train(tiny_run(folder, f"full-{len(file)}"))["run"])
    assert not failures and "No space left on device" in caplog.text
    assert [row["epoch"] for row in read_metrics(str(run))] == [1, 2, 3]
    assert_equal_tensors(run, uninterrupted)


def test_a_run_of_an_older_version_resumes_though_it_lacks_newer_settings(folder: Path, uninterrupted: Path) -> None:
    file = uninterrupted / "config.json"
    current = file.read_text()
    older = json.loads(current)
    del older["network"]["implicit"], older["optim"]["pretrained"]
    file.write_text(json.dumps(older))
    try:
        assert train(tiny_run(folder, "uninterrupted"))["weights"] == str(uninterrupted / "weights")
        plain = dataclasses.replace(TINY, implicit=ImplicitConfig(align="none"))
        with pytest.raises(ConfigError, match=r"network\.implicit\.align was 'add' and is now 'none'"):
            train(dataclasses.replace(tiny_run(folder, "uninterrupted"), network=plain))
    finally:
        file.write_text(current)


def rename_to_version_0_1(run: Path) -> None:
    """Rename the settings, files and keys of a run's folder to those of version 0.1."""
    config = json.loads((run / "config.json").read_text())
    for new, old in {new: old for old, new in renamed.SETTINGS.items()}.items():
        (section, key), (_, old_key) = new.split("."), old.split(".")
        config[section][old_key] = config[section].pop(key)
    (run / "config.json").write_text(json.dumps(config))
    rename_keys(run, "attempts.jsonl", renamed.RECORD_FIELDS)
    rename_keys(run, "heartbeat.json", renamed.RECORD_FIELDS)
    rename_keys(run, "metrics.jsonl", renamed.METRICS)
    for checkpoint in (run / "checkpoints").iterdir():
        files = manifest.read_published(str(checkpoint))
        state = json.loads(files["state.json"])
        state["rows"] = [with_old_keys(row, renamed.METRICS) for row in state["rows"]]
        manifest.publish(str(checkpoint), files | {"state.json": json.dumps(state).encode()})


def rename_keys(run: Path, name: str, keys: dict[str, str]) -> None:
    rows = [with_old_keys(json.loads(line), keys) for line in (run / name).read_text().splitlines()]
    (run / name).unlink()
    (run / renamed.FILES.get(name, name)).write_text("".join(json.dumps(row) + "\n" for row in rows))


def with_old_keys(row: dict, keys: dict[str, str]) -> dict:
    old_keys = {new: old for old, new in keys.items()}
    return {old_keys.get(key, key): value for key, value in row.items()}


def test_a_run_of_version_0_1_resumes_to_the_same_end(folder: Path, uninterrupted: Path, monkeypatch, caplog) -> None:
    config = tiny_run(folder, "old", checkpoint_minutes=0.0)
    train_until_killed(config, monkeypatch, 8)
    run = folder / "old"
    rename_to_version_0_1(run)
    assert [set(row) & {"cls", "classes"} for row in read_metrics(str(run))] == [{"cls"}]
    train(config)
    assert_equal_tensors(run, uninterrupted)
    assert [set(row) & {"cls", "classes"} for row in read_metrics(str(run))] == [{"cls"}] * 3
    assert [row.attempt for row in read_attempts(str(run))] == [1, 2]
    assert "event=setting_renamed old=optim.final_lr new=optim.final_lr_ratio" in caplog.text
    assert "event=file_renamed old=lives.jsonl new=attempts.jsonl" in caplog.text


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(uninterrupted: Path) -> None:
    checkpoints = sorted((uninterrupted / "checkpoints").iterdir())
    tensors = checkpoints[-1] / "trainer.safetensors"
    intact = tensors.read_bytes()
    tensors.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    try:
        assert final_state(uninterrupted)[1]["step"] == int(checkpoints[-2].name.partition("-")[0])
    finally:
        tensors.write_bytes(intact)


def test_a_run_goes_on_where_its_folder_was_moved_to(folder: Path, uninterrupted: Path, monkeypatch) -> None:
    config = tiny_run(folder, "moved-away", checkpoint_minutes=0.0)
    train_until_killed(config, monkeypatch, 8)
    shutil.move(folder / "moved-away", folder / "elsewhere" / "other-name")
    moved = dataclasses.replace(config.run, storage=str(folder / "elsewhere"), name="other-name")
    train(dataclasses.replace(config, run=moved))
    assert read_attempts(str(folder / "elsewhere" / "other-name"))[-1].from_step > 0
    assert_equal_tensors(folder / "elsewhere" / "other-name", uninterrupted)


def test_an_unfinished_checkpoint_does_not_count(uninterrupted: Path) -> None:
    newest = sorted((uninterrupted / "checkpoints").iterdir())[-1]
    unfinished = newest.with_name("999999999")
    unfinished.mkdir()
    (unfinished / "state.json").write_bytes((newest / "state.json").read_bytes())
    try:
        assert final_state(uninterrupted)[1]["step"] == int(newest.name.partition("-")[0])
    finally:
        storage.delete(str(unfinished))


def test_a_checkpoint_of_another_dataset_is_refused(folder: Path, monkeypatch) -> None:
    config = tiny_run(folder, "moved")
    train_until_killed(config, monkeypatch, 7)
    (folder / "moved" / "config.json").unlink()
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, train="scenes:22"))
    with pytest.raises(WeightsError, match=r"was trained on dataset .* found"):
        train(other)


def test_a_run_resumes_without_its_pretrained_weights(folder: Path, uninterrupted: Path, monkeypatch) -> None:
    shutil.copytree(uninterrupted / "weights", folder / "origin")
    config = tiny_run(folder, "resumed")
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, pretrained=str(folder / "origin")))
    train_until_killed(config, monkeypatch, 8)
    shutil.rmtree(folder / "origin")
    assert final_state(Path(train(config)["run"]))[1]["epoch"] == 3
