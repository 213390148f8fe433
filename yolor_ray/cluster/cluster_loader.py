"""Load the batches of a training worker beside it, or on nodes with free CPUs too, as the worker's own measurement says.

The worker starts with the process beside it. If training waits for batches, actors on other nodes join in. If training then does not wait
less, the process makes the batches again. Each worker decides alone, and the batches are the same in each place.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import ray.exceptions

from yolor_ray.cluster.loading_actors import LoadingActors, free_threads
from yolor_ray.data.loading.batch import Batch
from yolor_ray.data.loading.epoch_plan import Steps
from yolor_ray.data.loading.epoch_windows import Window
from yolor_ray.data.loading.loader import Source
from yolor_ray.data.loading.loader_process import LoaderProcess

logger = logging.getLogger(__name__)

MEASURE_S = 30.0
"""Time of training over which the share of waiting is measured (s); doubled each time that no CPU was free, or that actors were lost."""
MAX_WAIT_SHARE = 0.1
"""Largest share of time that training may wait for batches before other nodes help."""
START_TIMEOUT_S = 120.0
"""Longest wait for the start of the actors, while the process goes on (s)."""
ADVICE = "raise --data.decode_threads while this node has idle cores, or add nodes without GPUs, such as the group cpu of clusters/gpu.yaml"


class _WaitMeter:
    """Share of time that training waits for batches, without the waits for the first batch of an epoch and of a place."""

    def __init__(self) -> None:
        self._waited_s = self.elapsed_s = 0.0

    def take(self) -> float:
        """Return the share of time spent waiting, and start again."""
        share = self._waited_s / max(self.elapsed_s, 1e-9)
        self._waited_s = self.elapsed_s = 0.0
        return share

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches and add up the time spent waiting for them."""
        came_at = None
        asked_at = time.monotonic()
        for batch in batches:
            before, came_at = came_at, time.monotonic()
            if before is not None:
                self._waited_s += came_at - asked_at
                self.elapsed_s += came_at - before
            yield batch
            asked_at = time.monotonic()


class ClusterLoader:
    """Maker of training batches for one worker of a cluster; keep it over epochs. Its methods are those of `LoaderProcess`."""

    def __init__(self, source: Source, *, workers: int, **settings: Any) -> None:
        """Start the process beside the worker.

        Args:
            source: row groups of the training set.
            workers: workers of the attempt, which share the free CPUs.
            settings: other arguments of `Loader`.
        """
        self._source, self._workers, self._settings = source, workers, settings
        self._process = LoaderProcess(source, **settings)
        self._actors: LoadingActors | None = None
        """Actors that make the batches."""
        self._starting: LoadingActors | None = None
        self._start_at = 0.0
        self._meter, self._measure_s = _WaitMeter(), MEASURE_S
        self._process_share = 0.0
        """Share of waiting while the process made the batches."""
        self._is_settled = False

    def close(self) -> None:
        """End the process and the actors."""
        self._process.close()
        self._close_actors()

    def epoch(self, windows: Sequence[Window], steps: Steps, *, mosaic_closed: bool = False) -> Iterator[Batch]:
        """Yield the batches of `steps` in order; without mosaic and mixup if `mosaic_closed`.

        Raises:
            UserError, TrainingError: an error of the source or of a record.
            LoaderError: the process ended, for example because it was killed.
        """
        taken = 0
        while taken < len(steps):
            loader = self._actors or self._process
            try:
                with closing(loader.epoch(windows, steps[taken:], mosaic_closed=mosaic_closed)) as batches:
                    for batch in self._meter.timed(batches):
                        taken += 1
                        yield batch
                        if self._changes_place():
                            break
            except ray.exceptions.RayError as error:
                if loader is self._process:
                    raise
                # An error of a record or of the source is raised by the process, as it is.
                self._lose_actors(type(error).__name__)

    def _changes_place(self) -> bool:
        """Return True if another place makes the batches from the next step on."""
        try:
            if self._starting:
                return self._has_started(self._starting)
            return self._meter.elapsed_s >= self._measure_s and not self._is_settled and self._judge(self._meter.take())
        except ray.exceptions.RayError as error:
            # Only the start of actors calls Ray here.
            self._lose_actors(type(error).__name__)
            return False

    def _judge(self, share: float) -> bool:
        """Act on a measured share of waiting, and return True if another place makes the batches from the next step on."""
        if self._actors:
            return self._returns(share)
        if share > MAX_WAIT_SHARE:
            self._start_actors(share)
        else:
            self._is_settled = True
            logger.info("event=loading_measured wait_share=%.2f place=worker", share)
        return False

    def _start_actors(self, share: float) -> None:
        """Begin to start actors on nodes with free CPUs; the process goes on meanwhile."""
        threads = free_threads(self._workers)
        if not threads:
            self._measure_s *= 2
            logger.info("event=loading_lacks_cpus wait_share=%.2f measures_again_s=%.0f advice='%s'", share, self._measure_s, ADVICE)
            return
        logger.info("event=loading_starts_actors wait_share=%.2f nodes=%d cpus=%d", share, len(threads), sum(threads.values()))
        self._process_share, self._start_at = share, time.monotonic()
        self._starting = LoadingActors(self._source, self._settings, threads)

    def _has_started(self, starting: LoadingActors) -> bool:
        """Return True if the actors have started, which then make the batches."""
        if starting.are_started():
            self._actors, self._starting = starting, None
            self._meter.take()
        elif time.monotonic() - self._start_at > START_TIMEOUT_S:
            self._lose_actors(f"not started after {START_TIMEOUT_S:.0f} s")
        return self._actors is not None

    def _returns(self, share: float) -> bool:
        """Return True if training does not wait less for the actors than for the process, which then makes all batches of the attempt."""
        returns, self._is_settled, self._measure_s = share >= self._process_share, True, MEASURE_S
        place = "worker" if returns else "nodes"
        logger.info("event=loading_compared wait_share=%.2f wait_share_before=%.2f place=%s", share, self._process_share, place)
        if returns:
            self._close_actors()
        return returns

    def _lose_actors(self, reason: str) -> None:
        """Let the process make the batches, and measure again later: a spot node may come back."""
        self._close_actors()
        self._meter.take()
        self._measure_s, self._is_settled = 2 * self._measure_s, False
        logger.warning("event=loading_actors_lost reason='%s' place=worker measures_again_s=%.0f", reason, self._measure_s)

    def _close_actors(self) -> None:
        for actors in (self._actors, self._starting):
            if actors:
                actors.close()
        self._actors = self._starting = None
