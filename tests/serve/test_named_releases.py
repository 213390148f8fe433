"""Several models of which some have a release folder: each has its own versions, within the memory of all, over real HTTP."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import requests
import torch
from test_http import error_of
from test_named_models import JPEG, TINY, detect, infer, listed, loaded, write_list
from test_rollout import BlindEngine

from fake_loader import MB
from http_server import running
from red_engine import RedEngine
from release_loader import V1, V2, V3, ReleaseLoader
from yolor_ray import config
from yolor_ray.config import ReleaseConfig
from yolor_ray.errors import WeightsError
from yolor_ray.io.release_folder import Event
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights
from yolor_ray.release.run import release
from yolor_ray.serve.catalog.room import Room
from yolor_ray.serve.deployment import start_service
from yolor_ray.serve.metrics import ServiceMetrics
from yolor_ray.serve.rollout import comparison, rollout


@pytest.fixture(autouse=True)
def short_stages(monkeypatch):
    for name, value in {"SHADOW_IMAGES": 20, "SHARE_IMAGES": 40, "PAUSES": 0, "POLL_S": 0.05, "RETRY_S": 0.05}.items():
        monkeypatch.setattr(rollout, name, value)
    monkeypatch.setattr(comparison, "ENOUGH_IMAGES", 50)
    monkeypatch.setattr(comparison, "ENOUGH_BOXES", 20)


@pytest.fixture
def loader(tmp_path):
    """Return a loader whose models cats and dogs have a release each."""
    loader = ReleaseLoader()
    for name in ("cats", "dogs"):
        loader.follow(name, tmp_path, RedEngine((name[:-1],)))
    yield loader
    loader.release_gate.set()
    for engine in loader.versions.values():
        if isinstance(engine, RedEngine):
            engine.gate.set()


@pytest.fixture
def several(serve, loader):
    """Serve the models of the loader, of which the default is loaded."""

    def start(**options):
        default = loader.folders.get("cars") and V1
        return serve(loader.engines["cars"], release=default or "", loader=loader, request_timeout_s=60.0, **options)

    return start


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def threads_of(name):
    return [thread for thread in threading.enumerate() if thread.name == f"rollout-{name}"]


def wait_for(condition):
    """Wait for a rollout of many images, on a busy machine."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def candidate(client, name):
    return listed(client)[name].get("candidate")


def release_of(client, name):
    return listed(client)[name].get("release")


def rejection(loader, name, version):
    return loader.folders[name].read().rejected.get(version)


@contextmanager
def asking(client, *names):
    """Ask for each model without a pause from two clients; yield the list of status, name, release and number of boxes."""
    answers, stopped = [], threading.Event()

    def ask(name):
        with requests.Session() as session:
            while not stopped.is_set():
                url, headers = f"{client.base}/v1/models/{name}/detect", {"Content-Type": "image/jpeg"}
                answer = session.post(url, data=JPEG, headers=headers, timeout=60)
                model = answer.json().get("model", {})
                boxes = len(answer.json().get("detections", ()))
                answers.append((answer.status_code, model.get("name"), model.get("release"), boxes))

    with ThreadPoolExecutor(2 * len(names)) as clients:
        asked = [clients.submit(ask, name) for name in names * 2]
        try:
            yield answers
        finally:
            stopped.set()
    for done in asked:
        done.result()


def test_a_named_model_takes_a_release_and_goes_back_under_requests_without_a_failed_one(several, loader):
    with several() as client:
        with asking(client, "cats", "cars") as answers:
            wait_for(lambda: release_of(client, "cats") == V1)
            loader.release("cats", V2, RedEngine(("cat",)))
            wait_for(lambda: Event("accepted", V2) in loader.folders["cats"].read().events)
            wait_for(lambda: release_of(client, "cats") == V2)
            seen = len(answers)
            loader.folders["cats"].add(Event("back", V1))
            wait_for(lambda: release_of(client, "cats") == V1)
            wait_for(lambda: ("cats", V1) in [answer[1:3] for answer in answers[seen:]])
        batch, tensors = detect(client, "cats", "detect/batch").json(), infer(client, "cats").json()
    assert {status for status, *_ in answers} == {200} and {boxes for *_, boxes in answers} == {1}
    assert {(name, version) for _, name, version, _ in answers} == {("cats", V1), ("cats", V2), ("cars", None)}
    assert batch["model"] == {"name": "cats", "version": "cats-0001", "release": V1}
    assert (tensors["model_name"], tensors["model_version"], tensors["parameters"]) == ("cats", "cats-0001", {"release": V1})
    assert [load for load in loader.loads if load[0] == "cats"] == [("cats", V1), ("cats", V2), ("cats", V1)]


def test_the_list_has_the_release_of_a_model_and_the_stage_of_a_new_one(several, loader):
    with several() as client:
        detect(client, "cats")
        assert release_of(client, "cats") == V1 and candidate(client, "cats") is None and release_of(client, "cars") is None
        loader.release("cats", V2, RedEngine(("cat",)))
        wait_for(lambda: candidate(client, "cats"))
        seen = []
        while (entry := listed(client)["cats"]).get("candidate"):
            seen.append((entry["release"], entry["version"], *entry["candidate"].values()))
            detect(client, "cats")
        assert list(dict.fromkeys(seen)) == [
            (V1, "cats-0001", "cats-0002", V2, V1, "shadow"),
            (V1, "cats-0001", "cats-0002", V2, V1, "share"),
            (V2, "cats-0002", "cats-0002", V2, V1, "all"),
        ]
        assert release_of(client, "cats") == V2 and release_of(client, "dogs") is None


def test_a_release_that_finds_nothing_is_rejected_for_its_model_alone(several, loader):
    with several() as client:
        detect(client, "cats"), detect(client, "dogs")
        assert 'yolor_rejected_versions_total{model="cats",replica="replica-1"} 0.0' in client.get("/metrics").text
        with asking(client, "cats", "dogs") as answers:
            loader.release("cats", V2, BlindEngine(("cat",)))
            loader.release("dogs", V2, RedEngine(("dog",)))
            wait_for(lambda: rejection(loader, "cats", V2) and Event("accepted", V2) in loader.folders["dogs"].read().events)
        assert release_of(client, "cats") == V1 and candidate(client, "cats") is None
        assert detect(client, "dogs").json()["model"]["release"] == V2
        metrics = client.get("/metrics").text
    assert {status for status, *_ in answers} == {200} and {boxes for *_, boxes in answers} == {1}
    assert rejection(loader, "cats", V2).startswith("detections per image: found 0.00") and rejection(loader, "dogs", V2) is None
    assert 'yolor_rejected_versions_total{model="cats",replica="replica-1"} 1.0' in metrics
    assert 'yolor_rejected_versions_total{model="dogs",replica="replica-1"} 0.0' in metrics
    assert f'yolor_version_requests_total{{model="dogs",replica="replica-1",version="{V2}"}}' in metrics


def test_a_release_that_cannot_be_loaded_leaves_the_model_as_it_is(several, loader):
    with several() as client:
        detect(client, "cats")
        loader.release("cats", V2, WeightsError("cut"))
        wait_for(lambda: rejection(loader, "cats", V2) == "loading: cut")
        assert detect(client, "cats").json()["model"]["release"] == V1
        assert client.service.catalog.named["cats"].place.size_bytes == 10 * MB


def test_a_model_without_a_version_that_may_serve_is_unavailable_for_the_reason(several, loader):
    loader.folders["cats"].add(Event("rejected", V1, "bad"))
    with several() as client:
        answer = detect(client, "cats")
        assert error_of(answer) == (503, "model_unavailable") and "found no version that is not rejected" in answer.json()["message"]
        assert detect(client, "dogs").json()["model"]["release"] == V1 and threads_of("cats") == []


def test_an_unload_during_a_comparison_ends_the_rollout_and_then_frees_the_room(several, loader, pool):
    with several(max_model_mb=30) as client:
        new = RedEngine(("cat",))
        detect(client, "cats")
        loader.release("cats", V2, new)
        wait_for(lambda: candidate(client, "cats"))
        [thread] = threads_of("cats")
        new.gate.clear()
        batches = len(new.batches)
        assert detect(client, "cats").status_code == 200
        wait_for(lambda: len(new.batches) > batches)
        waiting = pool.submit(detect, client, "cows")
        # The model is unloaded, and the memory of its versions is used until the image is compared.
        wait_for(lambda: loaded(client) == {"cars"})
        time.sleep(0.1)
        assert thread.is_alive() and not waiting.done() and loader.loads == [("cats", V1), ("cats", V2)]
        new.gate.set()
        assert waiting.result().json()["model"]["name"] == "cows"
        wait_for(lambda: not thread.is_alive())
        assert loaded(client) == {"cars", "cows"} and rejection(loader, "cats", V2) is None
        # The next load begins with the version that is proven, and compares again.
        assert detect(client, "cats").json()["model"]["release"] == V1
        wait_for(lambda: candidate(client, "cats"))


@pytest.mark.parametrize("new", [RedEngine(("cat",)), WeightsError("cut"), BlindEngine(("cat",), ())])
def test_an_unload_during_the_load_of_a_version_ends_the_rollout_without_a_judgement(several, loader, pool, new):
    with several(max_model_mb=30) as client:
        detect(client, "cats")
        loader.release_gate.clear()
        loader.release("cats", V2, new)
        wait_for(lambda: ("cats", V2) in loader.loads)
        [thread] = threads_of("cats")
        waiting = pool.submit(detect, client, "cows")
        wait_for(lambda: loaded(client) == {"cars"})
        loader.release_gate.set()
        assert waiting.result().status_code == 200
        wait_for(lambda: not thread.is_alive())
        assert rejection(loader, "cats", V2) is None and loaded(client) == {"cars", "cows"}


def test_a_request_ends_with_the_version_it_began_with_when_its_model_is_unloaded(several, loader, pool):
    """A model whose network is broken is unloaded, whatever is in work."""
    with several() as client:
        detect(client, "cats")
        engine, named = loader.engines["cats"], client.service.catalog.named["cats"]
        engine.gate.clear()
        waiting = pool.submit(detect, client, "cats")
        wait_for(lambda: len(engine.batches) == 2)
        named.models.stable.health.failed_batches = 3
        assert error_of(detect(client, "cats")) == (503, "model_unavailable")
        engine.gate.set()
        assert waiting.result().json()["model"]["release"] == V1
        wait_for(lambda: threads_of("cats") == [])


def test_a_candidate_without_room_waits_and_the_model_goes_on(several, loader, caplog):
    with several(max_model_mb=25) as client:
        detect(client, "cats")
        loader.release("cats", V2, RedEngine(("cat",)))
        wait_for(lambda: "event=version_waits_for_room" in caplog.text)
        time.sleep(0.5)
        assert loaded(client) == {"cars", "cats"} and candidate(client, "cats") is None
        assert detect(client, "cats").json()["model"]["release"] == V1
        assert caplog.text.count(f"event=version_waits_for_room model=cats version={V2} serves={V1}") == 1
        loader.sizes[V2, "cats"] = 5 * MB
        wait_for(lambda: candidate(client, "cats"))
    assert rejection(loader, "cats", V2) is None


def test_a_candidate_unloads_the_least_recently_used_of_the_other_models(several, loader):
    with several(max_model_mb=40) as client:
        detect(client, "dogs"), detect(client, "cows"), detect(client, "cats")
        [thread] = threads_of("dogs")
        loader.release("cats", V2, RedEngine(("cat",)))
        wait_for(lambda: candidate(client, "cats"))
        assert loaded(client) == {"cars", "cows", "cats"}
        wait_for(lambda: not thread.is_alive())


def test_a_candidate_unloads_no_model_if_that_makes_too_little_room(several, loader, caplog):
    with several(max_model_mb=35) as client:
        detect(client, "cows"), detect(client, "cats")
        loader.release("cats", V2, RedEngine(("cat",)), size_mb=20)
        wait_for(lambda: "event=version_waits_for_room" in caplog.text)
        assert loaded(client) == {"cars", "cows", "cats"}


def test_a_candidate_of_the_default_waits_unless_each_other_model_fits_beside_it(several, loader, tmp_path, caplog):
    loader.follow("cars", tmp_path, loader.engines["cars"])
    with several(max_model_mb=25) as client:
        assert release_of(client, "cars") == V1
        loader.release("cars", V2, RedEngine(("car",)))
        wait_for(lambda: "event=version_waits_for_room model=cars" in caplog.text)
        assert detect(client, "cats").json()["model"]["release"] == V1
        loader.release("cars", V3, RedEngine(("car",)), size_mb=5)
        wait_for(lambda: candidate(client, "cars"))
        assert candidate(client, "cars") == {"version": "cars-0003", "release": V3, "before": V1, "stage": "shadow"}
        # Another model still finds room beside both versions.
        assert detect(client, "dogs").status_code == 200 and candidate(client, "cars")


def test_the_way_back_is_open_also_without_room(several, loader):
    loader.release("cats", V2, RedEngine(("cat",)))
    loader.folders["cats"].add(Event("accepted", V2))
    with several(max_model_mb=25) as client:
        assert detect(client, "cats").json()["model"]["release"] == V2
        loader.folders["cats"].add(Event("back", V1))
        wait_for(lambda: detect(client, "cats").json()["model"]["release"] == V1)
        # Only one of the versions stays in memory.
        assert client.service.catalog.named["cats"].place.size_bytes == 10 * MB


def test_the_rollouts_end_with_the_server(several, loader):
    with several() as client:
        detect(client, "cats"), detect(client, "dogs")
        assert len(threads_of("cats")) == len(threads_of("dogs")) == 1
    wait_for(lambda: threads_of("cats") == threads_of("dogs") == [])


def test_a_model_is_not_loaded_into_the_room_of_a_version_that_is_being_loaded(several, loader, pool):
    with several(max_model_mb=35) as client:
        detect(client, "cats")
        loader.release_gate.clear()
        loader.release("cats", V2, RedEngine(("cat",)))
        wait_for(lambda: ("cats", V2) in loader.loads)
        loader.engines["cats"].gate.clear()
        busy = pool.submit(detect, client, "cats")
        wait_for(lambda: client.service.catalog.named["cats"].in_work == 1)
        waiting = pool.submit(detect, client, "cows")
        wait_for(lambda: client.service.catalog.named["cows"].loading is not None)
        time.sleep(0.1)
        assert ("cows", "red") not in loader.loads
        # The candidate fails, and its room is free.
        loader.versions["cats", V2] = WeightsError("cut")
        loader.release_gate.set()
        wait_for(lambda: ("cows", "red") in loader.loads)
        loader.engines["cats"].gate.set()
        assert busy.result().status_code == waiting.result().status_code == 200


def test_the_room_of_a_candidate_becomes_that_of_the_model():
    room = Room(30)
    first = room.open(10)
    assert first and not room.reserve(first, 21) and room.reserve(first, 15) and room.free_bytes == 5
    # A second reservation replaces the first one.
    assert room.reserve(first, 20) and room.free_bytes == 0 and room.open(1) is None
    room.promote(first)
    assert room.free_bytes == 10 and not room.reserve(first, 11) and room.reserve(first, 11, beyond=True)
    assert room.free_bytes == -1
    room.begin_close(first)
    assert (room.free_bytes, room.soon_free_bytes) == (-1, 30)
    room.close(first)
    assert room.free_bytes == room.soon_free_bytes == 30


def save(folder, seed, name):
    torch.manual_seed(seed)
    network = Yolor(TINY, 1, torch.tensor([[[12.0, 12]] * 3, [[40.0, 40]] * 3])).eval()
    save_weights(str(folder), network, WeightsInfo(f"run-{seed}", (name,), 64))
    return str(folder)


def test_the_commands_release_and_back_change_a_model_of_a_list_without_a_restart(tmp_path, monkeypatch):
    """Both the default and the other model have real weights in release folders."""
    for module, name, images in ((rollout, "SHADOW_IMAGES", 2), (rollout, "SHARE_IMAGES", 8), (comparison, "RARE_BOXES_IMAGES", 10)):
        monkeypatch.setattr(module, name, images)
    monkeypatch.setattr(comparison, "ENOUGH_IMAGES", 10)
    first, second = save(tmp_path / "one", 1, "bird"), save(tmp_path / "two", 2, "bird")
    folder, default = str(tmp_path / "live"), str(tmp_path / "default")
    before, started = (release(ReleaseConfig(weights=first, to=to))["version"] for to in (folder, default))
    url = write_list(tmp_path, "models.yaml", birds="default", hounds="live")
    service = start_service(config.ServeConfig(models=url, engine="torch", request_timeout_s=60.0), ServiceMetrics())
    with running(service) as client:
        identity = detect(client).json()["model"]
        assert identity == {"name": "birds", "version": service.models.stable.info.version, "release": started}
        with asking(client, "hounds") as answers:
            wait_for(lambda: answers)
            new = release(ReleaseConfig(weights=second, to=folder, allow_changes=True))["version"]
            wait_for(lambda: release_of(client, "hounds") == new and not candidate(client, "hounds"))
            release(ReleaseConfig(back=True, to=folder))
            wait_for(lambda: answers[-1][2] == before)
    assert {answer[:3] for answer in answers} == {(200, "hounds", before), (200, "hounds", new)}
