"""Traces of requests: spans, their parents, their attributes, and the variables that turn them on."""

import hashlib
import logging
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import requests

from fake_loader import FakeLoader
from http_server import served
from red_engine import RedEngine, encode_image, serve_settings
from yolor_ray.serve.http import tracing
from yolor_ray.serve.http.api import create_app
from yolor_ray.serve.metrics import ServiceMetrics
from yolor_ray.serve.service import Service

JPEG = encode_image()
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["body", "decode", "queue", "network", "answer"]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in [*tracing.ENDPOINTS, *tracing.PROTOCOLS, "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME"]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def spans(monkeypatch):
    """Keep the finished spans in memory; return a function that takes all of them: the server spans, and the children by span id."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "request_tracer", lambda: provider.get_tracer("test"))

    def take():
        finished = exporter.get_finished_spans()
        exporter.clear()
        servers = [span for span in finished if span.kind.name == "SERVER"]
        children = {span.context.span_id: [] for span in servers}
        for span in finished:
            if span.kind.name != "SERVER":
                children[span.parent.span_id].append(span)
        return servers, children

    yield take
    provider.shutdown()


def test_a_request_is_one_server_span_with_its_stages_as_children(spans):
    with served(RedEngine()) as client:
        answer = client.post(JPEG, **{"X-Request-ID": "one"}).json()
        [server], children = spans()
    assert server.name == "POST /v1/detect" and server.parent is None and server.status.status_code.name == "UNSET"
    assert dict(server.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/detect",
        "http.response.status_code": 200,
        "yolor_ray.request_id": "one",
        "yolor_ray.model.name": "fake",
        "yolor_ray.model.version": "0123456789ab",
        "yolor_ray.body_bytes": len(JPEG),
        "yolor_ray.tiles": 1,
        "yolor_ray.detections": 1,
    }
    stages = children[server.context.span_id]
    assert [span.name for span in stages] == STAGES
    assert {span.context.trace_id for span in stages} == {server.context.trace_id}
    times = [time for span in stages for time in (span.start_time, span.end_time)]
    assert times == sorted(times) and server.start_time <= times[0] + 10**6 and times[-1] <= server.end_time
    for span in stages[:4]:
        assert (span.end_time - span.start_time) / 1e6 == pytest.approx(answer["timing_ms"][span.name], abs=0.2)


def test_the_wait_for_a_model_is_a_stage_and_the_span_names_the_model(spans):
    loader = FakeLoader()
    with served(loader.engines["cars"], loader=loader) as client:
        for _ in range(2):
            requests.post(f"{client.base}/v1/models/cats/detect", data=JPEG, headers={"Content-Type": "image/jpeg"}, timeout=20)
        servers, children = spans()
    stages = [[span.name for span in children[server.context.span_id]] for server in servers]
    assert stages == [["body", "load", *STAGES[1:]], STAGES]
    for server in servers:
        assert server.name == "POST /v1/models/{name}/detect" and server.attributes["yolor_ray.model.name"] == "cats"


def test_each_image_of_a_batch_has_its_stages(spans):
    with served(RedEngine()) as client:
        files = [("file", (f"{index}.jpg", JPEG)) for index in range(2)] + [("file", ("broken.jpg", b"no image"))]
        import requests

        assert requests.post(f"{client.base}/v1/detect/batch", files=files, timeout=20).status_code == 200
        [server], children = spans()
    assert server.name == "POST /v1/detect/batch"
    assert (server.attributes["yolor_ray.images"], server.attributes["yolor_ray.failed_images"]) == (3, 1)
    names = [span.name for span in children[server.context.span_id]]
    assert sorted(names) == sorted(["body", *2 * STAGES[1:]])


def test_the_trace_of_the_client_goes_on(spans):
    with served(RedEngine()) as client:
        client.post(JPEG, traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="vendor=1")
        [server], children = spans()
        assert (f"{server.context.trace_id:032x}", f"{server.parent.span_id:016x}") == (TRACE, PARENT)
        assert {f"{span.context.trace_id:032x}" for span in children[server.context.span_id]} == {TRACE}
        assert client.post(JPEG, traceparent=f"00-{TRACE}-{PARENT}-00").status_code == 200
        assert spans() == ([], {}), "the parent is not sampled"
        for wrong in ("", "00-xyz", f"00-{'0' * 32}-{PARENT}-01", "é"):
            assert client.post(JPEG, traceparent=wrong.encode()).status_code == 200
            [server], _ = spans()
            assert server.parent is None


def test_errors_have_their_code_and_those_of_the_service_are_marked(spans):
    engine = RedEngine()
    with served(engine) as client:
        client.post(b"no image")
        client.get("/nowhere")
        engine.failure = RuntimeError("broken /secret/path")
        client.post(JPEG)
        refused, absent, failed = spans()[0]
    assert (refused.attributes["http.response.status_code"], refused.attributes["error.type"]) == (415, "unsupported_image")
    assert (absent.name, absent.attributes["error.type"]) == ("GET", "not_found") and "http.route" not in absent.attributes
    assert (failed.attributes["http.response.status_code"], failed.attributes["error.type"]) == (500, "internal_error")
    assert [span.status.status_code.name for span in (refused, absent, failed)] == ["UNSET", "UNSET", "ERROR"]
    assert not failed.events and "secret" not in failed.to_json()


def test_no_attribute_has_a_key_a_query_a_header_or_a_path_that_the_client_invented(spans, tmp_path):
    (tmp_path / "keys").write_text(f"lab sha256:{hashlib.sha256(b'secret-1').hexdigest()}")
    with served(RedEngine(), api_keys=str(tmp_path / "keys")) as client:
        headers = {"Authorization": "Bearer secret-1", "Cookie": "secret-2", "User-Agent": "secret-3", "baggage": "a=secret-4"}
        assert client.post(JPEG, query="?confidence=0.5", **headers).status_code == 200
        client.post(JPEG, query="?token=secret-5", **{"X-API-Key": "secret-6"})
        client.get("/secret-7", **{"X-Request-ID": "secret 8"})
        servers, children = spans()
    assert len(servers) == 3
    texts = [span.to_json() for span in [*servers, *(child for group in children.values() for child in group)]]
    assert "secret" not in "".join(texts) and "confidence=" not in "".join(texts)


def application():
    return create_app(Service(RedEngine(), serve_settings(), ServiceMetrics("replica-1")))


def test_nothing_is_added_without_the_variables():
    assert tracing.request_tracer() is None
    assert "TracingMiddleware" not in str(application().user_middleware)


def test_nothing_is_imported_without_the_variables():
    program = "import sys; from yolor_ray.serve.http import tracing; assert tracing.request_tracer() is None; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in loaded if name.startswith("opentelemetry")]


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({}, []),
        ({"OTEL_SERVICE_NAME": "cars"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "True"}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ["otlp", "console"]),
    ],
    ids=str,
)
def test_the_variables_name_the_exporters(monkeypatch, variables, names):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracing.exporter_names() == names


def test_spans_are_sent_to_a_collector(monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    tracer = tracing.request_tracer()
    try:
        monkeypatch.setattr(tracing, "request_tracer", lambda: tracer)
        with served(RedEngine()) as client:
            client.post(JPEG)
        tracer.span_processor.shutdown()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    [(path, body)] = got
    assert path == "/v1/traces"
    for text in (b"yolor_ray", b"POST /v1/detect", b"network"):
        assert text in body


@pytest.mark.parametrize(("variables", "name"), [({}, "yolor_ray"), ({"OTEL_SERVICE_NAME": "cars"}, "cars")])
def test_the_service_has_a_name(monkeypatch, variables, name):
    pytest.importorskip("opentelemetry.sdk")
    for variable, value in {"OTEL_TRACES_EXPORTER": "console", **variables}.items():
        monkeypatch.setenv(variable, value)
    tracer = tracing.request_tracer()
    assert tracer.resource.attributes["service.name"] == name
    tracer.span_processor.shutdown()


@pytest.mark.parametrize("exporter", ["otlp", "unknown"])
def test_a_service_without_the_packages_warns_and_answers(monkeypatch, caplog, exporter):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    if exporter == "otlp":
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with caplog.at_level(logging.WARNING), served(RedEngine()) as client:
        assert client.post(JPEG).status_code == 200
    assert "event=tracing_unavailable" in caplog.text and "pip install yolor_ray[tracing]" in caplog.text
