"""Serve weights by Starlette and uvicorn alone, to compare the service with.

Decoding, network, batches and boxes are those of the service. There are no limits, keys, metrics, logs, versions and checks of health, and
neither Ray nor HAProxy.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from yolor_ray.cluster.environment import PROCESS_SETTINGS
from yolor_ray.config import ServeConfig
from yolor_ray.errors import ConfigError
from yolor_ray.inference.views import OpenImage, Tiling, View, open_image
from yolor_ray.serve.batcher import Batcher
from yolor_ray.serve.engine import DetectOptions, LocalEngine, TimedDetections
from yolor_ray.serve.response import detections_json, locate


@contextmanager
def plain_server(settings: ServeConfig) -> Iterator[str]:
    """Run the server in a process of its own, and return its address; raises ConfigError if it does not start."""
    threads = {"OMP_NUM_THREADS": str(settings.compute_threads), "MKL_NUM_THREADS": str(settings.compute_threads)}
    command = [sys.executable, "-m", __name__, json.dumps(asdict(settings))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **PROCESS_SETTINGS, **threads})
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise ConfigError(f"plain_weights: found no server of {settings.weights} that starts, expected weights that the service loads")
        yield f"http://{settings.host}:{port}"
    finally:
        process.kill()
        process.communicate()


def plain_app(engine: LocalEngine, settings: ServeConfig) -> Starlette:
    """Return the ASGI application of an engine, with the route `/v1/detect` for raw bytes."""
    options = DetectOptions(settings.confidence, settings.iou, settings.max_detections)
    decoders = ThreadPoolExecutor(settings.decode_threads)
    batcher: Batcher[tuple[View, DetectOptions], TimedDetections] = Batcher(engine.detect, settings.max_batch, settings.batch_wait_ms / 1e3)

    def decode(body: bytes) -> tuple[OpenImage, View]:
        image = open_image(body, engine.info.image_px, Tiling())
        return image, next(iter(image.views))

    async def detect(request: Request) -> JSONResponse:
        body = await request.body()
        image, view = await asyncio.get_running_loop().run_in_executor(decoders, decode, body)
        found = await batcher.submit((view, options))
        located = locate(engine.info, image, [(view, found.detections)], options)
        return JSONResponse(detections_json(engine.info, located, image, options))

    return Starlette(routes=[Route("/v1/detect", detect, methods=["POST"])])


def main() -> None:
    """Write the port to the output, and serve until the process is killed; the argument has the fields of ServeConfig in JSON."""
    settings = ServeConfig(**json.loads(sys.argv[1]))
    app = plain_app(LocalEngine(settings), settings)
    listener = socket.create_server((settings.host, 0))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main()
