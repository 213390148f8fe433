"""A killed and resumed run in a real MLflow server, in an offline run of W&B, and in TensorBoard; loggers that fail."""

import importlib.machinery
import importlib.util
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mlflow_server import mlflow_server
from tiny_run import tiny_run, train_until_killed
from undrawn import blank_pictures
from wandb_file import history, records
from yolor_ray.config import TrainConfig
from yolor_ray.errors import ConfigError, IntegrityError
from yolor_ray.io import manifest
from yolor_ray.train.loggers import follower
from yolor_ray.train.loggers.epoch_logger import Outcome, parameters
from yolor_ray.train.loggers.follower import LOGGERS_FILE, Follower, check_loggers
from yolor_ray.train.run import train
from yolor_ray.train.run_log import read_metrics

SECRETS = ("AWS_SECRET_ACCESS_KEY", "MY_API_TOKEN")


@dataclass
class Logged:
    """A finished run, and what its loggers have."""

    config: TrainConfig
    run: Path
    url: str
    server: Path
    wandb: Path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    """Kill a run in its third epoch, after a checkpoint of the second, and resume it."""
    folder = tmp_path_factory.mktemp("loggers")
    wandb = folder / "wandb-files"
    with pytest.MonkeyPatch.context() as patch, mlflow_server(folder / "server", free_port()) as url:
        for name in SECRETS:
            patch.setenv(name, f"canary-{secrets.token_hex(12)}")
        patch.setenv("MLFLOW_TRACKING_URI", url)
        patch.setenv("WANDB_MODE", "offline")
        for name in ("", "DATA_", "CACHE_", "CONFIG_", "ARTIFACT_"):
            (wandb / name).mkdir(parents=True, exist_ok=True)
            patch.setenv(f"WANDB_{name}DIR", str(wandb / name))
        config = tiny_run(folder, "photos", loggers=("tensorboard", "mlflow", "wandb"))
        with blank_pictures():
            train_until_killed(config, patch, 13)
            finished = Path(train(config)["run"])
        yield Logged(config, finished, url, folder / "server", wandb)


def test_a_resumed_run_continues_its_run_of_mlflow(run: Logged) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(run.url)
    experiment = client.get_experiment_by_name("yolor_ray")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params == {name: str(value) for name, value in parameters(run.config).items()}
    assert found.data.params["optim.lr"] == "0.02" and found.data.params["run.loggers"] == "tensorboard mlflow wandb"
    rows = read_metrics(str(run.run))
    for name in rows[-1].keys() - {"epoch"}:
        steps = [metric.step for metric in client.get_metric_history(found.info.run_id, name)]
        assert steps == [row["epoch"] for row in rows if name in row], name
    artifacts = [info.path for folder in ("report", "weights") for info in client.list_artifacts(found.info.run_id, folder)]
    assert {"report/index.html", "report/metrics.json", "weights/weights.safetensors", "weights/README.md"} <= set(artifacts)
    assert json.loads((run.run / LOGGERS_FILE).read_text())["mlflow"] == {"id": found.info.run_id, "finished": True}


def test_a_resumed_run_continues_its_run_of_wandb(run: Logged) -> None:
    killed, resumed = sorted(run.wandb.rglob("*.wandb"), key=lambda path: path.stat().st_mtime)
    assert killed.stem == resumed.stem
    rows = history(resumed)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[2]["AP"] == read_metrics(str(run.run))[2]["AP"]
    found = list(records(resumed))
    settings = {item.key: json.loads(item.value_json) for record in found for item in record.config.update}
    assert settings["optim.lr"] == 0.02 and settings["run.loggers"] == "tensorboard mlflow wandb"
    assert {record.request.log_artifact.artifact.type for record in found} | {record.artifact.type for record in found} >= {
        "report",
        "model",
    }


def test_tensorboard_has_each_epoch_once(run: Logged) -> None:
    events = EventAccumulator(str(run.run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert [event.step for event in events.Scalars("AP")] == [2, 3]


def test_no_logger_has_a_secret_of_the_environment(run: Logged) -> None:
    canaries = [os.environ[name].encode() for name in SECRETS]
    files = [path for folder in (run.server, run.wandb) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files for canary in canaries if canary in path.read_bytes()]


def test_a_secret_in_a_setting_is_no_parameter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "canary-0123456789")
    assert parameters(tiny_run(tmp_path, "a-canary-0123456789"))["run.name"] == "a-<MY_API_TOKEN>"


def test_a_finished_run_is_not_logged_again(run: Logged) -> None:
    before = (run.run / LOGGERS_FILE).stat().st_mtime_ns
    train(run.config)
    assert (run.run / LOGGERS_FILE).stat().st_mtime_ns == before


def test_a_run_that_the_server_does_not_have_is_refused(run: Logged, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / LOGGERS_FILE).write_text(json.dumps({"mlflow": {"id": "0" * 32, "finished": False}}))
    with pytest.raises(ConfigError, match=f"run.loggers: mlflow: run {'0' * 32} cannot be continued at {run.url}.*MLFLOW_TRACKING_URI"):
        train(tiny_run(tmp_path, "other", loggers=("mlflow",)))


def test_a_server_that_does_not_answer_is_told_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"run\.loggers: mlflow: no run can be created at http://127.*expected the server"):
        train(tiny_run(tmp_path, "unreachable", loggers=("mlflow",)))
    assert not any(path.is_file() for path in (tmp_path / "unreachable").rglob("*"))


def test_wandb_that_refuses_is_told_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**_: object) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"run\.loggers: wandb: found no way .* No API key configured\.; expected WANDB_API_KEY"):
        train(tiny_run(tmp_path, "keyless", loggers=("wandb",)))
    assert not (tmp_path / "keyless" / "config.json").exists()


@pytest.mark.parametrize("spec", [None, importlib.machinery.ModuleSpec("wandb", None)])
def test_a_missing_library_is_told_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: object) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: spec if name == "wandb" else find_spec(name, *rest))
    with pytest.raises(ConfigError, match=r"run\.loggers: found wandb, and no package wandb, expected it; .* requirements-loggers\.txt"):
        train(tiny_run(tmp_path, "missing", loggers=("tensorboard", "wandb")))
    assert not (tmp_path / "missing").exists()
    check_loggers(("tensorboard",))


class Recorder:
    """A logger that keeps the epochs, and fails when it is told to."""

    id = "r1"

    def __init__(self) -> None:
        self.epochs, self.outcome, self.files, self.fails = 0, None, [], False
        self.called = threading.Event()

    def log_epochs(self, rows):
        self.called.set()
        if self.fails:
            raise RuntimeError("no route")
        self.epochs = len(rows)

    def finish(self, outcome, files):
        self.outcome, self.files = outcome, sorted(path.name for path in files.iterdir())


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(follower, "_open_logger", lambda *_: made)
    monkeypatch.setattr(follower, "POLL_S", 0.01)
    return made


MLFLOW = SimpleNamespace(run=SimpleNamespace(loggers=("mlflow",)))


def follow(folder: Path, recorder: Recorder, outcome: Outcome) -> None:
    """Follow a run whose epochs end while the loggers run."""
    followed = Follower(str(folder))
    followed.open(MLFLOW)
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    recorder.called.clear()
    assert not followed._loggers or recorder.called.wait(20)
    followed.close(outcome)


def test_a_failing_logger_is_told_once_and_gets_the_epochs_later(tmp_path: Path, recorder: Recorder, caplog) -> None:
    recorder.fails = True
    for name in ("report", "weights"):
        manifest.publish(str(tmp_path / name), {f"{name}.txt": b"x"})
    (tmp_path / "weights" / "manifest.json").rename(tmp_path / "manifest")
    follow(tmp_path, recorder, Outcome.STOPPED)
    assert caplog.text.count("event=logger_failed logger='mlflow' error='no route'") == 1
    (tmp_path / "manifest").rename(tmp_path / "weights" / "manifest.json")
    follow(tmp_path, recorder, Outcome.FINISHED)
    assert (recorder.epochs, recorder.files) == (0, ["report", "weights"])
    recorder.fails = False
    follow(tmp_path, recorder, Outcome.FINISHED)
    assert (recorder.epochs, recorder.outcome) == (1, Outcome.FINISHED)
    # The run there is complete, and the same command does not touch it.
    recorder.outcome = None
    follow(tmp_path, recorder, Outcome.FINISHED)
    assert recorder.outcome is None


@pytest.mark.parametrize("content", ["{", "[]", '{"mlflow": "id"}'])
def test_a_damaged_state_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / LOGGERS_FILE).write_text(content)
    with pytest.raises(IntegrityError, match=r"loggers\.json: found no state of the loggers .* delete it to log the run anew"):
        Follower(str(tmp_path))
