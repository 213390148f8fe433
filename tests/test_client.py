"""Clients of a service, both kinds against the real application: images, batches, repetitions while it is busy, and errors."""

import asyncio
import email.utils
import hashlib
import pickle
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

import http_server
import yolor_ray as yr
from fake_loader import FakeLoader
from http_server import served
from red_engine import ALL_TASKS, RECTANGLE, RedEngine, draw_image, encode_image, serve_settings
from yolor_ray import client as client_module
from yolor_ray import client_calls
from yolor_ray.errors import WeightsError
from yolor_ray.serve.http.api import create_app
from yolor_ray.serve.http.api_keys import ApiKeys
from yolor_ray.serve.http.body import time_limit_s
from yolor_ray.serve.metrics import ServiceMetrics
from yolor_ray.serve.service import Service

PHOTO = draw_image()
PNG = encode_image(format="PNG")
PATIENT = {"request_timeout_s": 60.0}
"""Settings of services that answer batches on a busy machine."""
RECTANGLES = [(10 + 4 * index, 30, 60 + 4 * index, 90) for index in range(35)]


@contextmanager
def sync_service(engine, **changes):
    """Serve over real HTTP, and yield the service and a function that calls it by a `Client`."""
    with served(engine, **PATIENT | changes) as server:
        yield server.service, lambda method, *args, **given: sync_call(server.base, method, *args, **given)


@contextmanager
def async_service(engine, **changes):
    """Yield a service and a function that calls its application by an `AsyncClient`."""
    loader = changes.pop("loader", None)
    service = Service(engine, serve_settings(**PATIENT | changes), ServiceMetrics("replica-1"), loader=loader)
    transport = httpx.ASGITransport(create_app(service))
    yield service, lambda method, *args, **given: async_call("http://service", method, *args, transport=transport, **given)


def split(given):
    """Return the options of a client, and the query."""
    names = ("api_key", "timeout_s", "transport")
    return {name: given[name] for name in names if name in given}, {name: given[name] for name in given if name not in names}


def sync_call(url, method, *args, **given):
    options, query = split(given)
    with yr.Client(url, **options) as client:
        return getattr(client, method)(*args, **query)


def async_call(url, method, *args, **given):
    options, query = split(given)

    async def main():
        async with yr.AsyncClient(url, **options) as client:
            return await getattr(client, method)(*args, **query)

    return asyncio.run(main())


@pytest.fixture(params=[sync_service, async_service], ids=["Client", "AsyncClient"])
def serve(request):
    return request.param


@pytest.fixture(params=[sync_call, async_call], ids=["Client", "AsyncClient"])
def call(request):
    return request.param


@pytest.fixture
def ask(serve):
    with serve(RedEngine()) as (_, ask):
        yield ask


@pytest.fixture
def clock(monkeypatch):
    """Clock of the clients that moves by their pauses alone; `pauses` are those."""
    clock = SimpleNamespace(now=1000.0, pauses=[])

    def sleep(seconds):
        clock.pauses.append(seconds)
        clock.now += seconds

    async def async_sleep(seconds):
        sleep(seconds)

    times = SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now, sleep=sleep)
    for module in (client_module, client_calls):
        monkeypatch.setattr(module, "time", times)
    monkeypatch.setattr(client_module, "asyncio", SimpleNamespace(sleep=async_sleep, to_thread=asyncio.to_thread))
    return clock


def scripted(*replies):
    """Return a transport that gives these replies, arguments of a response or an exception, in turn, and the requests that it got."""
    pending, got = list(replies), []

    def answer(request):
        got.append(request)
        reply = pending.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(**reply)

    return httpx.MockTransport(answer), got


def boxes(answer):
    return [detection["box"] for detection in answer["detections"]]


def without_timing(answer):
    return {name: value for name, value in answer.items() if name not in ("timing_ms", "request_id")}


def test_an_answer_is_that_of_the_service():
    with served(RedEngine()) as server, yr.Client(server.base) as client:
        answer = client.detect(PNG)
        assert without_timing(answer) == without_timing(server.post(PNG).json())
        assert answer.keys() == server.post(PNG).json().keys()
        assert boxes(answer) == [pytest.approx(RECTANGLE, abs=2)]
        assert client.model() == server.get("/v1/model").json()


def test_each_kind_of_image_gives_the_same_answer(ask, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    pixels = np.array(PHOTO)
    rgba = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    turned = Image.fromarray(np.rot90(pixels, -1).copy())
    turned.getexif()[0x0112] = 8
    answers = [ask("detect", image) for image in (PNG, path, str(path), pixels, rgba, PHOTO, PHOTO.convert("P"), turned)]
    assert all(without_timing(answer) == without_timing(answers[0]) for answer in answers)
    assert len(answers[0]["detections"]) == 1
    assert ask("detect", pixels[..., 0])["detections"] == []


def test_the_query_reaches_the_service(serve):
    with serve(RedEngine(tasks=ALL_TASKS)) as (_, ask):
        assert "mask" in ask("detect", PNG)["detections"][0]
        assert "mask" not in ask("detect", PNG, masks=False)["detections"][0]
        assert ask("detect", PNG, confidence=0.95)["detections"] == []
        assert [result["detections"] for result in ask("detect_batch", [PNG, PNG], confidence=0.95)] == [[], []]


def test_the_time_limit_of_a_call_reaches_the_service(serve, monkeypatch):
    limits_s = []

    def noted(request, longest_s):
        limits_s.append(time_limit_s(request, longest_s))
        return limits_s[-1]

    monkeypatch.setattr("yolor_ray.serve.service.time_limit_s", noted)
    with serve(RedEngine(), request_timeout_s=30.0) as (_, ask):
        ask("detect", PNG, timeout_s=7.0)
        ask("detect", PNG, timeout_s=60.0)
    assert 5 < limits_s[0] <= 7 and limits_s[1] == 30, "the service's own limit is 30 s"


def test_a_batch_has_the_order_of_its_images_and_an_error_for_a_broken_one(ask, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    results = ask("detect_batch", [tmp_path / "a.png", b"no image", np.array(PHOTO), PNG[:200]])
    assert [result["name"] for result in results] == ["a.png", "image-1", "image-2", "image-3"]
    assert [result.get("error", {}).get("code") for result in results] == [None, "unsupported_image", None, "truncated_image"]
    assert results[0]["detections"] == results[2]["detections"] and len(results[0]["detections"]) == 1


def test_more_images_than_a_request_takes_are_sent_in_several(serve):
    images = [encode_image(draw_image((300, 120), rectangle), "PNG") for rectangle in RECTANGLES]
    with serve(RedEngine()) as (service, ask):
        results = ask("detect_batch", iter(images))
        metrics = service.metrics.text()[0].decode()
    assert 'route="/v1/detect/batch",status="200"} 2.0' in metrics
    assert [result["name"] for result in results] == [f"image-{index}" for index in range(35)]
    for rectangle, result in zip(RECTANGLES, results, strict=True):
        assert boxes(result) == [pytest.approx(rectangle, abs=2.5)]


def test_a_service_with_a_short_queue_gets_requests_of_as_many_images_as_it_takes(serve):
    images = [encode_image(draw_image((300, 120), rectangle), "PNG") for rectangle in RECTANGLES]
    with serve(RedEngine(), max_batch=2, max_queued=6) as (service, ask):
        assert ask("model")["max_images"] == 8
        results = ask("detect_batch", images)
        metrics = service.metrics.text()[0].decode()
    assert [result["name"] for result in results] == [f"image-{index}" for index in range(35)]
    for rectangle, result in zip(RECTANGLES, results, strict=True):
        assert boxes(result) == [pytest.approx(rectangle, abs=2.5)]
    # Only the first request, of 32 images, is refused.
    assert 'route="/v1/detect/batch",status="422"} 1.0' in metrics and 'route="/v1/detect/batch",status="200"} 5.0' in metrics


def test_a_call_names_its_model_and_the_default_answers_without_a_name(serve):
    loader = FakeLoader()
    with serve(loader.engines["cars"], loader=loader, max_batch=2, max_queued=6) as (_, ask):
        assert [(model["name"], model["default"], model["loaded"]) for model in ask("models")][:2] == [
            ("cars", True, True),
            ("cats", False, False),
        ]
        assert ask("detect", PNG)["model"]["name"] == ask("model")["name"] == "cars"
        answer = ask("detect", PNG, model="cats", confidence=0.5)
        assert answer["model"]["name"] == "cats" and answer["detections"][0]["class"] == "cat"
        # The queue is shorter than the batch.
        results = ask("detect_batch", [PNG] * 9, model="dogs")
        assert [result["detections"][0]["class"] for result in results] == ["dog"] * 9
        assert ask("model", model="dogs")["classes"] == ["dog"] and ask("detect_batch", [PNG])[0]["detections"][0]["class"] == "car"
        with pytest.raises(yr.errors.RefusedError, match=r"found the model 'big birds\?' in the path, expected one of 'cars'") as caught:
            ask("detect", PNG, model="big birds?")
        assert caught.value.code == "not_found"


def test_a_model_that_cannot_be_loaded_is_busy_for_its_clients(serve):
    loader = FakeLoader()
    loader.errors["cats"] = WeightsError("no tensors")
    with (
        serve(loader.engines["cars"], loader=loader) as (_, ask),
        pytest.raises(yr.errors.BusyError, match="model_unavailable: the model cats cannot be used: no tensors"),
    ):
        ask("detect", PNG, model="cats")
    assert len(loader.loads) == 1


TOO_MANY = dict(status_code=422, json={"code": "too_many_images", "message": "expected 1 to 2 parts", "request_id": ""})


def test_the_limit_of_a_service_is_learned_once_and_again_when_it_shrinks(call):
    def results(*names):
        return dict(status_code=200, json={"results": [{"name": name} for name in names]})

    limits = [dict(status_code=200, json={"max_images": limit}) for limit in (2, 1)]
    transport, got = scripted(TOO_MANY, limits[0], results("0", "1"), TOO_MANY, limits[1], results("2"), results("3"), results("4"))
    assert call("http://service", "detect_batch", [PNG] * 5, transport=transport) == [{"name": str(index)} for index in range(5)]
    assert [request.content.count(PNG) for request in got if request.method == "POST"] == [5, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("limit", [0, 3, 32])
def test_a_service_that_refuses_fewer_images_than_it_says_is_an_error(call, limit):
    transport, _ = scripted(TOO_MANY, dict(status_code=200, json={"max_images": limit}))
    with pytest.raises(yr.errors.RefusedError, match="too_many_images: expected 1 to 2 parts"):
        call("http://service", "detect_batch", [PNG] * 3, transport=transport)


def test_no_request_of_a_batch_has_more_bytes_than_services_take(serve, monkeypatch):
    monkeypatch.setattr(client_calls, "BATCH_BYTES", 2 * len(PNG))
    with serve(RedEngine()) as (service, ask):
        assert len(ask("detect_batch", [PNG] * 5)) == 5
        assert 'route="/v1/detect/batch",status="200"} 3.0' in service.metrics.text()[0].decode()
        assert ask("detect_batch", [PNG + b"\0" * 2 * len(PNG)])[0]["detections"], "one image is sent however large it is"
        assert ask("detect_batch", []) == []
        assert 'route="/v1/detect/batch",status="200"} 4.0' in service.metrics.text()[0].decode()


@pytest.mark.parametrize(
    ("image", "query", "status", "code", "message"),
    [
        (b"<html>", {}, 415, "unsupported_image", "found bytes that start with"),
        (PNG[:200], {}, 422, "truncated_image", ""),
        (PNG, {"conf": 0.5}, 422, "bad_parameter", "'conf': unknown parameter"),
        (PNG, {"iou": 0}, 422, "bad_parameter", "iou: found '0', expected a number over 0, up to 1"),
    ],
)
def test_a_refused_request_raises_code_message_and_request_id(ask, image, query, status, code, message):
    with pytest.raises(yr.errors.RefusedError) as caught:
        ask("detect", image, **query)
    error = caught.value
    assert (error.code, error.status) == (code, status) and message in error.message and len(error.request_id) == 32
    assert str(error) == f"{code}: {error.message} (status {status}, request {error.request_id})"
    assert isinstance(error, yr.errors.UserError) and isinstance(error, yr.errors.ServiceError)
    copy = pickle.loads(pickle.dumps(error))
    assert vars(copy) == vars(error) and str(copy) == str(error) and type(copy) is type(error)


def test_the_key_is_sent_and_a_wrong_one_is_refused(serve, tmp_path):
    (tmp_path / "keys").write_text(f"lab sha256:{hashlib.sha256(b'key-of-lab').hexdigest()}")
    with serve(RedEngine(), api_keys=str(tmp_path / "keys")) as (_, ask):
        assert len(ask("detect", PNG, api_key="key-of-lab")["detections"]) == 1
        assert ask("model", api_key="key-of-lab")["name"] == "fake"
        for options, code in (({}, "missing_key"), ({"api_key": "key-of-others"}, "wrong_key")):
            for method, args in (("detect", [PNG]), ("detect_batch", [[PNG]]), ("model", [])):
                with pytest.raises(yr.errors.RefusedError) as caught:
                    ask(method, *args, **options)
                assert caught.value.code == code and "key-of" not in str(caught.value)
        assert ask("ready")


def test_a_service_that_fails_is_an_error_of_the_service():
    engine = RedEngine()
    engine.failure = RuntimeError("broken")
    with served(engine) as server, yr.Client(server.base) as client:
        for _ in range(3):
            with pytest.raises(yr.errors.ServiceError) as caught:
                client.detect(PNG)
            assert type(caught.value) is yr.errors.ServiceError and caught.value.code == "internal_error"
        assert not client.ready()


def test_a_busy_service_is_asked_again_after_the_time_that_it_names(serve, clock, tmp_path):
    (tmp_path / "keys").write_text(f"lab sha256:{hashlib.sha256(b'key-of-lab').hexdigest()} requests_per_s=0.1")
    with serve(RedEngine(), api_keys=str(tmp_path / "keys")) as (service, ask):
        service.keys = ApiKeys(str(tmp_path / "keys"), clock=lambda: clock.now)
        answers = [ask("detect", PNG, api_key="key-of-lab", timeout_s=60.0) for _ in range(3)]
        assert clock.pauses == [10.0, 10.0]
        assert [len(answer["detections"]) for answer in answers] == [1, 1, 1]
        with pytest.raises(yr.errors.BusyError) as caught:
            ask("detect", PNG, api_key="key-of-lab", timeout_s=9.0)
        assert (caught.value.status, caught.value.code) == (429, "rate_limited") and len(clock.pauses) == 2
        assert not isinstance(caught.value, yr.errors.UserError)


NOT_READY = {"code": "not_ready", "message": "no replica is ready", "request_id": ""}


@pytest.mark.parametrize(
    ("reply", "pause_s"),
    [
        (dict(status_code=503, json=NOT_READY, headers={"Retry-After": "7"}), 7),
        (dict(status_code=503, text="<html>busy</html>"), 1),
        (dict(status_code=429, headers={"Retry-After": "soon"}), 1),
        (dict(status_code=503, headers={"Retry-After": email.utils.formatdate(1012, usegmt=True)}), 12),
        (dict(status_code=503, headers={"Retry-After": email.utils.formatdate(900, usegmt=True)}), 0),
    ],
)
def test_the_pause_is_that_of_the_header(call, clock, reply, pause_s):
    transport, got = scripted(reply, dict(status_code=200, json={"detections": []}))
    assert call("http://service/cars", "detect", PNG, transport=transport, confidence=0.5) == {"detections": []}
    assert clock.pauses == [pause_s]
    assert [str(request.url) for request in got] == ["http://service/cars/v1/detect?confidence=0.5"] * 2
    assert got[0].content == got[1].content == PNG
    assert got[0].headers["X-Request-ID"] == got[1].headers["X-Request-ID"]


def test_a_batch_is_sent_again_as_a_whole(call, clock):
    transport, got = scripted(dict(status_code=429), dict(status_code=200, json={"results": [{"name": "image-0"}]}))
    assert call("http://service", "detect_batch", [PNG], transport=transport) == [{"name": "image-0"}]
    assert PNG in got[0].content and PNG in got[1].content


def test_repetitions_end_at_the_time_limit(call, clock):
    transport, got = scripted(*[dict(status_code=503, json=NOT_READY, headers={"Retry-After": "4"}) for _ in range(9)])
    with pytest.raises(yr.errors.BusyError) as caught:
        call("http://service", "model", transport=transport, timeout_s=10.0)
    assert clock.pauses == [4, 4] and len(got) == 3
    assert [request.extensions["timeout"]["read"] for request in got] == [10.0, 6.0, 2.0]
    assert (caught.value.code, caught.value.message, caught.value.status) == ("not_ready", "no replica is ready", 503)
    assert caught.value.request_id == got[0].headers["X-Request-ID"]


@pytest.mark.parametrize("status", [400, 404, 500, 502, 504])
def test_other_errors_are_not_repeated(call, clock, status):
    transport, got = scripted(dict(status_code=status, text="<html>no</html>", headers={"Retry-After": "1"}))
    with pytest.raises(yr.errors.ServiceError) as caught:
        call("http://service", "detect", PNG, transport=transport)
    assert len(got) == 1 and clock.pauses == []
    assert (caught.value.code, caught.value.message) == (f"status_{status}", "<html>no</html>")
    assert isinstance(caught.value, yr.errors.RefusedError) == (status < 500)


@pytest.mark.parametrize("reply", [dict(status_code=200, text="<html>"), dict(status_code=200, json=[1])])
def test_an_answer_that_is_none_of_a_service_is_an_error(call, reply):
    with pytest.raises(yr.errors.ServiceError, match=r"bad_answer: found .*, expected JSON of a service"):
        call("http://service", "model", transport=scripted(reply)[0])


@pytest.mark.parametrize("fault", [httpx.ConnectError("refused"), httpx.ReadTimeout(""), httpx.RemoteProtocolError("cut")])
def test_a_service_that_gives_no_answer_is_unreachable(call, fault):
    with pytest.raises(yr.errors.UnreachableError) as caught:
        call("http://user:secret@service", "detect", PNG, transport=scripted(fault, fault)[0], confidence=0.5)
    assert (caught.value.code, caught.value.status) == ("unreachable", 0) and len(caught.value.request_id) == 32
    assert type(fault).__name__ in caught.value.message and "service/v1/detect: " in caught.value.message
    assert "secret" not in str(caught.value)
    assert call("http://service", "ready", transport=scripted(fault)[0]) is False


@pytest.mark.parametrize("fault", [httpx.ReadError("reset"), httpx.RemoteProtocolError("Server disconnected"), httpx.WriteError("pipe")])
def test_a_request_on_a_connection_that_the_service_closed_is_sent_again_once(call, clock, fault):
    transport, got = scripted(fault, dict(status_code=200, json={"detections": []}))
    assert call("http://service", "detect", PNG, transport=transport) == {"detections": []}
    assert [request.content for request in got] == [PNG, PNG] and clock.pauses == []
    transport, got = scripted(fault, fault, dict(status_code=200, json={}))
    with pytest.raises(yr.errors.UnreachableError):
        call("http://service", "detect", PNG, transport=transport)
    assert len(got) == 2


def test_a_closed_port_is_unreachable(call):
    with pytest.raises(yr.errors.UnreachableError, match="ConnectError"):
        call("http://127.0.0.1:1", "model")


def test_ready_is_asked_once(call, clock):
    transport, got = scripted(dict(status_code=503, headers={"Retry-After": "1"}))
    assert call("http://service", "ready", transport=transport) is False
    assert len(got) == 1 and clock.pauses == []


def test_a_file_that_is_missing_and_an_array_that_is_no_image_are_refused_before_a_request(call, tmp_path):
    transport, got = scripted()
    with pytest.raises(yr.errors.NotFoundError):
        call("http://service", "detect", tmp_path / "none.jpg", transport=transport)
    with pytest.raises(yr.errors.ImageError, match="float64"):
        call("http://service", "detect", np.zeros((4, 4, 3)), transport=transport)
    assert got == []


def test_connections_are_kept_until_the_client_is_closed(monkeypatch):
    ports = []

    def recording(service):
        app = create_app(service)

        async def recorded(scope, receive, send):
            ports.append(scope["client"][1])
            await app(scope, receive, send)

        return recorded

    monkeypatch.setattr(http_server, "create_app", recording)
    with served(RedEngine()) as server:
        with yr.Client(server.base) as client:
            for _ in range(3):
                client.detect(PNG)
        assert len(ports) == 3 and len(set(ports)) == 1
        with pytest.raises(RuntimeError, match="closed"):
            client.model()

        async def ask_often():
            async with yr.AsyncClient(server.base) as client:
                for _ in range(3):
                    await client.model()

        asyncio.run(ask_often())
        assert len(set(ports[3:])) == 1


def test_many_calls_of_one_async_client_run_side_by_side():
    engine = RedEngine()
    service = Service(engine, serve_settings(), ServiceMetrics("replica-1"))

    async def main():
        async with yr.AsyncClient("http://service", transport=httpx.ASGITransport(create_app(service))) as client:
            engine.gate.clear()
            calls = [asyncio.create_task(client.detect(PNG)) for _ in range(5)]
            while service._in_progress < 5:
                await asyncio.sleep(0.001)
            engine.gate.set()
            return await asyncio.gather(*calls)

    assert [len(answer["detections"]) for answer in asyncio.run(main())] == [1] * 5


def test_the_client_needs_neither_torch_nor_ray():
    program = "import sys, yolor_ray; yolor_ray.Client, yolor_ray.AsyncClient; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "httpx" in loaded and not {"torch", "ray", "fastapi", "starlette", "matplotlib"} & set(loaded)
