"""Warnings of slow workers: by their forward passes and their wait for batches, after two comparisons."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tiny_run import assert_equal_tensors, tiny_run
from yolor_ray.train.distributed import DistContext
from yolor_ray.train.epoch_meter import EpochMeter
from yolor_ray.train.progress import slow_workers
from yolor_ray.train.progress.slow_workers import SpeedComparison, WorkerSpeed
from yolor_ray.train.run import train

CPU = torch.device("cpu")


def warnings(caplog: pytest.LogCaptureFixture, *comparisons: tuple[tuple[float, float], ...]) -> list[str]:
    """Return the warnings after comparisons of `(forward_s, wait_share)` of each rank."""
    comparison = SpeedComparison(DistContext(0, len(comparisons[0]), CPU))
    for speeds in comparisons:
        comparison.warn([WorkerSpeed(f"10.0.0.{rank}", *speed) for rank, speed in enumerate(speeds)])
    return [record.getMessage() for record in caplog.records]


def test_a_worker_that_computes_ten_times_slower_is_named_once(caplog) -> None:
    [warning] = warnings(caplog, *[((0.01, 0.0), (0.1, 0.0), (0.012, 0.0))] * 5)
    expected = "event=slow_worker rank=1 node=10.0.0.1 forward_ms=100.0 others_forward_ms=11.0 wait_share=0.00 others_wait_share=0.00 "
    assert warning.startswith(expected)


def test_the_slower_of_two_workers_is_named(caplog) -> None:
    [warning] = warnings(caplog, *[((0.1, 0.1), (0.01, 0.1))] * 2)
    assert "rank=0 node=10.0.0.0" in warning


def test_a_worker_that_waits_long_for_batches_is_named(caplog) -> None:
    [warning] = warnings(caplog, *[((0.01, 0.02), (0.01, 0.9))] * 3)
    assert "rank=1" in warning and "wait_share=0.90 others_wait_share=0.02" in warning


@pytest.mark.parametrize(
    "speeds",
    [
        ((0.01, 0.0), (0.029, 0.0)),
        ((0.01, 0.6), (0.01, 0.9)),
        ((0.01, 0.001), (0.01, 0.2)),
    ],
)
def test_usual_differences_are_not_warned_of(caplog, speeds: tuple[tuple[float, float], ...]) -> None:
    assert warnings(caplog, *[speeds] * 5) == []


def test_a_short_load_is_not_warned_of(caplog) -> None:
    slow, even = ((0.01, 0.0), (0.1, 0.0)), ((0.01, 0.0), (0.01, 0.0))
    assert warnings(caplog, slow, even, slow, even, slow) == []


def test_a_worker_that_is_slow_again_later_is_named_again(caplog) -> None:
    slow, even = ((0.01, 0.0), (0.1, 0.0)), ((0.01, 0.0), (0.01, 0.0))
    assert len(warnings(caplog, slow, slow, even, slow, slow)) == 2


def test_a_comparison_measures_this_worker_and_is_due_again_after_an_interval(monkeypatch, caplog) -> None:
    others = WorkerSpeed("10.0.0.9", 1e-3, 0.0)
    context = SimpleNamespace(world_size=2, is_rank_zero=True, device=CPU, node="10.0.0.1", gather=lambda speed: [speed, others])
    comparison = SpeedComparison(context)
    assert not comparison.is_due
    for _ in range(slow_workers.SLOW_COMPARISONS):
        monkeypatch.setattr(slow_workers, "COMPARE_EVERY_S", -1.0)
        assert comparison.is_due
        comparison.compare(lambda pixels: time.sleep(0.06), np.zeros((2, 8, 8, 3), np.uint8), 0.0)
        monkeypatch.undo()
        assert not comparison.is_due
    [record] = caplog.records
    assert "rank=0 node=10.0.0.1 forward_ms=3" in record.getMessage()


def test_a_single_worker_is_compared_with_nobody(monkeypatch) -> None:
    monkeypatch.setattr(slow_workers, "COMPARE_EVERY_S", -1.0)
    assert not SpeedComparison(DistContext(0, 1, CPU)).is_due


def test_the_recent_wait_share_covers_the_time_since_the_last_call() -> None:
    meter = EpochMeter()

    def batches():
        for wait_s in (0.2, 0.05, 0.0):
            time.sleep(wait_s)
            yield object()

    waits = meter.timed(batches())
    next(waits)
    time.sleep(0.02)
    assert meter.recent_wait_share() < 0.2, "the wait for the first batch does not count"
    next(waits)
    assert meter.recent_wait_share() > 0.8
    next(waits)
    time.sleep(0.02)
    assert meter.recent_wait_share() < 0.2


@pytest.mark.usefixtures("undrawn")
def test_comparisons_change_no_weight(folder: Path, uninterrupted: Path, monkeypatch) -> None:
    compared: list[int] = []
    monkeypatch.setattr(SpeedComparison, "is_due", True)
    monkeypatch.setattr(SpeedComparison, "warn", lambda self, speeds: compared.append(len(speeds)))
    monkeypatch.setattr(slow_workers, "FORWARD_S", 0.0)
    run = Path(train(tiny_run(folder, "compared"))["run"])
    assert len(compared) >= 6, "each of three epochs has three updates or more, and its last step compares nothing"
    assert_equal_tensors(run, uninterrupted)
