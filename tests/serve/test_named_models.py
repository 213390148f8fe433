"""Several models on one replica, over real HTTP: choice by name, loads by requests, memory, failures, and limits that all models share."""

import base64
import gc
import json
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import torch
from test_api_keys import LAB, bearer, line
from test_http import error_of, wait_for

from fake_loader import MB, NAMES, FakeLoader
from http_server import running
from red_engine import encode_image
from yolor_ray import config
from yolor_ray.config import NetworkConfig
from yolor_ray.errors import ConfigError, NotFoundError, WeightsError
from yolor_ray.io.release_folder import Event, ReleaseFolder
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights
from yolor_ray.serve import run
from yolor_ray.serve.catalog import catalog
from yolor_ray.serve.catalog.model_list import read_model_list
from yolor_ray.serve.deployment import build, start_service
from yolor_ray.serve.metrics import ServiceMetrics

JPEG = encode_image()


@pytest.fixture
def loader():
    loader = FakeLoader()
    yield loader
    loader.gate.set()


@pytest.fixture
def several(serve, loader):
    """Serve the models of the loader, of which the default is loaded; a busy machine needs a long time limit."""
    return lambda **options: serve(loader.engines["cars"], loader=loader, request_timeout_s=60.0, **options)


def detect(client, name=None, part="detect", query="", **headers):
    path = f"/v1/models/{name}/{part}" if name else f"/v1/{part}"
    files = {"files": {"file": ("a.jpg", JPEG)}} if part.endswith("batch") else {"data": JPEG}
    headers = headers if part.endswith("batch") else {"Content-Type": "image/jpeg"} | headers
    return requests.post(f"{client.base}{path}{query}", headers=headers, timeout=60, **files)


def infer(client, name):
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(JPEG).decode()]}
    return requests.post(f"{client.base}/v2/models/{name}/infer", json={"inputs": [tensor]}, timeout=60)


def listed(client):
    return {entry["name"]: entry for entry in client.get("/v1/models").json()["models"]}


def loaded(client):
    return {name for name, entry in listed(client).items() if entry["loaded"]}


@pytest.fixture
def pool():
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_a_request_chooses_its_model_by_name(several):
    with several() as client:
        for name in NAMES:
            answer = detect(client, name).json()
            assert answer["model"] == {"name": name, "version": f"{name}-version"} and answer["detections"][0]["class"] == name[:-1]
            batch = detect(client, name, "detect/batch").json()
            assert batch["model"]["name"] == name and batch["results"][0]["detections"][0]["class"] == name[:-1]
            tensors = infer(client, name).json()
            assert (tensors["model_name"], tensors["model_version"]) == (name, f"{name}-version")
            assert tensors["outputs"][2]["data"] == [name[:-1]]
            card = client.get(f"/v1/models/{name}").json()
            assert (card["name"], card["classes"], card["max_images"]) == (name, [name[:-1]], 32)
            assert client.get(f"/v2/models/{name}").json()["name"] == name


def test_a_request_without_a_name_is_answered_by_the_default(several, loader):
    with several() as client:
        assert detect(client).json()["model"]["name"] == "cars"
        assert detect(client, part="detect/batch").json()["model"]["name"] == "cars"
        assert client.get("/v1/model").json()["name"] == "cars"
    assert loader.loads == []


def test_the_query_counts_for_every_model(several, loader):
    with several() as client:
        assert detect(client, "cats", query="?confidence=0.95").json()["detections"] == []
        assert error_of(detect(client, "cats", query="?iou=2")) == (422, "bad_parameter")
    assert [options.confidence for [options] in loader.engines["cats"].batches] == [0.95]


def test_an_unknown_name_is_refused_with_the_names(several, loader):
    with several() as client:
        answers = [detect(client, "birds"), detect(client, "birds", "detect/batch"), client.get("/v1/models/birds")]
        answers += [infer(client, "birds"), client.get("/v2/models/birds"), client.get("/v2/models/birds/ready")]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert answer.json()["message"] == "found the model 'birds' in the path, expected one of 'cars', 'cats', 'dogs', 'cows'"
    assert loader.loads == []


def test_a_service_of_one_model_has_its_own_name(client):
    assert detect(client, "fake").json()["model"]["name"] == "fake"
    assert client.get("/v1/models/fake").json() == client.get("/v1/model").json()
    [entry] = client.get("/v1/models").json()["models"]
    card = {"version": "0123456789ab", "classes": ["red"], "tasks": ["detect"]}
    assert entry == {"name": "fake", "default": True, "loaded": True} | card
    answer = detect(client, "cars")
    assert error_of(answer) == (404, "not_found") and answer.json()["message"] == "found the model 'cars' in the path, expected 'fake'"


def test_the_list_says_the_default_and_what_is_loaded_and_known(several, loader):
    with several(max_model_mb=20) as client:
        before = listed(client)
        assert list(before) == list(NAMES)
        assert before["cars"] == {"name": "cars", "default": True, "loaded": True, "version": "cars-version"} | {
            "classes": ["car"],
            "tasks": ["detect"],
        }
        assert before["cats"] == {"name": "cats", "default": False, "loaded": False}
        detect(client, "cats"), detect(client, "dogs")
        after = listed(client)
    assert after["dogs"]["loaded"] and not after["cats"]["loaded"]
    # The description of an unloaded model is kept.
    assert after["cats"]["classes"] == ["cat"] and "classes" not in after["cows"]


def test_a_model_is_loaded_once_by_its_first_requests_while_others_are_answered(several, loader, pool):
    loader.gate.clear()
    with several() as client:
        waiting = [pool.submit(detect, client, "cats") for _ in range(6)]
        wait_for(lambda: client.service.catalog.named["cats"].in_work == 6)
        for _ in range(3):
            assert detect(client).status_code == 200
        assert not any(future.done() for future in waiting) and loaded(client) == {"cars"}
        loader.gate.set()
        answers = [future.result() for future in waiting]
        assert {answer.json()["model"]["name"] for answer in answers} == {"cats"}
        assert all(answer.json()["timing_ms"]["load"] > 0 for answer in answers)
        assert "load" not in detect(client, "cats").json()["timing_ms"]
        assert 'yolor_stage_seconds_count{replica="replica-1",stage="load"} 6.0' in client.get("/metrics").text
    # The engine of the default is that of the others, where the settings leave the choice.
    assert loader.loads == [("cats", "red")]


def test_a_request_waits_for_a_load_until_its_time_limit_and_the_load_goes_on(several, loader):
    loader.gate.clear()
    with several() as client:
        answer = detect(client, "cats", **{"X-Request-Timeout-Ms": "300"})
        assert error_of(answer) == (504, "timeout") and "0.3 s; the model cats is still being loaded" in answer.json()["message"]
        answer = client.get("/v1/models/cats", **{"X-Request-Timeout-Ms": "300"})
        assert error_of(answer) == (504, "timeout")
        assert client.service._in_progress == 0
        loader.gate.set()
        wait_for(lambda: loaded(client) == {"cars", "cats"})
        assert detect(client, "cats").status_code == 200
    assert loader.loads == [("cats", "red")]


def test_requests_that_wait_for_a_load_leave_half_of_the_queue_to_loaded_models(several, loader, pool):
    loader.gate.clear()
    with several(max_batch=2, max_queued=6) as client:
        for name in ("cats", "dogs"):
            waiting = [pool.submit(detect, client, name) for _ in range(4)]
            wait_for(lambda name=name: client.service.catalog.named[name].in_work == 4)
            answer = detect(client, name)
            assert error_of(answer) == (429, "overloaded") and answer.headers["Retry-After"] == "1"
            assert "4 requests that wait for models to be loaded" in answer.json()["message"]
            assert detect(client).status_code == 200
            loader.gate.set()
            assert [future.result().status_code for future in waiting] == [200] * 4
            loader.gate.clear()


def test_the_least_recently_used_model_makes_room_and_never_the_default(several, loader):
    with several(max_model_mb=30) as client:
        for name, expected in (
            ("cats", {"cats"}),
            ("dogs", {"cats", "dogs"}),
            ("cats", {"cats", "dogs"}),
            ("cows", {"cats", "cows"}),
            ("dogs", {"cows", "dogs"}),
        ):
            assert detect(client, name).json()["model"]["name"] == name
            assert loaded(client) == {"cars"} | expected
        assert detect(client).status_code == 200
    assert [name for name, _ in loader.loads] == ["cats", "dogs", "cows", "dogs"]


def test_a_large_model_makes_room_of_several(several, loader):
    loader.sizes["cows"] = 15 * MB
    with several(max_model_mb=30) as client:
        detect(client, "cats"), detect(client, "dogs"), detect(client, "cows")
        assert loaded(client) == {"cars", "cows"}


def test_the_memory_of_an_unloaded_model_is_free_at_once(several, loader):
    """Without a garbage collection: the next model needs the room."""
    with several(max_model_mb=20) as client:
        detect(client, "cats")
        engine = weakref.ref(loader.engines.pop("cats"))
        gc.disable()
        try:
            detect(client, "dogs")
            assert engine() is None
        finally:
            gc.enable()


def test_a_model_with_an_image_in_work_is_not_unloaded(several, loader, pool):
    with several(max_model_mb=20) as client:
        detect(client, "cats")
        loader.engines["cats"].gate.clear()
        first = pool.submit(detect, client, "cats")
        wait_for(lambda: len(loader.engines["cats"].batches) == 2)
        second = pool.submit(detect, client, "dogs")
        wait_for(lambda: client.service.catalog.named["dogs"].loading is not None)
        time.sleep(0.1)
        assert loaded(client) == {"cars", "cats"} and not second.done()
        loader.engines["cats"].gate.set()
        assert first.result().json()["model"]["name"] == "cats" and second.result().json()["model"]["name"] == "dogs"
        assert loaded(client) == {"cars", "dogs"}


def test_no_model_is_loaded_for_requests_that_have_left_while_it_waited_for_room(several, loader, pool):
    with several(max_model_mb=20) as client:
        detect(client, "cats")
        loader.engines["cats"].gate.clear()
        first = pool.submit(detect, client, "cats")
        wait_for(lambda: len(loader.engines["cats"].batches) == 2)
        assert error_of(detect(client, "dogs", **{"X-Request-Timeout-Ms": "300"})) == (504, "timeout")
        loader.engines["cats"].gate.set()
        assert first.result().status_code == 200
        wait_for(lambda: client.service.catalog.named["dogs"].loading is None)
        assert loaded(client) == {"cars", "cats"}
        assert detect(client, "dogs").status_code == 200
    assert [name for name, _ in loader.loads] == ["cats", "dogs"]


def test_no_model_is_loaded_for_requests_that_have_left_while_another_was_loaded(several, loader, pool):
    loader.gate.clear()
    with several() as client:
        first = pool.submit(detect, client, "cats")
        wait_for(lambda: loader.loads)
        assert error_of(detect(client, "dogs", **{"X-Request-Timeout-Ms": "300"})) == (504, "timeout")
        loader.gate.set()
        assert first.result().status_code == 200
        wait_for(lambda: client.service.catalog.named["dogs"].loading is None)
        assert loaded(client) == {"cars", "cats"}
    assert [name for name, _ in loader.loads] == ["cats"]


def test_a_model_that_never_has_room_is_unavailable_with_the_reason(several, loader):
    loader.sizes["cats"] = 25 * MB
    with several(max_model_mb=30) as client:
        answer = detect(client, "cats")
        assert error_of(answer) == (503, "model_unavailable")
        assert "max_model_mb: found 35.0 MB, the files of cars and cats, expected at most 30 MB" in answer.json()["message"]
        assert detect(client, "dogs").status_code == 200


def test_a_default_that_has_no_room_is_refused_at_the_start(several):
    with (
        pytest.raises(ConfigError, match=r"max_model_mb: found 10\.0 MB, the files of cars, expected at most 5 MB"),
        several(max_model_mb=5),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "told", "hidden"),
    [
        (WeightsError("s3://b/cats: found no tensors, expected some"), "s3://b/cats: found no tensors, expected some", "Traceback"),
        (RuntimeError("secret detail"), "found RuntimeError, expected weights that can be loaded; the log has the error", "secret detail"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_unavailable_and_tried_again_later(several, loader, monkeypatch, caplog, error, told, hidden):
    loader.errors["cats"] = error
    with several() as client:
        for answer in [detect(client, "cats"), detect(client, "cats", "detect/batch"), client.get("/v1/models/cats")]:
            assert error_of(answer) == (503, "model_unavailable") and 50 < int(answer.headers["Retry-After"]) <= 60
            assert told in answer.json()["message"] and hidden not in answer.text
        for answer in (infer(client, "cats"), client.get("/v2/models/cats/ready")):
            assert (answer.status_code, answer.json()["code"]) == (503, "model_unavailable")
        assert loader.loads == [("cats", "red")]
        assert listed(client)["cats"]["fault"] == told and "fault" not in listed(client)["dogs"]
        # The others are as they were, and the replica is ready.
        assert detect(client).status_code == detect(client, "dogs").status_code == client.get("/readyz").status_code == 200
        del loader.errors["cats"]
        now = time.monotonic()
        monkeypatch.setattr(catalog.time, "monotonic", lambda: now + catalog.RETRY_S + 1)
        assert client.get("/v2/models/cats/ready").status_code == 200
        assert detect(client, "cats").json()["model"]["name"] == "cats" and "fault" not in listed(client)["cats"]
    assert [name for name, _ in loader.loads] == ["cats", "dogs", "cats"]
    assert "event=model_unavailable model=cats retry_s=60" in caplog.text


def test_the_reason_of_a_failure_has_no_secret(several, loader, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word-of-32-letters-and-more-digits")
    loader.errors["cats"] = WeightsError("s3://b/cats: refused word-of-32-letters-and-more-digits")
    with several() as client:
        message = detect(client, "cats").json()["message"]
        assert "s3://b/cats: refused <AWS_SECRET_ACCESS_KEY>" in message and "word-of" not in message + str(listed(client))


def test_a_load_that_fails_refuses_all_requests_that_wait_for_it(several, loader, pool):
    loader.gate.clear()
    loader.errors["cats"] = WeightsError("broken")
    with several() as client:
        waiting = [pool.submit(detect, client, "cats") for _ in range(4)]
        wait_for(lambda: client.service.catalog.named["cats"].in_work == 4)
        loader.gate.set()
        assert [error_of(future.result()) for future in waiting] == [(503, "model_unavailable")] * 4
    assert len(loader.loads) == 1


def test_a_model_whose_network_keeps_failing_is_unloaded_and_the_replica_is_ready(several, loader):
    with several() as client:
        detect(client, "cats")
        loader.engines["cats"].failure = ValueError("broken")
        for _ in range(3):
            assert client.get("/v2/models/cats/ready").status_code == 200
            assert error_of(detect(client, "cats")) == (500, "internal_error")
        assert client.get("/v2/models/cats/ready").status_code == 503
        answer = detect(client, "cats")
        assert error_of(answer) == (503, "model_unavailable") and "its network failed several times in a row" in answer.json()["message"]
        assert loaded(client) == {"cars"}
        assert client.get("/readyz").status_code == detect(client, "dogs").status_code == 200


def test_only_a_request_for_a_model_loads_it(several, loader):
    with several() as client:
        for path in ("/v1/models", "/v2/models/cats/ready", "/v2/health/ready", "/metrics", "/"):
            assert client.get(path).status_code == 200, path
        assert loader.loads == []
        assert client.get("/v2/models/cats").json()["platform"] == "yolor_ray_red"
    assert loader.loads == [("cats", "red")]


def test_the_queue_is_that_of_all_models(several, loader, pool):
    for engine in loader.engines.values():
        engine.gate.clear()
    with several(max_batch=1, max_queued=5) as client:
        waiting = [pool.submit(detect, client, name) for name in ("cars", "cars", "cars", "cats", "cats", "dogs")]
        wait_for(lambda: loaded(client) == {"cars", "cats", "dogs"})
        # An image of each model is in a batch, and the batches wait for the network.
        wait_for(lambda: client.service.catalog.waiting == 3)
        assert error_of(detect(client)) == error_of(detect(client, "cats")) == (429, "overloaded")
        metrics = client.get("/metrics").text
        assert 'yolor_in_flight{replica="replica-1"} 6.0' in metrics
        for engine in loader.engines.values():
            engine.gate.set()
        assert [future.result().status_code for future in waiting] == [200] * 6
        assert client.service.catalog.waiting == client.service._in_progress == 0


def test_one_network_runs_at_a_time(several, loader, pool):
    running, most = [], []

    def watched(detect_):
        def run_(images):
            running.append(1)
            most.append(len(running))
            time.sleep(0.01)
            running.pop()
            return detect_(images)

        return run_

    for engine in loader.engines.values():
        engine.detect = watched(engine.detect)
    with several() as client:
        answers = list(pool.map(lambda name: detect(client, name).status_code, NAMES * 4))
    assert answers == [200] * 16 and max(most) == 1


def test_a_request_is_refused_at_once_if_the_work_of_all_models_takes_longer(several, loader, pool):
    with several() as client:
        detect(client, "cats")
        loader.engines["cats"].gate.clear()
        waiting = [pool.submit(detect, client, "cats") for _ in range(3)]
        wait_for(lambda: client.service.catalog.named["cats"].in_work == 3)
        client.service.catalog.named["cats"].models.current.batcher.seconds_per_item = 0.5
        answer = detect(client, **{"X-Request-Timeout-Ms": "1000"})
        assert error_of(answer) == (429, "overloaded") and "which take about 1.5 s" in answer.json()["message"]
        loader.engines["cats"].gate.set()
        assert [future.result().status_code for future in waiting] == [200] * 3


def test_keys_and_their_limits_are_those_of_all_models(several, tmp_path, loader):
    (tmp_path / "keys").write_text(line("lab", LAB) + "\n" + line("shop", "shop-key-1", "requests_per_s=2"))
    with several(api_keys=str(tmp_path / "keys")) as client:
        for answer in (detect(client, "cats"), client.get("/v1/models"), client.get("/v1/models/cats")):
            assert error_of(answer) == (401, "missing_key")
        assert loader.loads == []
        assert detect(client, "cats", **bearer(LAB)).status_code == 200
        answers = [detect(client, name, **bearer("shop-key-1")).status_code for name in ("cars", "cats", "dogs")]
        assert sorted(answers) == [200, 200, 429]


def test_metrics_and_the_access_log_name_the_model(several, loader, tmp_path):
    loader.errors["dogs"] = WeightsError("broken")
    with several(access_log=str(tmp_path / "log")) as client:
        detect(client), detect(client, "cats"), detect(client, "cats"), detect(client, "dogs")
        text = client.get("/metrics").text
    assert 'yolor_version_requests_total{model="cars",replica="replica-1",version="cars-version"} 1.0' in text
    assert 'yolor_version_requests_total{model="cats",replica="replica-1",version="cats-version"} 2.0' in text
    assert 'yolor_requests_total{replica="replica-1",route="/v1/models/{name}/detect",status="503"} 1.0' in text
    assert 'yolor_refusals_total{reason="model_unavailable",replica="replica-1"} 1.0' in text
    lines = [json.loads(text) for text in (tmp_path / "log").read_text().splitlines()]
    assert [line["model"]["name"] for line in lines[:4]] == ["cars", "cats", "cats", "dogs"]
    assert lines[3]["model"] == {"name": "dogs"} and lines[3]["status"] == 503


FILE = "default: cars\nmodels:\n  cars: s3://bucket/cars\n  dogs.v2: ../dogs\n  on: /weights/yes\n"


def test_a_list_names_the_weights_in_its_order_and_paths_count_from_its_folder(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "models.yaml").write_text(FILE)
    found = read_model_list(str(tmp_path / "lists" / "models.yaml"))
    assert found.default == "cars"
    assert list(found.urls.items()) == [("cars", "s3://bucket/cars"), ("dogs.v2", str(tmp_path / "dogs")), ("on", "/weights/yes")]


def test_paths_of_a_list_in_a_bucket_count_from_its_folder(monkeypatch):
    monkeypatch.setattr("yolor_ray.io.storage.read_bytes", lambda url: FILE.encode())
    assert read_model_list("s3://bucket/lists/models.yaml").urls["dogs.v2"] == "s3://bucket/dogs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"models.yaml: found no mapping at the top level, expected YAML with the keys default and models, each once"),
        ("a: [", r"models.yaml: found no valid YAML \(.*expected"),
        ("models:\n  cars: a\n", r"models.yaml: default: found the keys models, expected default and models"),
        ("default: cars\n", r"models.yaml: models: found the keys default, expected default and models"),
        (FILE + "extra: 1\n", r"models.yaml: extra: found the keys default, models, extra, expected default and models"),
        (FILE + "  cars: b\n", r"models.yaml: found key 'cars' a second time in models, in line 6"),
        ("default: birds\nmodels:\n  cars: a\n  dogs: b\n", r"models.yaml: default: found 'birds', expected one of cars, dogs"),
        ("default: cars\nmodels: {}\n", r"models.yaml: default: found 'cars', expected one of the names under models"),
        ("default: cars\nmodels: [a]\n", r"models.yaml: found a list as models, expected a mapping"),
        ("default: cars\nmodels:\n  cars: [a]\n", r"models.yaml: found a list as models.cars, expected a plain value"),
        ("default: a b\nmodels:\n  a b: a\n", r"models.yaml: models: found the name 'a b', expected letters, digits, . _ and -"),
        ("default: ..\nmodels:\n  ..: a\n", r"models.yaml: models: found the name '..', expected letters"),
        ("default: cars\nmodels:\n  cars:\n", r"models.yaml: models.cars: found no URL, expected that of weights"),
        ("default: cars\nmodels:\n  cars: gs://b/c\n", r"models.yaml: models.cars: found a URL with scheme 'gs', expected s3"),
        ("default: cars\nmodels:\n  cars: s3://user:word@b/c\n", r"models.yaml: models.cars: found credentials in a URL"),
    ],
)
def test_a_bad_list_is_refused_by_file_and_key(tmp_path, text, message):
    (tmp_path / "models.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_model_list(str(tmp_path / "models.yaml"))


def test_a_list_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "models.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"models.yaml: found bytes that are not UTF-8, expected YAML"):
        read_model_list(str(tmp_path / "models.yaml"))


TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 8, 8), depths=(1, 1, 1), neck_depth=1, levels=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a folder with weights, a release folder, and no list."""
    folder = tmp_path_factory.mktemp("models")
    for number, name in enumerate(("cars", "dogs")):
        torch.manual_seed(number)
        network = Yolor(TINY, 1, torch.tensor([[[12.0, 12]] * 3, [[40.0, 40]] * 3])).eval()
        save_weights(str(folder / name / "weights"), network, WeightsInfo(f"run-{number}", (name,), 64))
    ReleaseFolder(str(folder / "live")).add(Event("release", "0001-aaaaaaaaaaaa"))
    return folder


def write_list(folder, file, **urls):
    text = "".join(f"  {name}: {url}\n" for name, url in urls.items())
    (folder / file).write_text(f"default: {next(iter(urls))}\nmodels:\n{text}")
    return str(folder / file)


def test_a_service_of_a_list_loads_real_weights_under_the_names_of_the_list(weights):
    """The URLs are those of a run and of a weights folder."""
    url = write_list(weights, "models.yaml", autos="cars", hounds="dogs/weights", live="live")
    service = start_service(config.ServeConfig(models=url, engine="torch"), ServiceMetrics())
    default = service.catalog.default
    assert service.models.current.identity == {"name": "autos", "version": default.info.version}
    files = ("config.json", "weights.safetensors")
    assert default.place.size_bytes >= sum((weights / "cars" / "weights" / file).stat().st_size for file in files)
    loader = service.catalog._loader
    hounds = loader.source("hounds")
    assert loader.load(hounds, "torch").info.name == "hounds" and loader.load(hounds).info.classes == ("dogs",)


def test_requests_load_real_weights_and_unload_them_for_others(weights):
    url = write_list(weights, "small.yaml", autos="cars", hounds="dogs/weights", dogs="dogs")
    sizes = [read_model_list(url).source(name).size_bytes / MB for name in ("autos", "hounds")]
    service = start_service(config.ServeConfig(models=url, engine="torch", max_model_mb=sum(sizes) * 1.1), ServiceMetrics())
    with running(service) as client:
        for name, expected in (("autos", {"autos"}), ("hounds", {"autos", "hounds"}), ("dogs", {"autos", "dogs"})):
            answer = detect(client, name)
            assert answer.status_code == 200 and answer.json()["model"]["name"] == name
            assert loaded(client) == expected


@pytest.mark.parametrize(
    ("urls", "changes", "error", "message"),
    [
        ({"cars": "cars", "live": "live"}, {}, NotFoundError, r"list.yaml: models.live: .*live/versions/0001-aaaaaaaaaaaa"),
        ({"cars": "cars", "cats": "cats"}, {}, NotFoundError, r"list.yaml: models.cats: "),
        ({"cars": "cars", "dogs": "dogs"}, {"max_model_mb": 0.001}, ConfigError, r"list.yaml: models.cars: max_model_mb: found "),
    ],
)
def test_a_list_whose_models_cannot_be_served_is_refused_before_ray_starts(weights, urls, changes, error, message):
    url = write_list(weights, "list.yaml", **urls)
    with pytest.raises(error, match=message):
        run.serve(config.ServeConfig(models=url, **changes))


def test_a_list_whose_models_can_be_served_is_accepted(weights):
    run._check_models(config.ServeConfig(models=write_list(weights, "good.yaml", cars="cars", dogs="dogs/weights")))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "weights: found 'none', expected either weights, a URL, or models, the URL of a list of models"),
        ({"weights": "w", "models": "m.yaml"}, "weights: found 'w and models m.yaml', expected either"),
        ({"models": "m.yaml", "max_model_mb": 0}, "max_model_mb: found 0.0, expected more than 0"),
    ],
)
def test_weights_and_models_are_given_one_of_both(args, message):
    with pytest.raises(ConfigError) as caught:
        build(args)
    assert message in str(caught.value)


def test_a_serve_config_names_the_list():
    [settings] = build({"models": "s3://bucket/models.yaml", "max_model_mb": 500})._bound_deployment.init_args
    assert settings == config.ServeConfig(models="s3://bucket/models.yaml", max_model_mb=500)
