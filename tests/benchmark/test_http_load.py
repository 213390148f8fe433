"""The benchmark of a service over HTTP, against a small server with a known capacity."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import httpx
import pytest
from aiohttp import web

from yolor_ray.benchmark.http_load import KEY_VARIABLE
from yolor_ray.benchmark.plain_server import plain_app
from yolor_ray.benchmark.run import benchmark
from yolor_ray.config import ServeConfig
from yolor_ray.config.benchmark import HttpConfig
from yolor_ray.errors import ConfigError
from yolor_ray.inference.engine_choice import scene_images
from yolor_ray.inference.views import Tiling, open_image
from yolor_ray.serve.engine import DetectOptions, LocalEngine
from yolor_ray.serve.response import detections_json, locate

WORK_S = 0.02
"""Time of one request in the server, which works on one at a time."""


class SlowServer:
    """Server that works on one request at a time, and refuses those beside `most_waiting`."""

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting, self._waiting = most_waiting, 0
        self._work = asyncio.Lock()
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.headers.append(dict(request.headers))
        if self._waiting > self._most_waiting:
            return web.json_response({"code": "overloaded"}, status=429)
        self._waiting += 1
        async with self._work:
            await asyncio.sleep(WORK_S)
        self._waiting -= 1
        return web.json_response({})

    async def card(self, _: web.Request) -> web.Response:
        limits = {"confidence": "best", "iou": 0.5, "max_detections": 300}
        return web.json_response({"engine": "torch", "precision": "float32", "defaults": limits})


@contextmanager
def running(server: SlowServer) -> Iterator[str]:
    """Run the server in a thread, and yield its address."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    addresses: list[str] = []

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/detect", server.answer)
        app.router.add_get("/v1/model", server.card)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        addresses.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        started.set()
        return runner

    def run() -> None:
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    yield addresses[0]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolor_ray.benchmark.http_load.WARM_UP_S", 0.05)


def test_loops_count_answers_refusals_and_the_wait_of_requests_that_were_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "the-key")
    server = SlowServer(most_waiting=20)
    with running(server) as url:
        result = benchmark(HttpConfig(url=url, images="scenes:3", clients=(1, 4), loads=(8.0,), seconds=0.8))
    one, four, flood = result["rows"]
    assert [row["loop"] for row in result["rows"]] == ["closed", "closed", "open"]
    assert one["statuses"].keys() == four["statuses"].keys() == {"200"}
    assert four["accepted_s"]["p50"] > 2 * WORK_S > one["accepted_s"]["p50"] * 0.5, "four clients wait for each other"
    assert result["full"]["goodput_per_s"] == max(one["goodput_per_s"], four["goodput_per_s"]) <= 1 / WORK_S + 5
    assert flood["sent_per_s"] == pytest.approx(8 * result["full"]["goodput_per_s"], rel=0.01)
    assert flood["statuses"].keys() == {"200", "429"} and sum(flood["statuses"].values()) == flood["requests"]
    assert flood["accepted_s"]["p99"] > 10 * WORK_S, "requests that waited in the queue count from the time they were due"
    assert flood["goodput_ratio"] == pytest.approx(flood["goodput_per_s"] / result["full"]["goodput_per_s"], abs=0.01)
    assert flood["p99_ratio"] > 1
    assert len(set(server.bodies)) == 3 and all(body[:2] == b"\xff\xd8" for body in server.bodies)
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer the-key"}
    assert "the-key" not in json.dumps(result, allow_nan=False)


def test_the_goodput_is_compared_with_that_of_a_plain_server_of_the_same_weights() -> None:
    with running(SlowServer(most_waiting=20)) as url:
        result = benchmark(HttpConfig(url=url, images="scenes:3", clients=(2,), loads=(), seconds=0.5, plain_weights="builtin"))
    (row,) = result["plain"]
    assert row["clients"] == 2 and 0 < row["goodput_per_s"]["service"] <= 1 / WORK_S + 5 and row["goodput_per_s"]["plain"] > 0
    assert row["ratio"] == pytest.approx(row["goodput_per_s"]["service"] / row["goodput_per_s"]["plain"], rel=0.5)


def test_a_plain_server_finds_the_boxes_of_the_engine() -> None:
    settings = ServeConfig(weights="builtin", engine="torch", confidence=0.05)
    engine = LocalEngine(settings)
    data = cv2.imencode(".jpg", scene_images(engine.info.image_px, 1)[0, ..., ::-1])[1].tobytes()
    image = open_image(data, engine.info.image_px, Tiling())
    view, options = next(iter(image.views)), DetectOptions(0.05, settings.iou, settings.max_detections)
    expected = locate(engine.info, image, [(view, engine.detect([(view, options)])[0].detections)], options)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(plain_app(engine, settings)), base_url="http://plain") as client:
            return await client.post("/v1/detect", content=data)

    answer = asyncio.run(ask()).json()
    assert answer == detections_json(engine.info, expected, image, options)
    assert len(answer["detections"]) > 0


def test_a_server_without_a_card_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_: SlowServer, __: web.Request) -> web.Response:
        return web.Response(status=404)

    monkeypatch.setattr(SlowServer, "card", refuse)
    with running(SlowServer(most_waiting=20)) as url, pytest.raises(ConfigError, match=r"url: found status 404 at .*/v1/model, expected"):
        benchmark(HttpConfig(url=url, images="scenes:1", clients=(1,), loads=(), seconds=0.1, plain_weights="builtin"))


def test_weights_that_the_plain_server_cannot_load_are_told(tmp_path: Path) -> None:
    with running(SlowServer(most_waiting=20)) as url, pytest.raises(ConfigError, match="plain_weights: found no server"):
        benchmark(HttpConfig(url=url, images="scenes:1", clients=(1,), loads=(), seconds=0.1, plain_weights=str(tmp_path)))


def test_a_service_that_is_not_there_and_one_that_refuses_are_told() -> None:
    with pytest.raises(ConfigError, match=r"url: found no answer at http://127\.0\.0\.1:9/v1/detect .*expected a running service"):
        benchmark(HttpConfig(url="http://127.0.0.1:9", images="scenes:1"))
    with running(SlowServer(most_waiting=-1)) as url, pytest.raises(ConfigError, match=r"url: found status 429 at .*overloaded"):
        benchmark(HttpConfig(url=url, images="scenes:1"))


@pytest.mark.parametrize(
    ("name", "value"), [("url", "localhost:8000"), ("query", "masks=false"), ("clients", ()), ("loads", (0.0,)), ("seconds", 0.0)]
)
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name}: found"):
        HttpConfig(**{name: value})
