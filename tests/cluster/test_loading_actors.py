"""Batches that actors on other nodes make: they equal those of the worker's own process, whatever happens to the actors."""

import functools
import itertools
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray._private.worker import global_worker
from ray.cluster_utils import Cluster

from tiny_run import assert_equal_tensors, tiny_run
from yolor_ray.cluster import cluster_loader, loading_actors
from yolor_ray.cluster.block_source import cluster_source, direct_source
from yolor_ray.cluster.cluster_loader import ClusterLoader
from yolor_ray.cluster.loading_actors import LoadingActors
from yolor_ray.cluster.ray_internals import local_ray
from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.data.loading.batch import Batch
from yolor_ray.data.loading.epoch_plan import Steps, plan_steps
from yolor_ray.data.loading.epoch_windows import Window, epoch_windows
from yolor_ray.data.loading.loader import Loader
from yolor_ray.data.loading.loader_process import LoaderProcess
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.data.shards.union import open_datasets
from yolor_ray.data.synthetic.scenes import IMAGE_CLASSES, KEYPOINT_NAMES
from yolor_ray.pack.run import pack_scenes
from yolor_ray.train import context as train_context
from yolor_ray.train import run as train_run
from yolor_ray.train.elastic.worker_group import run_on_workers
from yolor_ray.train.loop import train_loop
from yolor_ray.train.run import train

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
    """Return the processes of the actors."""
    return [process for process in psutil.Process().children(recursive=True) if "_LoadingActor" in " ".join(process.cmdline())]


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


@pytest.fixture
def second_node(ray_cluster: dict[str, str]) -> Iterator[None]:
    """Add a node of two CPUs to the cluster."""
    nodes = len(ray.nodes())
    cluster = Cluster(shutdown_at_exit=False)
    cluster.head_node = global_worker.node
    with local_ray():
        node = cluster.add_node(wait=False, num_cpus=2, node_ip_address="127.0.0.1")
    deadline = time.monotonic() + 60
    while len(ray.nodes()) == nodes:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield
    cluster.remove_node(node)


def test_a_training_whose_batches_come_from_another_node_learns_the_same(
    dataset: Dataset, second_node: None, tmp_path: Path, monkeypatch
) -> None:
    events = tmp_path / "events"

    def train_with_a_slow_process(*arguments: Any) -> Any:
        class SlowProcess(LoaderProcess):
            # The worker does not have the names of annotations.
            def epoch(self, *plan, **options):
                for batch in super().epoch(*plan, **options):
                    time.sleep(0.1)
                    yield batch

        are_started = LoadingActors.are_started
        LoadingActors.are_started = lambda self: ray.get(self._starts) and are_started(self)
        cluster_loader.LoaderProcess, cluster_loader.MEASURE_S = SlowProcess, 0.5
        loading_actors.records_per_window = train_context.records_per_window = lambda *_: PER_WINDOW
        cluster_loader.logger.addHandler(logging.FileHandler(events))
        return train_loop(*arguments)

    config = tiny_run(tmp_path, "local")
    config = replace(config, data=replace(config.data, train=dataset.members[0].url), optim=replace(config.optim, epochs=2))
    monkeypatch.setattr(train_run, "publish_run_page", lambda context: None)
    monkeypatch.setattr(train_run, "_publish_best", lambda context: None)
    monkeypatch.setattr(train_run, "load_weights", lambda url: (None, SimpleNamespace(metrics={})))
    with monkeypatch.context() as patch:
        patch.setattr(train_context, "records_per_window", lambda *_: PER_WINDOW)
        train(config)
    monkeypatch.setattr(train_run, "run_on_workers", functools.partial(run_on_workers, train_fn=train_with_a_slow_process))
    train(replace(config, cluster=replace(config.cluster, workers="1", max_failures=0), run=replace(config.run, name="moved")))
    started, compared = events.read_text().splitlines()
    assert re.fullmatch(r"event=loading_starts_actors wait_share=0.[3-9]\d nodes=1 cpus=[24]", started)
    assert compared.startswith("event=loading_compared") and compared.endswith("place=nodes"), compared
    assert_equal_tensors(tmp_path / "moved", tmp_path / "local")
