"""Answers of Ray's Python proxy while the service starts, with applications in the place of the proxy."""

import asyncio
import importlib.util
import json
from pathlib import Path

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from yolor_ray.cluster.ray_internals import NO_ROUTE
from yolor_ray.serve import haproxy
from yolor_ray.serve.http import proxy

RAY_404 = PlainTextResponse(f"Path '/readyz' not found. {NO_ROUTE}", 404)
V1_ROUTES = ["/v1/detect", "/v1/detect/batch", "/v1/model", "/v1/models", "/v1/models/cars", "/cars/v1/models/cars/detect"]
V2_ROUTES = ["/v2/health/live", "/v2/health/ready", "/v2/models/cars", "/v2/models/cars/ready", "/cars/v2/models/cars/infer"]


async def never(scope, receive, send):
    await asyncio.Event().wait()


async def late(scope, receive, send):
    await asyncio.sleep(0.1)
    await JSONResponse({"status": "late"})(scope, receive, send)


async def streaming(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.sleep(0.1)
    await send({"type": "http.response.body", "body": b"whole"})


def ask(app, path):
    """Return status, headers and body of the answer of a proxy behind the middleware."""
    [middleware] = proxy.middlewares()
    messages = []

    async def send(message):
        messages.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": []}
    asyncio.run(asyncio.wait_for(middleware.cls(app)(scope, None, send), 10))
    start, *rest = messages
    return start["status"], dict(start["headers"]), b"".join(message["body"] for message in rest)


@pytest.fixture
def short_probes(monkeypatch):
    monkeypatch.setattr(proxy, "PROBE_TIMEOUT_S", 0.05)


@pytest.mark.parametrize("path", ["/readyz", "/healthz", "/cars/readyz", "/v2", *V1_ROUTES, *V2_ROUTES])
def test_a_path_of_the_service_without_an_application_is_503_in_json(path):
    status, headers, body = ask(RAY_404, path)
    assert (status, headers[b"content-type"], headers[b"retry-after"]) == (503, b"application/json", b"1")
    assert json.loads(body)["code"] == "not_ready"
    assert int(headers[b"content-length"]) == len(body)


@pytest.mark.parametrize("path", ["/readyz", "/cars/healthz", "/v2/health/live", "/cars/v2/health/ready", "/v2/models/cars/ready"])
def test_a_probe_does_not_wait_for_a_replica(path, short_probes):
    assert ask(never, path)[0] == 503
    assert ask(late, path)[0] == 503


def test_detection_waits_for_a_replica(short_probes):
    assert ask(late, "/v1/detect")[::2] == (200, b'{"status":"late"}')


def test_a_probe_whose_answer_has_begun_gets_it_whole(short_probes):
    assert ask(streaming, "/readyz")[::2] == (200, b"whole")


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/other", RAY_404),
        ("/v2/models", RAY_404),
        ("/v1/detects", RAY_404),
        ("/notreadyz", RAY_404),
        ("/-/healthz", RAY_404),
        ("/readyz", PlainTextResponse("no such page", 404)),
        ("/readyz", JSONResponse({"code": "not_found"}, 404)),
        ("/readyz", PlainTextResponse(NO_ROUTE, 200)),
    ],
)
def test_answers_of_applications_pass_unchanged(path, answer):
    assert ask(answer, path)[::2] == (answer.status_code, answer.body)


def test_rays_proxies_still_answer_404_with_the_text_that_becomes_503():
    for module in ("ray.serve._private.proxy", "ray.serve._private.haproxy_templates"):
        assert NO_ROUTE in Path(importlib.util.find_spec(module).origin).read_text()


def test_haproxy_without_an_application_answers_503_in_json():
    from yolor_ray.cluster.ray_internals import HAPROXY_CONFIG_TEMPLATE

    changed = haproxy.answer_503_without_application(HAPROXY_CONFIG_TEMPLATE)
    assert NO_ROUTE in HAPROXY_CONFIG_TEMPLATE and NO_ROUTE not in changed
    [line] = [line for line in changed.splitlines() if "status 503 content-type application/json" in line]
    assert json.loads(line.split("'")[1]) == haproxy.NO_REPLICA and line.endswith("hdr Retry-After 1")
    assert len(changed.splitlines()) == len(HAPROXY_CONFIG_TEMPLATE.splitlines())


def test_haproxy_speaks_tls_at_the_services_address_alone(tmp_path):
    from yolor_ray.cluster.ray_internals import HAPROXY_CONFIG_TEMPLATE

    text = HAPROXY_CONFIG_TEMPLATE.replace("{{ config.frontend_host }}:{{ config.frontend_port }}", "127.0.0.1:8000")
    certificate = tmp_path / "tls.pem"
    certificate.touch()
    changed = haproxy.listen_on(text, "0.0.0.0", certificate)
    assert f"    bind 0.0.0.0:8000 ssl crt {certificate} alpn h2,http/1.1\n" in changed
    assert changed.count(" ssl crt ") == 1 and len(changed.splitlines()) == len(text.splitlines())


def test_a_service_whose_certificate_has_gone_does_not_fall_back_to_plain_http(tmp_path):
    link = tmp_path / haproxy.CERTIFICATE_FILE
    link.symlink_to(tmp_path / "renewed.pem")
    assert f"bind 127.0.0.1:8000 ssl crt {link}" in haproxy.listen_on("frontend http_frontend\n    bind *:8000\n", "127.0.0.1", link)


def test_haproxy_speaks_tls_with_the_certificate_beside_the_folders_of_the_nodes(tmp_path, monkeypatch):
    node = tmp_path / "node"
    node.mkdir()
    (tmp_path / haproxy.CERTIFICATE_FILE).write_text("certificate")
    (node / "haproxy.cfg").write_text("frontend http_frontend\n    bind 127.0.0.1:8000\n")
    monkeypatch.setattr(haproxy.sys, "platform", "other")
    monkeypatch.setattr(haproxy.os, "execvp", lambda *_: None)
    haproxy.main("haproxy", "127.0.0.1", 72, (), ["-f", str(node / "haproxy.cfg")])
    assert f"bind 127.0.0.1:8000 ssl crt {tmp_path / haproxy.CERTIFICATE_FILE} alpn" in (node / "haproxy.cfg").read_text()
    with pytest.raises(ValueError, match="would listen elsewhere"):
        haproxy.listen_on("frontend other\n    bind 127.0.0.1:8000\n", "127.0.0.1", tmp_path / haproxy.CERTIFICATE_FILE)
