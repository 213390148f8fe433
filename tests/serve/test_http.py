"""HTTP interface of one replica, with an engine that detects red rectangles: responses, errors, limits and pages."""

import re
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from PIL import Image

import pictures
from red_engine import RECTANGLE, SIDE, RedEngine, draw_image, encode_image, serve_settings
from yolor_ray.serve.http import errors

JPEG = encode_image()
ORIENTATION = 0x0112


def error_of(response):
    body = response.json()
    assert set(body) == {"code", "message", "request_id"}
    assert errors.STATUS[body["code"]] == response.status_code
    return response.status_code, body["code"]


def png_header(width, height, extra=b""):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_a_response_holds_class_box_and_model(client):
    body = client.post(JPEG, **{"X-Request-ID": "my-id.1"}).json()
    assert body["request_id"] == "my-id.1"
    assert body["model"] == {"name": "fake", "version": "0123456789ab"}
    assert body["image"] == {"width": 200, "height": 120}
    [detection] = body["detections"]
    assert detection["box"] == pytest.approx(RECTANGLE, abs=2)
    assert (detection["class"], detection["class_id"], detection["confidence"]) == ("red", 0, 0.9)
    assert set(body["timing_ms"]) == {"body", "decode", "queue", "network"}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_in_the_displayed_image_whatever_the_exif_orientation(client, orientation):
    stored = pictures.stored(draw_image(), orientation)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    body = client.post(encode_image(stored, exif=exif)).json()
    assert body["image"] == {"width": 200, "height": 120}
    assert body["detections"][0]["box"] == pytest.approx(RECTANGLE, abs=2.5)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF"])
def test_the_other_formats_give_the_same_box(client, format):
    assert client.post(encode_image(format=format)).json()["detections"][0]["box"] == pytest.approx(RECTANGLE, abs=2)


def test_a_large_image_gives_its_box_at_full_size(client):
    large = encode_image(draw_image((1200, 800), (300, 200, 900, 600)))
    assert client.post(large).json()["detections"][0]["box"] == pytest.approx((300, 200, 900, 600), abs=10)


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1)])
def test_extreme_shapes_are_answered(client, size):
    body = client.post(encode_image(Image.new("RGB", size), "PNG")).json()
    assert (body["image"]["width"], body["image"]["height"]) == size
    assert body["detections"] == []


def test_bytes_after_the_end_of_a_jpeg_change_nothing(client):
    expected = client.post(JPEG).json()["detections"]
    assert client.post(JPEG + b"garbage").json()["detections"] == client.post(JPEG + JPEG).json()["detections"] == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (JPEG[: len(JPEG) * 9 // 10], (422, "truncated_image")),
        (b"<!doctype html><html></html>", (415, "unsupported_image")),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", (415, "unsupported_image")),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", (415, "unsupported_image")),
        (b"%PDF-1.7\n", (415, "unsupported_image")),
        (b"8BPS\0\1" + b"\0" * 40, (415, "unsupported_image")),
        (b"\x80\x04\x95pickle.", (415, "unsupported_image")),
        (png_header(60_000, 60_000), (413, "image_too_large")),
        (png_header(1001, 1000), (413, "image_too_large")),
    ],
)
def test_an_unusable_image_is_refused_before_it_is_decoded(client, body, expected):
    assert error_of(client.post(body)) == expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("confidence=-1", "confidence: found '-1', expected a number from 0 to 1, or best"),
        ("confidence=2", "confidence: found '2', expected a number from 0 to 1, or best"),
        ("confidence=NaN", "confidence: found 'NaN', expected a number from 0 to 1, or best"),
        ("confidence=Best", "confidence: found 'Best', expected a number from 0 to 1, or best"),
        ("confidence=", "confidence: found '', expected a number from 0 to 1, or best"),
        ("confidence=0&max_detections=1000000000", "max_detections: found '1000000000', expected a whole number from 1 to 1000"),
        ("max_detections=1.5", "max_detections: found '1.5', expected a whole number from 1 to 1000"),
        ("iou=0", "iou: found '0', expected a number over 0, up to 1"),
        ("iou=inf", "iou: found 'inf', expected a number over 0, up to 1"),
        (
            "conf=0.5",
            "'conf': unknown parameter, expected one of confidence, iou, max_detections, classes, masks, keypoints, labels, embeddings, "
            "tile, overlap, release",
        ),
        ("masks=maybe", "masks: found 'maybe', expected true or false"),
        ("classes=red&classes=unicorn", "classes: found 'unicorn', expected some of red"),
        ("release=0001-aaaa", "release: found '0001-aaaa', expected none, as the model has no release folder"),
    ],
)
def test_a_parameter_out_of_range_is_refused_with_the_range(client, query, message):
    answer = client.post(JPEG, query=f"?{query}")
    assert error_of(answer) == (422, "bad_parameter")
    assert answer.json()["message"] == message


def test_the_settings_replace_absent_parameters(serve, engine):
    with serve() as client:
        client.post(JPEG, query="?confidence=0.4&max_detections=7")
    [options] = engine.batches[-1]
    assert (options.confidence, options.iou, options.max_detections, options.classes) == (0.4, serve_settings().iou, 7, ())


@pytest.mark.parametrize("query", ["", "?confidence=best"])
def test_the_best_confidences_of_the_weights_are_the_default(query, serve, engine):
    engine.info.thresholds["red"] = 0.95
    with serve() as client:
        assert client.post(JPEG, query=query).json()["detections"] == []
        assert len(client.post(JPEG, query="?confidence=0.5").json()["detections"]) == 1
        assert client.get("/v1/model").json()["thresholds"] == {"red": 0.95}


def test_a_confidence_of_the_service_replaces_the_best_ones(serve, engine):
    engine.info.thresholds["red"] = 0.95
    with serve(confidence=0.5) as client:
        assert len(client.post(JPEG).json()["detections"]) == 1
        assert client.post(JPEG, query="?confidence=best").json()["detections"] == []
        assert client.get("/v1/model").json()["defaults"]["confidence"] == 0.5


def test_a_confidence_above_every_box_gives_an_empty_list(client):
    assert client.post(JPEG, query="?confidence=0.95").json()["detections"] == []


def test_the_model_card_lists_classes_size_and_metrics(client):
    card = client.get("/v1/model").json()
    assert card["classes"] == ["red"] and card["image_px"] == SIDE and card["fused"] is True
    assert card["metrics"] == {"AP": 0.5} and card["thresholds"] == {"red": 0.4}
    assert (card["engine"], card["precision"]) == ("red", "float32")
    assert card["fallback_confidence"] == 0.25
    assert card["defaults"] == {"confidence": "best", "iou": 0.5, "max_detections": 300}


@pytest.mark.parametrize("path", ["/v2/detect", "/v1/models/../../etc/passwd", "/v1/model/%2e%2e", "/%00", "/v1/detect/"])
def test_an_unknown_path_is_refused_in_json(client, path):
    assert error_of(client.get(path)) == (404, "not_found")


def test_a_wrong_method_is_refused_in_json(client):
    answer = client.get("/v1/detect")
    assert error_of(answer) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize("request_id", ["", "a b", "<script>alert(1)</script>", "x" * 65, "é"])
def test_an_invalid_request_id_is_replaced(client, request_id):
    answer = client.post(JPEG, **{"X-Request-ID": request_id.encode("latin-1")})
    assert re.fullmatch(r"[0-9a-f]{32}", answer.json()["request_id"])
    assert answer.headers["X-Request-ID"] == answer.json()["request_id"]


def test_errors_contain_the_request_id(client):
    answer = client.get("/nowhere", **{"X-Request-ID": "abc"})
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"] == "abc"


def test_an_internal_error_is_answered_without_details(serve, engine):
    engine.failure = RuntimeError("secret detail in /some/path")
    with serve() as client:
        answer = client.post(JPEG, **{"X-Request-ID": "crash-1"})
        assert error_of(answer) == (500, "internal_error")
        assert answer.json()["request_id"] == "crash-1"
        assert "secret" not in answer.text
        assert 'route="/v1/detect",status="500"} 1.0' in client.get("/metrics").text


def test_a_replica_whose_network_keeps_failing_is_not_ready(serve, engine):
    engine.failure = RuntimeError("device lost")
    with serve() as client:
        assert client.get("/readyz").status_code == 200
        for _ in range(3):
            client.post(JPEG)
        assert error_of(client.get("/readyz")) == (503, "not_ready")
        assert client.get("/healthz").json() == {"status": "ok"}
        engine.failure = None
        client.post(JPEG)
        assert client.get("/readyz").json() == {"status": "ready"}


def in_parallel(client, count):
    pool = ThreadPoolExecutor(count)
    return [pool.submit(client.post, JPEG) for _ in range(count)]


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_requests_beyond_the_queue_are_answered_429_while_the_others_are_served(serve, engine):
    engine.gate.clear()
    with serve(max_batch=2, max_queued=3) as client:
        waiting = in_parallel(client, 5)
        wait_for(lambda: client.service._in_progress == 5)
        answer = client.post(JPEG)
        assert error_of(answer) == (429, "overloaded")
        assert answer.headers["Retry-After"] == "1"
        assert client.get("/healthz").status_code == 200
        engine.gate.set()
        assert [future.result().status_code for future in waiting] == [200] * 5
        assert client.post(JPEG).status_code == 200


def test_requests_that_wait_for_the_network_form_one_batch(serve, engine):
    engine.gate.clear()
    with serve(max_batch=4) as client:
        first = in_parallel(client, 1)
        wait_for(lambda: len(engine.batches) == 1)
        rest = in_parallel(client, 6)
        wait_for(lambda: len(client.service.models.stable.batcher._pending) == 6)
        engine.gate.set()
        assert {future.result().status_code for future in first + rest} == {200}
    assert [len(batch) for batch in engine.batches] == [1, 4, 2]


def test_an_idle_network_starts_a_full_batch_at_once(serve, engine):
    # The wait for a fourth request would end in a timeout of the requests.
    with serve(max_batch=3, batch_wait_ms=60_000.0) as client:
        assert {future.result().status_code for future in in_parallel(client, 3)} == {200}
    assert [len(batch) for batch in engine.batches] == [3]


def test_a_slow_network_is_a_timeout_in_json(serve, engine):
    engine.gate.clear()
    with serve(request_timeout_s=0.3) as client:
        assert error_of(client.post(JPEG)) == (504, "timeout")
        engine.gate.set()
        wait_for(lambda: client.service._in_progress == 0)


def test_requests_that_timed_out_in_the_queue_never_reach_the_network(serve, engine):
    engine.gate.clear()
    with serve(request_timeout_s=0.5, max_batch=1) as client:
        waiting = in_parallel(client, 4)
        assert {future.result().status_code for future in waiting} == {504}
        engine.gate.set()
        assert client.post(JPEG).status_code == 200
    assert len(engine.batches) == 2


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "soon", "", "9" * 10])
def test_a_deadline_that_is_no_number_of_milliseconds_is_refused(client, value):
    answer = client.post(JPEG, **{"X-Request-Timeout-Ms": value})
    assert error_of(answer)[1] == "bad_parameter" and "expected a whole number of milliseconds" in answer.json()["message"]


def test_a_request_has_until_its_own_deadline_and_never_longer_than_the_services(serve, engine):
    engine.gate.clear()
    with serve(request_timeout_s=0.3) as client:
        for value, limit in (("100", "0.1 s"), ("60000", "0.3 s")):
            answer = client.post(JPEG, **{"X-Request-Timeout-Ms": value})
            assert error_of(answer) == (504, "timeout") and limit in answer.json()["message"]


def test_a_request_whose_deadline_cannot_be_met_is_refused_at_once(serve, engine):
    with serve(max_batch=1) as client:
        assert client.post(JPEG).status_code == 200
        engine.gate.clear()
        client.service.models.current.batcher.seconds_per_item = 0.5
        waiting = in_parallel(client, 3)
        wait_for(lambda: client.service._in_progress == 3)
        answer = client.post(JPEG, **{"X-Request-Timeout-Ms": "1400"})
        assert error_of(answer) == (429, "overloaded") and answer.headers["Retry-After"] == "1"
        assert "3 images in work, which take about 1.5 s, expected an answer within 1.4 s" in answer.json()["message"]
        patient = ThreadPoolExecutor(1).submit(client.post, JPEG, **{"X-Request-Timeout-Ms": "5000"})
        wait_for(lambda: client.service._in_progress == 4)
        engine.gate.set()
        assert {future.result().status_code for future in [*waiting, patient]} == {200}


def test_the_image_of_a_client_that_left_never_reaches_the_network(serve, engine):
    engine.gate.clear()
    with serve(max_batch=1) as client:
        first = in_parallel(client, 1)
        wait_for(lambda: len(engine.batches) == 1)
        host, port = client.base.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as leaving:
            head = f"POST /v1/detect HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(JPEG)}\r\n\r\n"
            leaving.sendall(head.encode() + JPEG)
            wait_for(lambda: client.service.models.waiting == 1)
        wait_for(lambda: client.service._in_progress == 1)
        engine.gate.set()
        assert first[0].result().status_code == client.post(JPEG).status_code == 200
        assert 'status="499"' in client.get("/metrics").text
    assert len(engine.batches) == 2


def test_metrics_count_responses_by_route_and_time_the_stages(serve):
    with serve() as client:
        client.post(JPEG)
        client.post(b"no image")
        client.get("/made/up/path")
        text = client.get("/metrics").text
        assert 'yolor_requests_total{replica="replica-1",route="/v1/detect",status="200"} 1.0' in text
        assert 'yolor_requests_total{replica="replica-1",route="/v1/detect",status="415"} 1.0' in text
        assert 'route="other",status="404"' in text and "made" not in text
        for stage in ("body", "decode", "queue", "network"):
            assert f'yolor_stage_seconds_count{{replica="replica-1",stage="{stage}"}} 1.0' in text
        assert 'yolor_batch_images_count{replica="replica-1"} 1.0' in text
        assert 'yolor_detections_sum{replica="replica-1"} 1.0' in text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/model", "/"])
def test_head_is_answered_as_get_without_a_body(client, path):
    answer = requests.head(client.base + path, timeout=20)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Length"] == client.get(path).headers["Content-Length"]
    assert requests.head(client.base + "/nothing", timeout=20).status_code == 404


def test_pages_of_the_given_origins_alone_may_read_answers(serve, client):
    assert "Access-Control-Allow-Origin" not in client.get("/healthz", Origin="https://app.example").headers
    with serve(RedEngine(), cors_origins=("https://app.example",)) as other:
        answer = other.post(JPEG, Origin="https://app.example")
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]
        preflight = {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        assert requests.options(f"{other.base}/v1/detect", headers=preflight, timeout=20).status_code == 200
        assert "Access-Control-Allow-Origin" not in other.get("/healthz", Origin="https://other.example").headers


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_pages_load_nothing_from_other_hosts(client, path):
    answer = client.get(path)
    assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"https?://|innerHTML|<link[^>]+stylesheet|<script[^>]+src", answer.text)


def test_a_class_name_with_markup_is_not_interpreted(serve):
    hostile = RedEngine(("<img src=x onerror=alert(1)>\x1b[31m\n",))
    with serve(hostile) as client:
        answer = client.post(JPEG)
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.json()["detections"][0]["class"] == hostile.info.classes[0]


def test_no_request_waits_for_a_thread_of_the_framework(serve, monkeypatch):
    async def in_thread(*_):
        raise AssertionError("a function that is not async runs in a thread, which costs more than a refusal")

    monkeypatch.setattr("fastapi.dependencies.utils.run_in_threadpool", in_thread)
    monkeypatch.setattr("fastapi.routing.run_in_threadpool", in_thread)
    monkeypatch.setattr("starlette._exception_handler.run_in_threadpool", in_thread)
    with serve() as client:
        assert client.post(JPEG).status_code == 200
        assert client.post(JPEG[:200]).status_code == 422
        assert client.post(JPEG, query="?iou=0").status_code == 422
        assert [client.get(path).status_code for path in ("/v1/model", "/nowhere", "/", "/readyz")] == [200, 404, 200, 200]


def test_the_page_of_the_api_reads_schemas_that_openapi_has(client):
    names = set(re.findall(r"\bschemas\.(\w+)", client.get("/docs").text))
    assert names == {"ErrorBody"}
    assert names <= client.get("/openapi.json").json()["components"]["schemas"].keys()


def test_the_page_reads_fields_that_the_model_card_has(client):
    fields = set(re.findall(r"\bcard\.(\w+)", client.get("/").text)) - {"message"}
    assert {"thresholds", "fallback_confidence", "defaults"} <= fields <= client.get("/v1/model").json().keys()
