"""Several images in one request: order, broken images, limits, and the queue."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest
import requests
from PIL import Image
from test_api_keys import LAB, SHOP, bearer, line
from test_http import error_of, in_parallel, wait_for
from test_request_log import sample

from red_engine import RedEngine, draw_image, encode_image
from yolor_ray.config.serve import MAX_IMAGES

JPEG = encode_image()
RECTANGLES = [(10 + 20 * index, 30, 60 + 20 * index, 90) for index in range(4)]
PHOTOS = [(f"photo-{index}.png", encode_image(draw_image(rectangle=rectangle), "PNG")) for index, rectangle in enumerate(RECTANGLES)]


def post(client, files, query="", **headers):
    parts = [("file", file) for file in files]
    return requests.post(f"{client.base}/v1/detect/batch{query}", files=parts, headers=headers, timeout=20)


def results_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def without_timing(fields):
    return {name: value for name, value in fields.items() if name != "timing_ms"}


def test_each_result_is_the_answer_to_its_image_alone(client):
    answer = post(client, PHOTOS, **{"X-Request-ID": "batch-1"})
    assert (answer.json()["request_id"], answer.json()["model"]) == ("batch-1", {"name": "fake", "version": "0123456789ab"})
    for (name, data), result in zip(PHOTOS, results_of(answer), strict=True):
        alone = client.post(data).json()
        assert result["name"] == name
        assert set(result) == {"name", *alone} - {"request_id", "model"}
        assert set(result["timing_ms"]) == set(alone["timing_ms"])
        assert {**without_timing(result), **{key: alone[key] for key in ("request_id", "model")}} == {"name": name, **without_timing(alone)}


def test_results_are_in_the_order_of_the_parts_though_the_images_are_decoded_side_by_side(serve):
    with serve(decode_threads=4, max_body_mb=20.0) as client:
        slow = encode_image(draw_image((1200, 800), (300, 200, 900, 600)), "PNG")
        results = results_of(post(client, [("slow.png", slow), *PHOTOS, ("slow-2.png", slow)]))
    assert [result["name"] for result in results] == ["slow.png", *(name for name, _ in PHOTOS), "slow-2.png"]
    assert [result["image"]["width"] for result in results] == [1200, 200, 200, 200, 200, 1200]
    for rectangle, result in zip(RECTANGLES, results[1:-1], strict=True):
        assert result["detections"][0]["box"] == pytest.approx(rectangle, abs=2)


def test_broken_images_have_their_error_and_the_others_their_answer(client):
    files = [
        PHOTOS[0],
        ("cut.jpg", JPEG[: len(JPEG) * 9 // 10]),
        ("page.html", b"<!doctype html>"),
        ("empty.png", b""),
        ("huge.png", encode_image(Image.new("RGB", (1001, 1000)), "PNG")),
        PHOTOS[1],
    ]
    results = results_of(post(client, files))
    assert [result["name"] for result in results] == [name for name, _ in files]
    codes = [result.get("error", {}).get("code") for result in results]
    assert codes == [None, "truncated_image", "unsupported_image", "empty_image", "image_too_large", None]
    for (_, data), result in zip(files[1:-1], results[1:-1], strict=True):
        alone = client.post(data).json()
        assert set(result) == {"name", "error"} and set(result["error"]) == {"code", "message"}
        assert data == b"" or result["error"]["message"] == alone["message"]
    assert len(results[0]["detections"]) == len(results[-1]["detections"]) == 1


def test_the_images_share_forward_passes(serve):
    engine = RedEngine()
    engine.gate.clear()
    with serve(engine, max_batch=8) as client, ThreadPoolExecutor(1) as pool:
        [first] = in_parallel(client, 1)
        wait_for(lambda: engine.batches)
        batch = pool.submit(post, client, PHOTOS)
        wait_for(lambda: client.service.models.waiting == 4)
        assert sample(client, "yolor_in_flight") == 5 and sample(client, "yolor_queue_depth") == 4
        engine.gate.set()
        assert first.result().status_code == batch.result().status_code == 200
        assert sample(client, "yolor_in_flight") == 0
    assert [len(batch) for batch in engine.batches] == [1, 4]


def test_the_query_counts_for_every_image(client):
    assert [result["detections"] for result in results_of(post(client, PHOTOS, "?confidence=0.95"))] == [[], [], [], []]
    assert error_of(post(client, PHOTOS, "?conf=0.95")) == (422, "bad_parameter")
    assert error_of(post(client, PHOTOS, "?classes=unicorn")) == (422, "bad_parameter"), "for all images, not for each"
    tiled = results_of(post(client, [("large.png", encode_image(Image.new("RGB", (400, 400)), "PNG"))], "?tile=160"))
    assert "answer" in tiled[0]["timing_ms"]


def test_tiles_are_limited_for_each_image(client):
    results = results_of(
        post(client, [PHOTOS[0], ("large.png", encode_image(Image.new("RGB", (1000, 1000)), "PNG"))], "?tile=64&overlap=0.5")
    )
    assert "detections" in results[0] and results[1]["error"]["code"] == "too_many_tiles"


def test_more_images_than_a_request_may_have_are_refused(client):
    dot = ("dot.png", encode_image(Image.new("RGB", (2, 2)), "PNG"))
    assert len(results_of(post(client, [dot] * MAX_IMAGES))) == 32
    answer = post(client, [dot] * 33)
    assert error_of(answer) == (422, "too_many_images")
    assert answer.json()["message"] == "found more than 32 parts, expected 1 to 32 parts named 'file', each with a file name"


def test_a_queue_that_never_takes_so_many_images_names_its_size(serve):
    with serve(max_batch=1, max_queued=2) as client:
        assert len(results_of(post(client, PHOTOS[:3]))) == 3
        assert "expected 1 to 3 parts" in post(client, PHOTOS).json()["message"]
        assert client.get("/v1/model").json()["max_images"] == 3


def test_a_batch_is_refused_as_a_whole_when_the_queue_cannot_take_all_its_images(serve):
    engine = RedEngine()
    engine.gate.clear()
    with serve(engine, max_batch=2, max_queued=3) as client:
        waiting = in_parallel(client, 2)
        wait_for(lambda: client.service._in_progress == 2)
        answer = post(client, PHOTOS)
        assert error_of(answer) == (429, "overloaded") and answer.headers["Retry-After"] == "1"
        assert client.service._in_progress == 2 and client.service.models.waiting <= 2
        engine.gate.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
        assert len(results_of(post(client, PHOTOS))) == 4
        assert client.service._in_progress == 0


def test_a_batch_fills_the_queue_for_others(serve):
    engine = RedEngine()
    engine.gate.clear()
    with serve(engine, max_batch=2, max_queued=2) as client, ThreadPoolExecutor(1) as pool:
        batch = pool.submit(post, client, PHOTOS)
        wait_for(lambda: client.service._in_progress == 4)
        assert error_of(client.post(JPEG)) == (429, "overloaded")
        engine.gate.set()
        assert len(results_of(batch.result())) == 4


def test_the_body_of_all_images_has_the_limit_of_a_body(client):
    large = [("noise.bin", b"\0" * 200_000)] * 3
    assert error_of(post(client, large)) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([], "unsupported_media_type"),
        ([("file", ("a.jpg", JPEG)), ("picture", ("b.jpg", JPEG))], "bad_multipart"),
        ([("file", ("a.jpg", JPEG)), ("file", (None, "text"))], "bad_multipart"),
    ],
)
def test_a_part_that_is_no_file_is_refused_and_never_left_out(client, parts, code):
    answer = requests.post(f"{client.base}/v1/detect/batch", files=parts, timeout=20)
    assert answer.json()["code"] == code
    assert "named 'file'" in answer.json()["message"] or code == "unsupported_media_type"


def test_an_image_alone_is_no_batch(client):
    answer = requests.post(f"{client.base}/v1/detect/batch", data=JPEG, headers={"Content-Type": "image/jpeg"}, timeout=20)
    assert error_of(answer) == (415, "unsupported_media_type")
    assert "expected multipart/form-data" in answer.json()["message"]


def test_a_key_is_needed_and_each_image_uses_its_megapixels(serve, tmp_path):
    file = tmp_path / "keys"
    file.write_text(line("lab", LAB) + "\n" + line("shop", SHOP, "megapixels_per_s=0.001"))
    large = [(f"{index}.png", encode_image(Image.new("RGB", (1000, 900)), "PNG")) for index in range(3)]
    with serve(api_keys=str(file), decode_threads=1, request_timeout_s=60.0) as client:
        assert error_of(post(client, PHOTOS)) == (401, "missing_key")
        assert error_of(post(client, PHOTOS, **bearer("wrong"))) == (403, "wrong_key")
        assert all("detections" in result for result in results_of(post(client, large, **bearer(LAB))))
        results = results_of(post(client, large, **bearer(SHOP)))
        assert sorted(result.get("error", {}).get("code", "") for result in results) == ["", "", "rate_limited"]


def test_a_network_that_fails_is_an_error_of_the_request(serve, caplog):
    engine = RedEngine()
    engine.failure = RuntimeError("secret detail")
    with serve(engine) as client:
        answer = post(client, PHOTOS)
        assert error_of(answer) == (500, "internal_error") and "secret" not in answer.text
        assert client.service._in_progress == 0
    assert "event=internal_error" in caplog.text and "error=RuntimeError" in caplog.text


def test_a_slow_batch_is_a_timeout_and_leaves_the_queue(serve):
    engine = RedEngine()
    engine.gate.clear()
    with serve(engine, request_timeout_s=0.3, max_batch=1) as client:
        assert error_of(post(client, PHOTOS)) == (504, "timeout")
        engine.gate.set()
        wait_for(lambda: client.service._in_progress == 0 and client.service.models.waiting == 0)
    assert len(engine.batches) == 1


def test_the_access_log_and_the_metrics_tell_of_the_images(serve, tmp_path):
    log = tmp_path / "access.jsonl"
    with serve(access_log=str(log)) as client:
        post(client, [*PHOTOS, ("page.html", b"<html>")])
        assert sample(client, 'yolor_refusals_total{reason="unsupported_image"}') == 1
        assert sample(client, "yolor_detections_sum") == 4
        assert sample(client, 'yolor_requests_total{route="/v1/detect/batch",status="200"}') == 1
    [entry] = [json.loads(text) for text in log.read_text().splitlines() if "batch" in text]
    assert (entry["images"], entry["failed_images"], entry["tiles"], entry["detections"]) == (5, 1, 4, 4)
    assert entry["body_bytes"] > sum(len(data) for _, data in PHOTOS)


def test_names_with_markup_are_data(client):
    [result] = results_of(post(client, [("<b>é \x1b[31m.jpg", JPEG)]))
    assert result["name"].startswith("<b>é")


def test_openapi_describes_the_batch(client):
    api = client.get("/openapi.json").json()
    operation = api["paths"]["/v1/detect/batch"]["post"]
    assert operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["file"]["maxItems"] == 32
    assert {parameter["name"] for parameter in operation["parameters"]} >= {"confidence", "tile"}
    schemas = api["components"]["schemas"]
    kinds = [option["$ref"].rpartition("/")[2] for option in schemas["BatchAnswer"]["properties"]["results"]["items"]["anyOf"]]
    assert kinds == ["NamedAnswer", "NamedFault"]
    answer = post(client, [PHOTOS[0], ("page.html", b"<html>")]).json()
    jsonschema.validate(answer, {**schemas["BatchAnswer"], "components": {"schemas": schemas}})
    assert re.fullmatch(r"[0-9a-f]{32}", answer["request_id"])
