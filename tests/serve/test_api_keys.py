"""API keys: the file, who is admitted, limits, and that no key is in a log or in an answer."""

import hashlib
import logging
import math

import pytest
import requests
from PIL import Image

from red_engine import RedEngine, encode_image, serve_settings
from yolor_ray.errors import ConfigError, NotFoundError
from yolor_ray.serve.http import api_keys
from yolor_ray.serve.http.api_keys import Allowance, ApiKeys, parse_keys

JPEG = encode_image()
LAB, SHOP = "lab-5c1e0f7b9d2a4486", "shop-90aa17e3d5b64c02"


def line(name, key, *limits):
    return " ".join([name, f"sha256:{hashlib.sha256(key.encode()).hexdigest()}", *limits])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text("\n".join(["# clients", "", line("lab", LAB), line("shop", SHOP, "requests_per_s=50", "megapixels_per_s=0.001")]))
    return path


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("headers", [bearer(LAB), {"Authorization": f"bearer  {LAB} "}, {"X-API-Key": LAB}])
def test_a_request_with_a_key_is_answered(serve, file, headers):
    with serve(api_keys=str(file)) as client:
        assert client.post(JPEG, **headers).status_code == 200
        assert client.get("/v1/model", **headers).status_code == 200
        assert client.get("/metrics", **headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "missing_key"),
        ({"Authorization": f"Basic {LAB}"}, 401, "missing_key"),
        ({"Authorization": "Bearer"}, 401, "missing_key"),
        ({"X-API-Key": ""}, 401, "missing_key"),
        (bearer(LAB[:-1]), 403, "wrong_key"),
        (bearer(LAB + "0"), 403, "wrong_key"),
        (bearer(LAB.upper()), 403, "wrong_key"),
        (bearer(hashlib.sha256(LAB.encode()).hexdigest()), 403, "wrong_key"),
        ({"X-API-Key": b"\xff\xfe"}, 403, "wrong_key"),
    ],
)
def test_a_request_without_a_known_key_is_refused_in_json(serve, file, headers, status, code):
    with serve(api_keys=str(file)) as client:
        answers = [client.post(JPEG, **headers), client.get("/v1/model", **headers), client.get("/metrics", **headers)]
        answers.append(client.post(JPEG, query="?iou=wrong", **headers))
        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert set(answer.json()) == {"code", "message", "request_id"} and LAB not in answer.text
            assert (answer.headers.get("WWW-Authenticate") == "Bearer") == (status == 401)
        assert client.service.metrics.text()[0].count(f'status="{status}"'.encode())


def test_probes_and_pages_need_no_key_and_metrics_have_a_switch(serve, file):
    with serve(api_keys=str(file), open_metrics=True) as client:
        for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json", "/metrics"):
            assert client.get(path).status_code == 200, path
        assert client.get("/nowhere").status_code == 404
        assert client.get("/v1/model").status_code == 401


def test_every_other_route_needs_a_key(serve, file):
    with serve(api_keys=str(file)) as client:
        paths = client.get("/openapi.json").json()["paths"]
        open_paths = {
            path for path, methods in paths.items() for method in methods if client_status(client, method, path) not in (401, 403)
        }
    assert open_paths == {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/{name}/ready"}


def client_status(client, method, path):
    return requests.request(method, client.base + path, timeout=10).status_code


def test_requests_per_second_are_limited_for_each_key(serve, file):
    file.write_text(line("lab", LAB) + "\n" + line("shop", SHOP, "requests_per_s=0.01"))
    with serve(api_keys=str(file)) as client:
        answers = [client.get("/v1/model", **bearer(SHOP)) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 429, 429]
        assert answers[1].json()["code"] == "rate_limited" and 50 < int(answers[1].headers["Retry-After"]) <= 100
        assert "the key shop has used its requests_per_s=0.01" in answers[1].json()["message"]
        assert client.get("/v1/model", **bearer(LAB)).status_code == 200


def test_megapixels_per_second_are_limited_before_decoding(serve, file):
    image = encode_image(Image.new("RGB", (1000, 900)), "PNG")
    with serve(api_keys=str(file), request_timeout_s=60.0) as client:
        assert client.post(image, **bearer(SHOP)).status_code == 200
        assert client.post(image, **bearer(SHOP)).status_code == 200
        answer = client.post(image, **bearer(SHOP))
        assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
        assert "megapixels_per_s=0.001" in answer.json()["message"]


def test_an_image_that_is_refused_for_its_size_uses_no_allowance(serve, file):
    huge = encode_image(Image.new("RGB", (1500, 1000)), "PNG")
    with serve(api_keys=str(file)) as client:
        assert client.post(huge, **bearer(SHOP)).json()["code"] == "image_too_large"
        assert client.post(JPEG, **bearer(SHOP)).status_code == 200


def test_an_allowance_keeps_its_rate_with_uses_of_any_size():
    now = [0.0]
    allowance = Allowance(2.0, lambda: now[0])
    used = 0.0
    for step in range(4000):
        now[0] = step / 100
        if allowance.wait_s(0.75) == 0:
            used += 0.75
    assert used == pytest.approx(2.0 * 40 + 2, abs=1)
    assert allowance.wait_s(100) == 0 or allowance.wait_s(0) > 0
    now[0] += 1000
    assert allowance.wait_s(100) == 0
    assert allowance.wait_s(1) == pytest.approx(49)
    assert Allowance(math.inf, lambda: 0).wait_s(1e9) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAB, "line 1: expected NAME sha256:"),
        (f"lab {LAB}", "line 1: expected NAME sha256:"),
        (f"lab sha256:{LAB}", "line 1: expected NAME sha256:"),
        ("\n" + line("l/b", LAB), "line 2: expected NAME"),
        (line("lab", LAB, "requests_per_s=0"), "line 1, key lab: expected limits"),
        (line("lab", LAB, "requests_per_s=nan"), "key lab: expected limits"),
        (line("lab", LAB, "requests_per_s=1", "requests_per_s=2"), "key lab: expected limits"),
        (line("lab", LAB, "pixels=2"), "key lab: expected limits"),
        (line("lab", LAB) + "\n" + line("lab", SHOP), "line 2: found a name of an earlier line"),
        (line("lab", LAB) + "\n" + line("shop", LAB), "line 2: found a digest of an earlier line"),
    ],
)
def test_a_wrong_line_is_named_by_its_number_and_never_shown(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_keys(text, "keys.txt")
    assert message in str(caught.value) and LAB not in str(caught.value)


def test_a_file_without_keys_is_refused_at_the_start(tmp_path):
    (tmp_path / "empty").write_text("# nobody\n")
    with pytest.raises(ConfigError, match="found no key"):
        ApiKeys(str(tmp_path / "empty"))
    with pytest.raises(NotFoundError):
        ApiKeys(str(tmp_path / "missing"))


def test_a_changed_file_is_read_while_the_service_runs(serve, file, monkeypatch):
    monkeypatch.setattr(api_keys, "RELOAD_S", 0.05)
    with serve(api_keys=str(file)) as client:
        assert client.get("/v1/model", **bearer(SHOP)).status_code == 200
        file.write_text(line("lab", LAB) + "\n" + line("new", "new-key"))
        wait_until(lambda: client.get("/v1/model", **bearer("new-key")).status_code == 200)
        assert client.get("/v1/model", **bearer(SHOP)).status_code == 403
        file.write_text("")
        wait_until(lambda: client.get("/v1/model", **bearer(LAB)).status_code == 403)


def wait_until(condition):
    import time

    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text(LAB), lambda file: file.write_bytes(b"\xff")])
def test_a_file_that_cannot_be_read_again_changes_nothing_and_is_told(file, damage, caplog):
    keys = ApiKeys(str(file))
    damage(file)
    keys.reload()
    assert "event=api_keys_unreadable" in caplog.text and LAB not in caplog.text
    assert keys._find(LAB).name == "lab"


def test_a_key_is_in_no_log(serve, file, caplog):
    caplog.set_level(logging.DEBUG)
    engine = RedEngine()
    engine.failure = ValueError("broken")
    with serve(engine, api_keys=str(file)) as client:
        for key in (LAB, "wrong-key-77aa"):
            client.post(JPEG, **bearer(key))
            client.post(JPEG, **{"X-API-Key": key})
    assert LAB not in caplog.text and "wrong-key-77aa" not in caplog.text


def test_all_keys_are_compared_in_full(file, monkeypatch):
    compared = []
    monkeypatch.setattr(api_keys.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    keys = ApiKeys(str(file))
    assert keys._find(LAB).name == "lab" and keys._find("wrong") is None
    assert len(compared) == 4


def test_settings_name_the_fields_of_access():
    assert serve_settings(tls_cert="a", tls_key="b").tls_key == "b"
    for wrong in ({"tls_cert": "a"}, {"tls_key": "b"}):
        with pytest.raises(ConfigError, match="tls_cert"):
            serve_settings(**wrong)
