"""Decisions of a worker's loader on a simulated cluster: the place that makes the batches, by the share of time that training waits."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from types import SimpleNamespace

import pytest
import ray

from yolor_ray.cluster import cluster_loader, loading_actors
from yolor_ray.cluster.cluster_loader import MEASURE_S, START_TIMEOUT_S, ClusterLoader
from yolor_ray.data.loading.loader_process import LoaderProcess
from yolor_ray.errors import LoaderError
from yolor_ray.train.context import TrainContext

STEP_S = 1.0
"""Time that training learns from a batch."""


class Place:
    """A maker of batches, which are the numbers of their steps; training waits `wait_s` for each."""

    def __init__(self, cluster: SimpleNamespace, name: str) -> None:
        self.cluster, self.name, self.is_closed = cluster, name, False

    def epoch(self, windows: object, steps: Sequence[int], *, mosaic_closed: bool) -> Iterator[int]:
        for step in steps:
            self.cluster.now += self.cluster.wait_s[self.name]
            if step in self.cluster.errors.get(self.name, {}):
                raise self.cluster.errors[self.name].pop(step)
            self.cluster.makers.append(self.name)
            yield step

    def are_started(self) -> bool:
        return self.cluster.now >= self.cluster.started_at

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def cluster(monkeypatch) -> SimpleNamespace:
    """Return a cluster with free CPUs: the wait for a batch by its maker, the maker of each batch, and errors by maker and step."""
    cluster = SimpleNamespace(
        now=0.0, wait_s={"process": 1.0, "actors": 0.0}, makers=[], errors={}, started_at=0.0, free={"a": 8}, actors=[]
    )

    def start_actors(*_: object) -> Place:
        cluster.actors.append(Place(cluster, "actors"))
        return cluster.actors[-1]

    monkeypatch.setattr(cluster_loader, "time", SimpleNamespace(monotonic=lambda: cluster.now))
    monkeypatch.setattr(cluster_loader, "LoaderProcess", lambda source, **_: Place(cluster, "process"))
    monkeypatch.setattr(cluster_loader, "LoadingActors", start_actors)
    monkeypatch.setattr(cluster_loader, "free_threads", lambda workers: cluster.free)
    return cluster


def train(cluster: SimpleNamespace, *epochs: int) -> list[tuple[str, int]]:
    """Take the batches of epochs, and return each maker with the number of its batches in a row."""
    runs: list[tuple[str, int]] = []
    with closing(ClusterLoader(None, workers=2)) as loader:
        for steps in epochs:
            for taken, batch in enumerate(loader.epoch([], range(steps))):
                assert batch == taken
                cluster.now += STEP_S
            assert taken == steps - 1
    for maker in cluster.makers:
        runs[-1:] = [(maker, runs[-1][1] + 1)] if runs and runs[-1][0] == maker else [*runs[-1:], (maker, 1)]
    assert all(actors.is_closed for actors in cluster.actors)
    return runs


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def all_levels(caplog) -> None:
    caplog.set_level("INFO")


def test_training_that_hardly_waits_keeps_its_process(cluster, caplog) -> None:
    cluster.wait_s["process"] = 0.05
    assert train(cluster, 200, 200) == [("process", 400)]
    assert events(caplog) == ["event=loading_measured wait_share=0.05 place=worker"]


def test_training_that_waits_gets_actors_which_stay_where_it_then_waits_less(cluster, caplog) -> None:
    assert train(cluster, 10, 200, 200) == [("process", 18), ("actors", 392)]
    assert events(caplog) == [
        "event=loading_starts_actors wait_share=0.50 nodes=1 cpus=8",
        "event=loading_compared wait_share=0.00 wait_share_before=0.50 place=nodes",
    ]


def test_the_wait_for_the_first_batch_of_an_epoch_does_not_count(cluster) -> None:
    assert train(cluster, *[1] * 100) == [("process", 100)]


def test_training_that_waits_no_less_for_actors_goes_back_for_good(cluster, caplog) -> None:
    cluster.wait_s["actors"] = 1.0
    assert train(cluster, 500)[::2] == [("process", 17), ("process", 500 - 17 - 16)]
    assert events(caplog)[1:] == ["event=loading_compared wait_share=0.50 wait_share_before=0.50 place=worker"]
    assert len(cluster.actors) == 1


def test_the_process_goes_on_while_actors_start(cluster) -> None:
    cluster.started_at = 100.0
    assert train(cluster, 200) == [("process", 50), ("actors", 150)]


def test_actors_that_do_not_start_are_given_up(cluster, caplog) -> None:
    cluster.started_at = 1e9
    assert train(cluster, int(MEASURE_S + START_TIMEOUT_S) // 2 + 5) == [("process", 80)]
    assert events(caplog)[1] == "event=loading_actors_lost reason='not started after 120 s' place=worker measures_again_s=60"


def test_without_free_cpus_the_advice_is_logged_at_growing_intervals_until_nodes_join(cluster, caplog) -> None:
    cluster.free = {}
    assert train(cluster, 400) == [("process", 400)]
    lines = events(caplog)
    assert [line.split()[:3] for line in lines] == [
        ["event=loading_lacks_cpus", "wait_share=0.50", f"measures_again_s={seconds}"] for seconds in (60, 120, 240, 480)
    ]
    assert "--data.decode_threads" in lines[0] and "clusters/gpu.yaml" in lines[0]
    cluster.free = {"b": 4}
    assert ("actors", 383) in train(cluster, 400)


def test_lost_actors_cost_no_batch_and_are_started_again_later(cluster, caplog) -> None:
    cluster.errors["actors"] = {40: ray.exceptions.ActorDiedError()}
    assert train(cluster, 300) == [("process", 17), ("actors", 23), ("process", 32), ("actors", 228)]
    [lost] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert lost.getMessage() == "event=loading_actors_lost reason='ActorDiedError' place=worker measures_again_s=60"


def test_an_error_of_the_process_is_raised(cluster) -> None:
    cluster.errors["process"] = {3: LoaderError("killed")}
    with pytest.raises(LoaderError, match="killed"):
        train(cluster, 10)


def test_workers_share_the_free_cpus_of_nodes_that_neither_train_nor_have_gpus(monkeypatch) -> None:
    total = {"own": 8, "peer": 8, "gpu": 8, "big": 64, "small": 1, "busy": 8, "full": 8, "leaving": 8, "dead": 8}
    free = total | {"busy": 2, "full": 0.5}
    del free["dead"]
    place = SimpleNamespace(get_node_id=lambda: "own")
    monkeypatch.setattr(loading_actors.ray, "get_runtime_context", lambda: place)
    monkeypatch.setattr(loading_actors.ray, "nodes", lambda: [{"NodeID": name, "Alive": name != "dead"} for name in total])
    monkeypatch.setattr(loading_actors, "get_current_placement_group", lambda: "group")
    monkeypatch.setattr(loading_actors, "placement_group_table", lambda group: {"bundles_to_node_id": {0: "own", 1: "peer"}})
    monkeypatch.setattr(loading_actors, "draining_nodes", lambda: {"leaving"})
    gpus = {"own", "peer", "gpu"}
    monkeypatch.setattr(
        loading_actors, "total_resources_per_node", lambda: {n: {"CPU": c} | ({"GPU": 1.0} if n in gpus else {}) for n, c in total.items()}
    )
    monkeypatch.setattr(loading_actors, "available_resources_per_node", lambda: {n: {"CPU": c} for n, c in free.items()})
    assert loading_actors.free_threads(2) == {"big": loading_actors.MAX_THREADS, "small": 1, "busy": 2}
    assert loading_actors.free_threads(32) == {"big": 2, "small": 1, "busy": 1}


def test_the_default_of_a_training_in_process_is_the_process() -> None:
    assert TrainContext.loader is LoaderProcess
