"""Events of Ray Tune: the log of the trials, the end of a study by a stop signal, and trials that Ray kills for memory."""

from types import SimpleNamespace

import pytest
import ray
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.tune.execution import tune_controller

from stop_actor import StopActor
from yolor_ray.cluster import ray_internals
from yolor_ray.cluster.stop_signal import never_stop
from yolor_ray.config import OptimConfig, RunConfig, TrainConfig
from yolor_ray.errors import Preempted, SupersededError
from yolor_ray.study import trial_events
from yolor_ray.study.trial_events import StudyStopper, TrialLogger


@pytest.fixture(autouse=True)
def answers_at_once(monkeypatch) -> None:
    monkeypatch.setattr(ray, "get", lambda answer: answer)


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return TrainConfig(optim=OptimConfig(epochs=4), run=RunConfig(storage=f"{tmp_path}/trials", name="a"))


class Trial:
    """A trial of Tune."""

    trial_id, config, error_file = "7", {}, None

    def __init__(self, name: str, status: str = "RUNNING", **result: object) -> None:
        self.name, self.status, self.last_result = name, status, result or {"epoch": 4, "AP": 0.3}

    def __str__(self) -> str:
        return self.name


def test_tunes_events_reach_the_log_of_the_trials(config, tmp_path):
    error_file = tmp_path / "error.txt"
    error_file.write_text("Traceback\n\nValueError: no space left\n\n")
    events = []

    class Log:
        def record_start(self, *values: object) -> None:
            events.append(("start", *values))

        def record_retry(self, *values: object) -> None:
            events.append(("retry", *values))

        def record_end(self, trial_id: str, ended: TrainConfig, outcome: object) -> None:
            events.append(("end", trial_id, ended.run.name, outcome.metrics, outcome.reason))

    trial, logger = Trial("a"), TrialLogger(lambda values: config, Log(), 1, {"CPU": 1})
    logger.on_trial_start(0, [], trial)
    logger.on_trial_complete(0, [], trial)
    trial.error_file, trial.last_result = str(error_file), None
    logger.on_trial_recover(0, [], trial)
    logger.on_trial_error(0, [], trial)
    assert events == [
        ("start", "7", "a"),
        ("end", "7", "a", {"epoch": 4, "AP": 0.3}, ""),
        ("retry", "a", "ValueError: no space left"),
        ("end", "7", "a", {}, "ValueError: no space left"),
    ]


def test_a_trial_that_another_job_continues_ends_the_study_and_is_no_failed_trial(config):
    log = SimpleNamespace(record_end=lambda *_: pytest.fail("the other job trains the trial"))
    trial_logger = TrialLogger(lambda values: config, log, 2, {"CPU": 1})
    stopper = StudyStopper(never_stop, StopActor(), trial_logger)
    assert not stopper.stop_all()
    trial_logger.on_trial_complete(0, [], Trial("a", superseded="a: attempt 1 found attempt 2", epoch=0, AP=-1.0))
    assert stopper.stop_all()
    with pytest.raises(SupersededError, match="attempt 1 found attempt 2"):
        stopper.raise_if_stopped()


def test_a_stop_signal_ends_a_study_when_each_of_its_running_trials_has_a_checkpoint(monkeypatch, config):
    received, stop_actor = [""], StopActor()
    log = SimpleNamespace(record_start=lambda *_: None, record_end=lambda *_: None)
    trial_logger = TrialLogger(lambda values: config, log, 2, {"CPU": 1})
    stopper = StudyStopper(lambda: received[0], stop_actor, trial_logger)
    for name in ("a", "b"):
        trial_logger.on_trial_start(0, [], Trial(name))
    assert not stopper.stop_all() and not stop_actor.told
    received[0] = "SIGTERM"
    stop_actor.stopped.add("a")
    assert not stopper.stop_all() and not stopper.stop_all() and stop_actor.told == ["SIGTERM"]
    trial_logger.on_trial_complete(0, [], Trial("b"))
    trial_logger.on_trial_start(0, [], Trial("c"))
    assert not stopper.stop_all(), "the place of a finished trial was given to the next one"
    stop_actor.stopped.add("c")
    assert stopper.stop_all()
    with pytest.raises(Preempted, match="SIGTERM ended the study; the same command resumes") as error:
        stopper.raise_if_stopped()
    assert error.value.signal_name == "SIGTERM"


@pytest.mark.parametrize("busy", [True, False])
def test_trials_that_wait_for_resources_are_logged(monkeypatch, caplog, config, busy):
    """Without the resources of other jobs, a trial waits for the start of its process only."""
    clock = [0.0]
    monkeypatch.setattr(trial_events, "is_free", lambda demand: not busy)
    monkeypatch.setattr(trial_events.time, "monotonic", lambda: clock[0])
    trial_logger = TrialLogger(lambda values: config, SimpleNamespace(record_start=lambda *_: None), 2, {"CPU": 1})
    trial_logger.on_trial_start(0, [], Trial("a"))
    trials_of_study = [Trial("a"), Trial("b", "PENDING"), Trial("c", "PENDING")]
    for second in range(60):
        clock[0] = second
        trial_logger.on_step_end(0, trials_of_study)
    lines = [line for line in caplog.messages if "event=trials_wait waiting=2 running=1 concurrent=2" in line]
    assert len(lines) == (2 if busy else 0), "after 8 s, and then every 30 s"


MEMORY_ERROR = (
    "10 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2) was 11.74GB used / 23.54GB"
)


def test_a_trial_whose_process_ray_kills_for_memory_is_a_failed_trial_and_does_not_end_the_study():
    ray_internals.retry_trials_killed_for_memory()
    failed: list[object] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda actor, error: failed.append(error))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=lambda actor, error: failed.append(error))
    manager = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    error = ray.exceptions.OutOfMemoryError(MEMORY_ERROR)
    RayActorManager._actor_task_failed(manager, task, error)
    assert failed == [error, error]
    assert isinstance(error, tune_controller.RayActorError), "Tune checks the type once more"


def test_the_reason_of_a_trial_killed_for_memory_says_what_takes_less(config, tmp_path):
    trial, retries = Trial("a"), []
    trial.error_file = str(tmp_path / "error.txt")
    (tmp_path / "error.txt").write_text(f"ray.exceptions.OutOfMemoryError: {MEMORY_ERROR}\nRefer to the documentation.")
    log = SimpleNamespace(record_retry=lambda name, reason: retries.append((name, reason)))
    TrialLogger(lambda values: config, log, 1, {"CPU": 1}).on_trial_recover(0, [], trial)
    [(name, reason)] = retries
    assert name == "a" and reason.startswith("Ray killed its process because the memory of the node was full") and "--optim.batch" in reason
