"""Serve an engine over real HTTP in this process."""

import threading
import time
import warnings
from contextlib import contextmanager

import requests
import uvicorn

from red_engine import serve_settings
from yolor_ray.serve.http.api import create_app
from yolor_ray.serve.http.upgrade import ignore_upgrades
from yolor_ray.serve.metrics import ServiceMetrics
from yolor_ray.serve.service import Service

with warnings.catch_warnings():
    # Ray 2.60 uses a spelling that Pydantic 2 deprecates, once, while it is imported.
    warnings.simplefilter("ignore", DeprecationWarning)
    import ray.serve  # noqa: F401


class Client:
    """HTTP client of one running server."""

    def __init__(self, base, service):
        self.base, self.service = base, service

    def get(self, path, **headers):
        return requests.get(self.base + path, headers=headers, timeout=20)

    def post(self, body, media_type="image/jpeg", query="", **headers):
        headers = ({"Content-Type": media_type} if media_type else {}) | headers
        return requests.post(f"{self.base}/v1/detect{query}", data=body, headers=headers, timeout=20)

    def upload(self, files):
        return requests.post(f"{self.base}/v1/detect", files=files, timeout=20)


@contextmanager
def running(service):
    """Serve a service over real HTTP in a thread, as each replica of Ray Serve does with uvicorn."""
    ignore_upgrades()
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_config=None, lifespan="auto", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield Client(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", service)
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def served(engine, release="", loader=None, **changes):
    """Serve an engine, and the other models of a loader, over real HTTP."""
    with running(Service(engine, serve_settings(**changes), ServiceMetrics("replica-1"), release, loader)) as client:
        try:
            yield client
        finally:
            engine.gate.set()
