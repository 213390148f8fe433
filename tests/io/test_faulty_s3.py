"""The proxy that makes faults of S3, as a program."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import faulty_s3
from faulty_s3 import FaultyS3
from yolor_ray.errors import StorageError
from yolor_ray.io import retry, storage
from yolor_ray.io.retry import REFUSED_ATTEMPTS


def test_the_faults_of_a_running_proxy_program_are_set_by_http(s3, monkeypatch):
    url = storage.join(s3(), "object")
    upstream = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    with FaultyS3(upstream) as proxy:
        listen = proxy.endpoint.removeprefix("http://")
    program = subprocess.Popen([sys.executable, str(Path(faulty_s3.__file__)), "--listen", listen, "--upstream", upstream])
    try:
        control = f"http://{listen}{faulty_s3.CONTROL}"
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(control, b'{"forbid_next": 10}', method="PUT"), timeout=5).close()
                break
            except OSError:
                assert program.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{listen}")
        monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
        with pytest.raises(StorageError, match="ACCESS_DENIED"):
            storage.read_bytes(url)
        with urllib.request.urlopen(control, timeout=5) as answer:
            assert json.load(answer) == {
                "requests": REFUSED_ATTEMPTS,
                "HEAD object": REFUSED_ATTEMPTS,
                "down_s": 0,
                "share_503": 0,
                "forbid_next": REFUSED_ATTEMPTS,
            }
    finally:
        program.terminate()
        program.wait()
