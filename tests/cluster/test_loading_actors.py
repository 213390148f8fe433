"""Batches that actors on other nodes make: they equal those of the worker's own process, whatever happens to the actors."""

import itertools
import os
import signal
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import psutil
import pytest
import ray

from yolor_ray.cluster import cluster_loader, loading_actors
from yolor_ray.cluster.block_source import cluster_source, direct_source
from yolor_ray.cluster.cluster_loader import ClusterLoader
from yolor_ray.cluster.loading_actors import LoadingActors
from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.data.loading.batch import Batch
from yolor_ray.data.loading.epoch_plan import Steps, plan_steps
from yolor_ray.data.loading.epoch_windows import Window, epoch_windows
from yolor_ray.data.loading.loader import Loader
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.data.shards.union import open_datasets
from yolor_ray.data.synthetic.scenes import IMAGE_CLASSES, KEYPOINT_NAMES
from yolor_ray.pack.run import pack_scenes

# Ray emits deprecation warnings about its own settings while it copies them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*", "ignore::ResourceWarning")

PER_WINDOW = 16
EVERYTHING = LabelSpec(
    masks=True, keypoint_names=KEYPOINT_NAMES, identities=np.arange(48), image_classes=np.ones((2, len(IMAGE_CLASSES)), bool)
)
SETTINGS = {
    "image_px": 64,
    "augment": AugmentConfig(mosaic=0.7, mixup=0.3, degrees=5),
    "seed": 0,
    "decode_threads": 1,
    "label_spec": EVERYTHING,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    pack_scenes(f"{folder}/a", 70, seed=0, size_px=64)
    pack_scenes(f"{folder}/b", 70, seed=1, size_px=64)
    return open_datasets(f"{folder}/a,{folder}/b")


@pytest.fixture
def small_slices(monkeypatch) -> None:
    monkeypatch.setattr(loading_actors, "records_per_window", lambda *_: PER_WINDOW)


def plan(dataset: Dataset, epoch: int = 0) -> tuple[list[Window], Steps]:
    windows = epoch_windows(dataset.row_groups, records_per_window=PER_WINDOW, seed=0, epoch=epoch)
    return windows, plan_steps(windows, np.zeros(dataset.images, bool), rank=0, world_size=1, batch=4)


def contents(batch: Batch) -> list[tuple[str, bytes]]:
    return [(name, b"" if array is None else array.tobytes()) for name, array in vars(batch).items()]


def expected(dataset: Dataset, epoch: int = 0, mosaic_closed: bool = False) -> list[list[tuple[str, bytes]]]:
    with closing(Loader(direct_source(dataset), **SETTINGS)) as loader:
        return [contents(batch) for batch in loader.epoch(*plan(dataset, epoch), mosaic_closed=mosaic_closed)]


def started(source, threads: dict[str, int]) -> LoadingActors:
    actors = LoadingActors(source, SETTINGS, threads)
    deadline = time.monotonic() + 100
    while not actors.are_started():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return actors


@pytest.mark.usefixtures("ray_cluster", "small_slices")
@pytest.mark.parametrize("make_source", [direct_source, cluster_source])
def test_batches_of_actors_equal_those_of_a_loader_in_this_process(dataset: Dataset, make_source: Callable) -> None:
    with closing(started(make_source(dataset), {ray.get_runtime_context().get_node_id(): 1})) as actors:
        for epoch, mosaic_closed in ((0, False), (1, True)):
            found = [contents(batch) for batch in actors.epoch(*plan(dataset, epoch), mosaic_closed=mosaic_closed)]
            assert found == expected(dataset, epoch, mosaic_closed)
        assert all(actor.steps for actor in actors._actors), "each actor made batches"


@pytest.mark.usefixtures("ray_cluster", "small_slices")
def test_a_batch_stays_intact_and_writable_until_the_next_batch_is_taken(dataset: Dataset) -> None:
    with closing(started(direct_source(dataset), {})) as actors:
        batches = actors.epoch(*plan(dataset))
        previous = next(batches)
        copy = contents(previous)
        for batch in batches:
            assert contents(previous) == copy
            assert all(array.flags.writeable for array in vars(batch).values() if array is not None)
            previous, copy = batch, contents(batch)


def loading_processes() -> list[psutil.Process]:
    """Return the processes of the actors that this machine runs."""
    names = [(process, process.name()) for process in psutil.process_iter() if process.status() != psutil.STATUS_ZOMBIE]
    return [process for process, name in names if "LoadingActor" in name or "_LoadingActor" in " ".join(process.cmdline())]


@pytest.mark.usefixtures("ray_cluster", "small_slices")
def test_killed_actors_cost_no_batch_and_repeat_none(dataset: Dataset, monkeypatch, caplog) -> None:
    monkeypatch.setattr(cluster_loader, "MEASURE_S", 0.05)
    monkeypatch.setattr(cluster_loader, "MAX_WAIT_SHARE", -1.0)
    monkeypatch.setattr(ClusterLoader, "_returns", lambda *_: False)
    monkeypatch.setattr(cluster_loader, "free_threads", lambda _: {ray.get_runtime_context().get_node_id(): 1})
    with closing(ClusterLoader(direct_source(dataset), workers=1, **SETTINGS)) as loader:
        for epoch in itertools.count():
            found = []
            for batch in loader.epoch(*plan(dataset, epoch)):
                found.append(contents(batch))
                if loader._actors and len(found) == 10:
                    for process in loading_processes():
                        process.kill()
            assert found == expected(dataset, epoch)
            if "loading_actors_lost" in caplog.text:
                break
    assert epoch > 0 or len(found) == len(plan(dataset)[1])


@pytest.mark.usefixtures("ray_cluster")
def test_actors_end_with_a_killed_worker(dataset: Dataset) -> None:
    class Worker:
        def start(self) -> int:
            self.actors = LoadingActors(direct_source(dataset), SETTINGS, {ray.get_runtime_context().get_node_id(): 1})
            ray.get(self.actors._starts)
            return os.getpid()

    worker = ray.remote(num_cpus=0)(Worker).remote()
    pid = ray.get(worker.start.remote())
    processes = loading_processes()
    assert len(processes) == 2
    os.kill(pid, signal.SIGKILL)
    assert psutil.wait_procs(processes, timeout=30)[1] == []
