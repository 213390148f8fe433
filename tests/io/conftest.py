"""Share an object on a real S3 server and a proxy that makes faults."""

import os
from collections.abc import Iterator

import pytest

from faulty_s3 import FaultyS3
from yolor_ray.io import filesystem, retry, storage


@pytest.fixture
def url(s3) -> str:
    """The URL of an object in a fresh bucket."""
    return storage.join(s3(), "folder", "object")


@pytest.fixture
def faulty(url, monkeypatch) -> Iterator[FaultyS3]:
    """Put a proxy that makes faults before the real S3 server, and wait only briefly between the attempts."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(retry, "WAIT_CAP_S", 0.1)
    monkeypatch.setattr(filesystem, "SDK_ATTEMPTS", 1)
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def written(url, faulty) -> bytes:
    """Content of the object: a megabyte, written and read once."""
    data = os.urandom(1_000_000)
    storage.write_bytes(url, data)
    assert storage.read_bytes(url) == data
    return data
