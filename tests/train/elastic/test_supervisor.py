"""Restarts on a simulated cluster: the ends of a run, and the failures that start another attempt."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.train import ControllerError, WorkerGroupError

from yolor_ray.cluster.ray_internals import (
    HUNG_WORKER_TIMEOUT,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from yolor_ray.cluster.stop_signal import never_stop
from yolor_ray.config import ClusterConfig, TrainConfig
from yolor_ray.errors import DataError, IntegrityError, LoaderError, StorageError, TrainingError
from yolor_ray.io import manifest
from yolor_ray.train.context import TrainContext
from yolor_ray.train.elastic import supervisor
from yolor_ray.train.loop import TrainOutcome

LOST = WorkerGroupError("worker 0 died", {0: RuntimeError("connection closed by peer")})


def ended_monitor() -> SimpleNamespace:
    return SimpleNamespace(scales_up=False, nodes={0: "a1", 1: "b2"}, free_resources=lambda: None)


@pytest.fixture
def capacities(monkeypatch) -> Iterator[list[int]]:
    """Return the workers that the cluster can schedule for each attempt, which a test may change."""
    capacities = [2] * 20
    stop_actor = SimpleNamespace(reason=SimpleNamespace(remote=lambda: "node abc is being drained"))
    monkeypatch.setenv(HUNG_WORKER_TIMEOUT, "60.0")
    monkeypatch.setattr(supervisor, "wait_for_capacity", lambda cluster, stop_signal: capacities.pop(0))
    monkeypatch.setattr(supervisor, "start_stop_signal_actor", lambda: stop_actor)
    monkeypatch.setattr(supervisor, "ClusterMonitor", lambda *_: nullcontext(ended_monitor()))
    monkeypatch.setattr(supervisor.ray, "kill", lambda actor: None)
    monkeypatch.setattr(supervisor.ray, "get", lambda answer: answer)
    monkeypatch.setattr(supervisor, "_pause", lambda seconds, stop_signal: None)
    yield capacities


def simulate_attempts(run: Path, *ends: object) -> tuple[list[tuple[int, str]], Callable]:
    """Return the workers and restart reason of each attempt, and a function that ends attempts in this order.

    An int is a checkpoint of that step before a lost worker.
    """
    attempts: list[tuple[int, str]] = []
    ends_left = list(ends)

    def run_attempt(context: TrainContext, workers: int, stop_actor: object) -> object:
        attempts.append((workers, context.restart_reason))
        end = ends_left.pop(0)
        if isinstance(end, int):
            manifest.publish(str(run / "checkpoints" / f"{end:09d}-0001"), {})
            end = LOST
        if isinstance(end, Exception):
            raise end
        return end

    return attempts, run_attempt


def make_context(run: Path, max_failures: int = 1) -> TrainContext:
    config = TrainConfig(cluster=ClusterConfig(workers="1-2", max_failures=max_failures))
    return TrainContext(config, str(run), None, None, None, None)  # type: ignore[arg-type]


def worker_error(error: Exception) -> WorkerGroupError:
    return WorkerGroupError("failed", {0: ray.exceptions.RayTaskError("f", "trace", error)})


def test_a_lost_worker_starts_another_attempt_with_as_many_workers_as_fit(tmp_path: Path, capacities: list[int]) -> None:
    capacities[:2] = [2, 1]
    attempts, run_attempt = simulate_attempts(tmp_path, LOST, TrainOutcome.DONE)
    assert supervisor.run_with_restarts(make_context(tmp_path), run_attempt, never_stop) is TrainOutcome.DONE
    assert [workers for workers, _ in attempts] == [2, 1]
    assert attempts[0][1] == "" and "worker 0 died" in attempts[1][1]


def test_failures_without_a_checkpoint_between_them_end_the_run(tmp_path: Path, capacities: list[int]) -> None:
    attempts, run_attempt = simulate_attempts(tmp_path, LOST, LOST, TrainOutcome.DONE)
    with pytest.raises(TrainingError, match=r"(?s)2 failures in a row without a new checkpoint, the last: .*worker 0 died"):
        supervisor.run_with_restarts(make_context(tmp_path), run_attempt, never_stop)
    assert len(attempts) == 2


def test_unfinished_checkpoints_do_not_count(tmp_path: Path, capacities: list[int]) -> None:
    def run_attempt(context: TrainContext, workers: int, stop_actor: object) -> object:
        (tmp_path / "checkpoints" / f"{len(list(tmp_path.rglob('*'))):09d}-0001").mkdir(parents=True)
        raise LOST

    with pytest.raises(TrainingError, match="2 failures in a row"):
        supervisor.run_with_restarts(make_context(tmp_path), run_attempt, never_stop)


def test_a_run_with_a_checkpoint_between_its_failures_continues(tmp_path: Path, capacities: list[int]) -> None:
    attempts, run_attempt = simulate_attempts(tmp_path, 1, 2, 3, 4, TrainOutcome.DONE)
    assert supervisor.run_with_restarts(make_context(tmp_path), run_attempt, never_stop) is TrainOutcome.DONE
    assert len(attempts) == 5


def test_an_attempt_that_a_stop_signal_ended_is_no_failure(tmp_path: Path, capacities: list[int]) -> None:
    attempts, run_attempt = simulate_attempts(tmp_path, *[TrainOutcome.STOPPED] * 4, TrainOutcome.DONE)
    assert supervisor.run_with_restarts(make_context(tmp_path, max_failures=0), run_attempt, never_stop) is TrainOutcome.DONE
    assert [reason for _, reason in attempts] == ["", *["node abc is being drained"] * 4]


def test_an_attempt_gets_the_number_of_earlier_scale_ups(tmp_path: Path, capacities: list[int], monkeypatch) -> None:
    """Attempts with one worker scale up; attempts with two workers stop for other reasons."""
    scale_ups_seen: list[int] = []

    def monitor(actor: object, cluster: ClusterConfig, workers: int, sigterm: object, scale_ups: int) -> AbstractContextManager:
        scale_ups_seen.append(scale_ups)
        return nullcontext(SimpleNamespace(scales_up=workers == 1))

    monkeypatch.setattr(supervisor, "ClusterMonitor", monitor)
    capacities[:5] = [1, 2, 1, 1, 2]
    _, run_attempt = simulate_attempts(tmp_path, *[TrainOutcome.STOPPED] * 4, TrainOutcome.DONE)
    supervisor.run_with_restarts(make_context(tmp_path), run_attempt, never_stop)
    assert scale_ups_seen == [0, 1, 1, 2, 3]


def test_capacity_that_another_job_took_is_no_failure(tmp_path: Path, capacities: list[int]) -> None:
    timeout = ControllerError(WorkerGroupStartupTimeoutError(2))
    attempts, run_attempt = simulate_attempts(tmp_path, timeout, timeout, LOST, timeout, TrainOutcome.DONE)
    assert supervisor.run_with_restarts(make_context(tmp_path), run_attempt, never_stop) is TrainOutcome.DONE
    reasons = [reason for _, reason in attempts]
    assert reasons[:3] == [""] * 3, "a run's first attempt has no reason, and the first of another job says so itself"
    assert "worker 0 died" in reasons[3] and reasons[4] == reasons[3]


def test_a_failure_while_workers_connect_is_retried(tmp_path: Path, capacities: list[int]) -> None:
    attempts, run_attempt = simulate_attempts(tmp_path, ControllerError(RuntimeError("gloo cannot connect")), TrainOutcome.DONE)
    assert supervisor.run_with_restarts(make_context(tmp_path), run_attempt, never_stop) is TrainOutcome.DONE
    assert "gloo cannot connect" in attempts[1][1]


def test_a_user_error_ends_the_run_at_once_and_unwrapped(tmp_path: Path, capacities: list[int]) -> None:
    cause = ray.exceptions.RayTaskError("f", "trace", DataError("bad shard"))
    failure = WorkerGroupError("failed", {0: RuntimeError("peer"), 1: cause})
    attempts, run_attempt = simulate_attempts(tmp_path, failure, TrainOutcome.DONE)
    with pytest.raises(DataError, match="bad shard"):
        supervisor.run_with_restarts(make_context(tmp_path), run_attempt, never_stop)
    assert len(attempts) == 1


@pytest.mark.parametrize("error", [StorageError("s3://b/x: cannot write it"), LoaderError("the process ended by SIGKILL")])
def test_an_error_that_may_pass_is_retried_only_after_a_first_checkpoint(tmp_path: Path, capacities: list[int], error: Exception) -> None:
    failure = worker_error(error)
    _, run_attempt = simulate_attempts(tmp_path, failure)
    with pytest.raises(type(error), match=str(error)):
        supervisor.run_with_restarts(make_context(tmp_path), run_attempt, never_stop)
    attempts, run_attempt = simulate_attempts(tmp_path, 1, failure, TrainOutcome.DONE)
    assert supervisor.run_with_restarts(make_context(tmp_path, max_failures=2), run_attempt, never_stop) is TrainOutcome.DONE
    assert attempts[2][1] == str(error)


def test_unreachable_storage_ends_a_run_after_the_last_restart(tmp_path: Path, capacities: list[int]) -> None:
    unreachable = worker_error(StorageError("s3://b/x: cannot write it"))
    attempts, run_attempt = simulate_attempts(tmp_path, 1, unreachable, unreachable)
    with pytest.raises(StorageError, match="s3://b/x"):
        supervisor.run_with_restarts(make_context(tmp_path, max_failures=2), run_attempt, never_stop)
    assert len(attempts) == 3


def test_damaged_content_ends_a_run_at_once(tmp_path: Path, capacities: list[int]) -> None:
    _, run_attempt = simulate_attempts(tmp_path, 1, worker_error(IntegrityError("overwritten")))
    with pytest.raises(IntegrityError, match="overwritten"):
        supervisor.run_with_restarts(make_context(tmp_path, max_failures=5), run_attempt, never_stop)


def test_the_restart_reason_of_a_dead_worker_is_the_message_of_ray(tmp_path: Path, capacities: list[int]) -> None:
    died = ray.exceptions.ActorDiedError()
    failure = WorkerGroupError("Worker info: a long one", {0: WorkerHealthCheckFailedError("A worker health check failed", died)})
    attempts, run_attempt = simulate_attempts(tmp_path, failure, TrainOutcome.DONE)
    assert supervisor.run_with_restarts(make_context(tmp_path), run_attempt, never_stop) is TrainOutcome.DONE
    assert attempts[1][1] == "The actor died unexpectedly before finishing this task."


SILENT = {1: WorkerHealthCheckTimeoutError("A worker health check has been hanging for 62.00 seconds.")}
WAITED = {0: ray.exceptions.RayTaskError("f", "trace", RuntimeError("Application timeout caused pair closure"))}


def died(message: str) -> WorkerHealthCheckFailedError:
    context = ActorDiedErrorContext(error_message=message, actor_id=bytes(16), class_name="RayTrainWorker")
    return WorkerHealthCheckFailedError("A worker health check failed", ray.exceptions.ActorDiedError(context))


FULL = {1: died("Memory on the node (IP: 10.0.0.2, ID: ab) was 30GB used / 32GB limit (0.95); Ray killed 1 worker(s) based on the policy")}
GONE = {
    0: died("Worker unexpectedly exits with a connection error code 2. (1) the process was killed by the OOM killer due to high memory")
}


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        (SILENT, "rank 1 on node 10.0.0.2 did not answer for 60 s after step 57"),
        (WAITED, "rank 1 on node 10.0.0.2 kept the other workers waiting for 600 s after step 57"),
        (FULL, "rank 1 on node 10.0.0.2 was killed by Ray because the memory of its node was full: give the node more memory, or"),
        (
            GONE,
            "rank 0 on node 10.0.0.1 ended without a word: killed by hand, or by the kernel for want of memory (`dmesg` says so)",
        ),
    ],
)
def test_the_restart_reason_of_a_lost_worker_is_its_rank_and_node_and_the_cause(
    tmp_path: Path, capacities: list[int], monkeypatch, failures: dict[int, Exception], expected: str
) -> None:
    nodes = [{"NodeID": "a1", "NodeManagerAddress": "10.0.0.1"}, {"NodeID": "b2", "NodeManagerAddress": "10.0.0.2"}]
    monkeypatch.setattr(supervisor.ray, "nodes", lambda: nodes)
    (tmp_path / "heartbeat.json").write_text('{"attempt": 1, "step": 57, "at": 0}')
    hung = WorkerGroupError("failed", failures)
    attempts, run_attempt = simulate_attempts(tmp_path, hung, hung)
    with pytest.raises(TrainingError, match=re.escape(f"2 failures in a row without a new checkpoint, the last: {expected}")):
        supervisor.run_with_restarts(make_context(tmp_path), run_attempt, never_stop)
    assert attempts[1][1].startswith(expected)


def test_a_controller_that_ray_killed_for_memory_is_a_failure_like_others(tmp_path: Path, capacities: list[int]) -> None:
    killed = ray.exceptions.OutOfMemoryError("9 worker(s) were killed. Memory on the node was 14GB used / 23GB limit")
    attempts, run_attempt = simulate_attempts(tmp_path, killed, TrainOutcome.DONE)
    assert supervisor.run_with_restarts(make_context(tmp_path), run_attempt, never_stop) is TrainOutcome.DONE
    assert attempts[1][1].startswith("Ray killed the controller of the workers because the memory of its node was full: give the node")


def test_a_failed_attempt_frees_its_resources_before_the_next(tmp_path: Path, capacities: list[int], monkeypatch) -> None:
    """Ray Train frees them no more where Ray killed its controller and the controller's cleaner."""
    events: list[str] = []
    ended = ended_monitor()
    ended.free_resources = lambda: events.append("freed")
    monkeypatch.setattr(supervisor, "ClusterMonitor", lambda *_: nullcontext(ended))
    monkeypatch.setattr(supervisor, "wait_for_capacity", lambda cluster, stop_signal: events.append("waits") or 2)
    _, run_attempt = simulate_attempts(tmp_path, ray.exceptions.ActorDiedError(), TrainOutcome.DONE)
    assert supervisor.run_with_restarts(make_context(tmp_path), run_attempt, never_stop) is TrainOutcome.DONE
    assert events == ["waits", "freed", "waits"]


def test_sigterm_ends_the_run_after_its_attempt(tmp_path: Path, capacities: list[int]) -> None:
    _, run_attempt = simulate_attempts(tmp_path, TrainOutcome.STOPPED)
    assert supervisor.run_with_restarts(make_context(tmp_path), run_attempt, lambda: "SIGTERM") is TrainOutcome.STOPPED


def test_sigterm_ends_a_run_that_waits_for_capacity(tmp_path: Path, capacities: list[int]) -> None:
    capacities[:] = [0]
    attempts, run_attempt = simulate_attempts(tmp_path)
    assert supervisor.run_with_restarts(make_context(tmp_path), run_attempt, lambda: "SIGTERM") is TrainOutcome.STOPPED
    assert attempts == []
