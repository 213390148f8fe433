"""Lives one after another, with a cluster that is only played: what ends a run, and what begins another life."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

from yolor_ray.cluster.stop_signal import never_stop
from yolor_ray.config import ClusterConfig, TrainConfig
from yolor_ray.errors import DataError, IntegrityError, StorageError, TrainingError
from yolor_ray.io import manifest
from yolor_ray.train.context import TrainContext
from yolor_ray.train.elastic import supervisor
from yolor_ray.train.loop import TrainOutcome

LOST = WorkerGroupError("worker 0 died", {0: RuntimeError("connection closed by peer")})


@pytest.fixture
def cluster(monkeypatch) -> Iterator[list[int]]:
    """Give the rooms that a cluster has for one life after the other."""
    rooms = [2] * 20
    post = SimpleNamespace(reason=SimpleNamespace(remote=lambda: "node abc is about to leave"))
    monkeypatch.setattr(supervisor, "wait_for_room", lambda cluster, notice: rooms.pop(0))
    monkeypatch.setattr(supervisor, "open_post", lambda: post)
    monkeypatch.setattr(supervisor, "Watch", lambda *_: nullcontext(SimpleNamespace(grows=False)))
    monkeypatch.setattr(supervisor.ray, "kill", lambda post: None)
    monkeypatch.setattr(supervisor.ray, "get", lambda answer: answer)
    monkeypatch.setattr(supervisor, "_pause", lambda seconds, notice: None)
    yield rooms


def lives(run: Path, *ends: object) -> tuple[list[tuple[int, str]], Callable]:
    """Return what each life is told, and a fit that ends lives one after another so; an int is a checkpoint before a loss."""
    told: list[tuple[int, str]] = []
    left = list(ends)

    def fit(context: TrainContext, workers: int, post: object) -> object:
        told.append((workers, context.restart_reason))
        end = left.pop(0)
        if isinstance(end, int):
            manifest.publish(str(run / "checkpoints" / f"{end:09d}-0001"), {})
            end = LOST
        if isinstance(end, Exception):
            raise end
        return end

    return told, fit


def job(run: Path, max_failures: int = 1) -> TrainContext:
    config = TrainConfig(cluster=ClusterConfig(workers="1-2", max_failures=max_failures))
    return TrainContext(config, str(run), None, None, None, None)  # type: ignore[arg-type]


def test_a_lost_worker_begins_another_life_with_as_many_as_there_is_room_for(tmp_path: Path, cluster: list[int]) -> None:
    cluster[:2] = [2, 1]
    told, fit = lives(tmp_path, LOST, TrainOutcome.DONE)
    assert supervisor.run_with_restarts(job(tmp_path), fit, never_stop) is TrainOutcome.DONE
    assert [workers for workers, _ in told] == [2, 1]
    assert told[0][1] == "" and "worker 0 died" in told[1][1]


def test_losses_without_a_checkpoint_between_them_end_the_run(tmp_path: Path, cluster: list[int]) -> None:
    told, fit = lives(tmp_path, LOST, LOST, TrainOutcome.DONE)
    with pytest.raises(TrainingError, match=r"(?s)2 failures in a row without a new checkpoint, the last: .*worker 0 died"):
        supervisor.run_with_restarts(job(tmp_path), fit, never_stop)
    assert len(told) == 2


def test_checkpoints_that_never_become_whole_do_not_count(tmp_path: Path, cluster: list[int]) -> None:
    def fit(context: TrainContext, workers: int, post: object) -> object:
        (tmp_path / "checkpoints" / f"{len(list(tmp_path.rglob('*'))):09d}-0001").mkdir(parents=True)
        raise LOST

    with pytest.raises(TrainingError, match="2 failures in a row"):
        supervisor.run_with_restarts(job(tmp_path), fit, never_stop)


def test_a_run_that_gets_on_between_its_losses_goes_on_for_ever(tmp_path: Path, cluster: list[int]) -> None:
    told, fit = lives(tmp_path, 1, 2, 3, 4, TrainOutcome.DONE)
    assert supervisor.run_with_restarts(job(tmp_path), fit, never_stop) is TrainOutcome.DONE
    assert len(told) == 5


def test_a_life_that_was_stop_requested_is_no_failure(tmp_path: Path, cluster: list[int]) -> None:
    told, fit = lives(tmp_path, *[TrainOutcome.STOPPED] * 4, TrainOutcome.DONE)
    assert supervisor.run_with_restarts(job(tmp_path, max_failures=0), fit, never_stop) is TrainOutcome.DONE
    assert [after for _, after in told] == ["", *["node abc is about to leave"] * 4]


def test_a_life_knows_how_often_the_run_has_grown(tmp_path: Path, cluster: list[int], monkeypatch) -> None:
    """Lives of one worker make way for more, those of two for other reasons."""
    told: list[int] = []

    def watch(post: object, cluster: ClusterConfig, workers: int, sigterm: object, grown: int) -> AbstractContextManager:
        told.append(grown)
        return nullcontext(SimpleNamespace(grows=workers == 1))

    monkeypatch.setattr(supervisor, "Watch", watch)
    cluster[:5] = [1, 2, 1, 1, 2]
    _, fit = lives(tmp_path, *[TrainOutcome.STOPPED] * 4, TrainOutcome.DONE)
    supervisor.run_with_restarts(job(tmp_path), fit, never_stop)
    assert told == [0, 1, 1, 2, 3]


def test_workers_whose_room_others_took_are_no_failure(tmp_path: Path, cluster: list[int]) -> None:
    none = ControllerError(WorkerGroupStartupTimeoutError(2))
    _, fit = lives(tmp_path, none, none, none, TrainOutcome.DONE)
    assert supervisor.run_with_restarts(job(tmp_path, max_failures=0), fit, never_stop) is TrainOutcome.DONE


def test_a_failure_while_workers_connect_is_tried_again(tmp_path: Path, cluster: list[int]) -> None:
    told, fit = lives(tmp_path, ControllerError(RuntimeError("gloo cannot connect")), TrainOutcome.DONE)
    assert supervisor.run_with_restarts(job(tmp_path), fit, never_stop) is TrainOutcome.DONE
    assert "gloo cannot connect" in told[1][1]


def test_an_error_of_the_users_ends_the_run_at_once_as_it_is(tmp_path: Path, cluster: list[int]) -> None:
    cause = ray.exceptions.RayTaskError("f", "trace", DataError("bad shard"))
    told, fit = lives(tmp_path, WorkerGroupError("failed", {0: RuntimeError("peer"), 1: cause}), TrainOutcome.DONE)
    with pytest.raises(DataError, match="bad shard"):
        supervisor.run_with_restarts(job(tmp_path), fit, never_stop)
    assert len(told) == 1


def test_storage_that_was_away_for_long_costs_a_life_of_a_run_that_it_served_before(tmp_path: Path, cluster: list[int]) -> None:
    away = WorkerGroupError("failed", {0: ray.exceptions.RayTaskError("f", "trace", StorageError("s3://b/x: cannot write it"))})
    _, fit = lives(tmp_path, away)
    with pytest.raises(StorageError, match="s3://b/x"):
        supervisor.run_with_restarts(job(tmp_path), fit, never_stop)
    told, fit = lives(tmp_path, 1, away, TrainOutcome.DONE)
    assert supervisor.run_with_restarts(job(tmp_path, max_failures=2), fit, never_stop) is TrainOutcome.DONE
    assert told[2][1] == "s3://b/x: cannot write it"
    told, fit = lives(tmp_path, away, away)
    with pytest.raises(StorageError, match="s3://b/x"):
        supervisor.run_with_restarts(job(tmp_path, max_failures=1), fit, never_stop)
    assert len(told) == 2


def test_content_that_is_not_what_it_was_ends_a_run_at_once(tmp_path: Path, cluster: list[int]) -> None:
    changed = WorkerGroupError("failed", {0: ray.exceptions.RayTaskError("f", "trace", IntegrityError("overwritten"))})
    _, fit = lives(tmp_path, 1, changed)
    with pytest.raises(IntegrityError, match="overwritten"):
        supervisor.run_with_restarts(job(tmp_path, max_failures=5), fit, never_stop)


def test_a_worker_that_died_is_told_in_ray_s_words_for_it(tmp_path: Path, cluster: list[int]) -> None:
    died = ray.exceptions.ActorDiedError()
    gone = WorkerGroupError("Worker info: a long one", {0: WorkerHealthCheckFailedError("A worker health check failed", died)})
    told, fit = lives(tmp_path, gone, TrainOutcome.DONE)
    assert supervisor.run_with_restarts(job(tmp_path), fit, never_stop) is TrainOutcome.DONE
    assert told[1][1] == "The actor died unexpectedly before finishing this task."


def test_sigterm_ends_the_run_when_its_life_has_ended(tmp_path: Path, cluster: list[int]) -> None:
    _, fit = lives(tmp_path, TrainOutcome.STOPPED)
    assert supervisor.run_with_restarts(job(tmp_path), fit, lambda: "SIGTERM") is TrainOutcome.STOPPED


def test_a_run_that_waits_for_room_ends_without_a_life_on_sigterm(tmp_path: Path, cluster: list[int]) -> None:
    cluster[:] = [0]
    told, fit = lives(tmp_path)
    assert supervisor.run_with_restarts(job(tmp_path), fit, lambda: "SIGTERM") is TrainOutcome.STOPPED
    assert told == []
