"""clusters/spot_notice.sh with a simulated metadata service and a simulated `ray` program."""

import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "clusters" / "spot_notice.sh"

pytestmark = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("flock")), reason="needs the programs curl and flock")


class Metadata(http.server.ThreadingHTTPServer):
    """EC2's metadata service, version 2: answers only with a session token, and with the notice from the `announce_at`-th request on."""

    def __init__(self, market: str, notice: str, announce_at: int) -> None:
        super().__init__(("127.0.0.1", 0), Session)
        self.market, self.notice, self.announce_at, self.requests = market, notice, announce_at, 0


class Session(http.server.BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        is_valid = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._answer("session" if is_valid else None)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != "session":
            self._answer(None)
        elif self.path == "/latest/meta-data/instance-life-cycle":
            self._answer(self.server.market)
        else:
            assert self.path == "/latest/meta-data/spot/instance-action"
            self.server.requests += 1
            self._answer(self.server.notice if self.server.requests >= self.server.announce_at else None)

    def _answer(self, body: str | None) -> None:
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write((body or "").encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def run_script(tmp_path) -> Iterator[Callable[..., tuple[int, str, list[str]]]]:
    """Return a function that runs the script on an instance and returns its exit status, its output and the calls of `ray`."""
    calls = tmp_path / "calls"
    calls.touch()
    servers = []

    def run(
        market: str = "spot", left_s: float = 120, failures: int = 0, announce_at: int = 3, end: str = ""
    ) -> tuple[int, str, list[str]]:
        end = end or (datetime.now(UTC) + timedelta(seconds=left_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
        server = Metadata(market, json.dumps({"action": "terminate", "time": end}), announce_at)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
        ray = tmp_path / "ray"
        ray.write_text(f'#!/bin/sh\necho "$RAY_ADDRESS $*" >> {calls}\n[ $(wc -l < {calls}) -gt {failures} ]\n')
        ray.chmod(0o700)
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), "SPOT_POLL_S": "0.05"}
        variables["IMDS_URL"] = f"http://127.0.0.1:{server.server_port}"
        command = ["sh", str(SCRIPT), "head:6379"]
        process = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=30)
        assert not process.stderr
        return process.returncode, process.stdout, calls.read_text().splitlines()

    yield run
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_spot_notice_drains_the_node_until_the_time_in_the_notice(run_script):
    status, output, calls = run_script(left_s=120)
    assert status == 0
    assert "event=watching" in output
    assert "event=draining" in output
    (call,) = calls
    start = "head:6379 drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot notice for "
    assert call.startswith(start)
    assert 60 < int(re.search(r"--deadline-remaining-seconds (\d+)$", call)[1]) <= 120


def test_a_notice_with_an_unreadable_time_drains_the_node_for_two_minutes(run_script):
    status, _, (call,) = run_script(end="soon")
    assert status == 0
    assert 100 < int(re.search(r"--deadline-remaining-seconds (\d+)$", call)[1]) <= 120


def test_the_script_uses_options_that_ray_has():
    from ray.scripts.scripts import drain_node

    options = {option for parameter in drain_node.params for option in parameter.opts}
    assert set(re.findall(r"(?<= )--(?:reason|deadline)[\w-]*", SCRIPT.read_text())) <= options


def test_a_failed_drain_is_retried(run_script):
    status, _, calls = run_script(failures=1)
    assert status == 0
    assert len(calls) == 2


def test_a_notice_of_the_past_drains_nothing(run_script):
    status, output, calls = run_script(left_s=-1)
    assert (status, calls) == (1, [])
    assert "event=too_late" in output


def test_the_script_ends_on_an_on_demand_instance(run_script):
    status, output, calls = run_script(market="on-demand")
    assert (status, calls) == (0, [])
    assert output == "event=no_spot_instance market=on-demand\n"
