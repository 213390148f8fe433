"""Make the batches of a training worker on other nodes.

Actors decode and augment slices of an epoch, and Ray's object store brings the batches to the worker. The worker owns its actors, so that
they end with it, however it ends. The samples are those of the worker's own loader: they depend on seed, record and epoch alone.
"""

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import ray
from ray.util.placement_group import get_current_placement_group, placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from yolor_ray.cluster.capacity import draining_nodes
from yolor_ray.cluster.ray_internals import available_resources_per_node, total_resources_per_node
from yolor_ray.data.loading.batch import Batch
from yolor_ray.data.loading.epoch_plan import Steps
from yolor_ray.data.loading.epoch_slices import EpochSlice, cut_into_slices
from yolor_ray.data.loading.epoch_windows import Window
from yolor_ray.data.loading.loader import BATCHES_AHEAD, BUFFERS, Loader, Source, records_per_window
from yolor_ray.data.loading.read_ahead import read_ahead

MAX_THREADS = 8
"""Most decode threads of an actor, each with a CPU of its own."""


class _LoadingActor:
    """Maker of slices for one worker; keeps decoded tiles over slices."""

    def __init__(self, source: Source, settings: Mapping[str, Any], decode_threads: int) -> None:
        cv2.setNumThreads(0)
        self._loader = Loader(source, **{**settings, "decode_threads": decode_threads})

    def started(self) -> None:
        """Answer when the actor has started."""

    @ray.method(num_returns="streaming")
    def batches(self, part: EpochSlice, mosaic_closed: bool) -> Iterator[Batch]:
        """Yield the batches of a slice, each of which Ray copies before the next is made."""
        yield from self._loader.epoch(part.windows, part.steps, mosaic_closed=mosaic_closed)


@dataclass
class _Actor:
    """Handle of an actor, and the work given to it."""

    handle: Any
    threads: int
    steps: int = 0
    """Steps given to the actor so far."""


class LoadingActors:
    """Loading actors of one worker: one on each of some nodes, and one beside the worker.

    Each actor has about one slice finished or in work beyond the slice that the worker takes from: about 0.5 GB of images, or 0.75 GB with
    instance maps, in the object store of the actor's node. An actor keeps up to 0.5 GB of decoded tiles, as the worker's own loader does.
    """

    def __init__(self, source: Source, settings: Mapping[str, Any], threads: Mapping[str, int]) -> None:
        """Begin to start the actors; they are ready when `are_started` says so.

        Args:
            source: row groups of the training set.
            settings: other arguments of `Loader`.
            threads: decode threads, and reserved CPUs, by the id of the node.
        """
        self._image_px, self._slice_records = settings["image_px"], records_per_window(settings["image_px"], settings["label_spec"])
        # The description of a large dataset is sent to each node once.
        shared = ray.put(source), ray.put(settings)
        own_node, own_threads = ray.get_runtime_context().get_node_id(), settings["decode_threads"]
        self._actors = [
            _Actor(_start_actor(node, cpus).remote(*shared, count), count)
            for node, cpus, count in [(own_node, 0, own_threads), *((node, count, count) for node, count in threads.items())]
        ]
        self._starts = [actor.handle.started.remote() for actor in self._actors]
        self._take_thread = ThreadPoolExecutor(1, thread_name_prefix="yolor-take")

    def are_started(self) -> bool:
        """Return True if all actors have started.

        Raises:
            RayError: an actor cannot start, or ended.
        """
        started, missing = ray.wait(self._starts, num_returns=len(self._starts), timeout=0)
        ray.get(started)
        return not missing

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor.handle)
        self._take_thread.shutdown(wait=False, cancel_futures=True)

    def epoch(self, windows: Sequence[Window], steps: Steps, *, mosaic_closed: bool = False) -> Generator[Batch, None, None]:
        """Yield the batches of `steps` in order, as `Loader.epoch` does.

        Raises:
            RayError: an actor or its node ended, or an actor raised an error.
        """
        batches = self._in_order(cut_into_slices(windows, steps, self._slice_records), mosaic_closed)
        buffers = [np.empty((steps.largest, self._image_px, self._image_px, 3), np.uint8) for _ in range(BUFFERS)]
        numbers = range(len(steps))
        yield from read_ahead(self._take_thread, lambda number: _copy(next(batches), buffers[number % BUFFERS]), numbers, BATCHES_AHEAD)

    def _in_order(self, slices: Iterator[EpochSlice], mosaic_closed: bool) -> Iterator[Batch]:
        """Yield the batches of slices that several actors make at the same time."""
        running = deque(self._begin(part, mosaic_closed) for part in itertools.islice(slices, len(self._actors)))
        while running:
            current = running.popleft()
            running.extend(self._begin(part, mosaic_closed) for part in itertools.islice(slices, 1))
            for batch in current:
                yield ray.get(batch)

    def _begin(self, part: EpochSlice, mosaic_closed: bool) -> Any:
        """Give a slice to the actor that is the first to finish it if all threads are equally fast."""
        actor = min(self._actors, key=lambda each: (each.steps + len(part.steps)) / each.threads)
        actor.steps += len(part.steps)
        return actor.handle.batches.remote(part, mosaic_closed)


def free_threads(workers: int) -> dict[str, int]:
    """Return the decode threads that one of so many training workers may have on each node that only has CPUs and trains nothing.

    Each worker takes its share of a node's CPUs, of those that are free.
    """
    group = get_current_placement_group()
    training = {ray.get_runtime_context().get_node_id(), *(placement_group_table(group)["bundles_to_node_id"].values() if group else ())}
    usable = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - training - draining_nodes()
    total, available = total_resources_per_node(), available_resources_per_node()
    threads = {
        node: min(max(int(total[node].get("CPU", 0)) // workers, 1), int(available[node].get("CPU", 0)), MAX_THREADS)
        for node in sorted(usable & total.keys() & available.keys())
        # Another job may train there: its workers reserve GPUs, and no CPUs.
        if not total[node].get("GPU", 0)
    }
    return {node: count for node, count in threads.items() if count}


def _start_actor(node: str, cpus: int) -> Any:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(_LoadingActor).options(num_cpus=cpus, scheduling_strategy=place)


def _copy(batch: Batch, images: np.ndarray) -> Batch:
    """Return a batch of the object store, which is read-only there, with its images in a buffer."""
    arrays = {name: array.copy() for name, array in vars(batch).items() if array is not None and name != "images"}
    images[: len(batch.images)] = batch.images
    return replace(batch, images=images[: len(batch.images)], **arrays)
