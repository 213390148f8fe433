"""A cluster of one node, started as a user starts it: `ray start --head`, with token authentication; jobs reach it by `ray job submit`."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
STATE = ["tasks", "actors", "runtime_envs", "workers", "objects", "jobs", "nodes", "placement_groups", "cluster_events"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Head:
    """A cluster of one node, started as a user starts it, with token authentication."""

    def __init__(self, folder: Path) -> None:
        """Start the cluster; `folder` takes everything that it writes on this machine."""
        self.folder = folder
        self.metrics_port = free_port()
        self.dashboard = f"http://127.0.0.1:{free_port()}"
        ports = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("STATS", "METRICS")}
        head_variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        head_variables |= {"RAY_ADDRESS": self.dashboard, "RAY_TMPDIR": str(folder)}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, **head_variables, **ports, "PATH": path, "OMP_NUM_THREADS": "1"}
        flags = ["--num-cpus", "4", "--dashboard-port", self.dashboard.rpartition(":")[2], "--port", str(free_port())]
        # The agent takes submitted jobs, and would share its usual port with every other Ray of this machine.
        flags += ["--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port())]
        flags += ["--metrics-export-port", str(self.metrics_port)]
        flags += ["--temp-dir", str(folder), "--disable-usage-stats", "--block"]
        start = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        command = [RAY, "start", "--head", "--node-ip-address", "127.0.0.1", *flags]
        self.log = (folder / "head.log").open("wb")
        self.process = subprocess.Popen(command, env=start, stdout=self.log, stderr=self.log, start_new_session=True)

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [RAY, "job", "submit", "--working-dir", ".", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=600)

    def wait(self) -> None:
        """Wait until a job can be run: the dashboard answers some seconds before the node's agent takes jobs."""
        deadline = time.monotonic() + 300
        while subprocess.run([RAY, "job", "submit", "--", "true"], env=self.environment, capture_output=True).returncode:
            assert self.process.poll() is None and time.monotonic() < deadline, Path(self.log.name).read_text()
            time.sleep(1)

    def result(self, *job: str) -> dict:
        """Run a job to its end and return the JSON that it printed last."""
        done = self.submit("--", "python", *job)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        return json.loads(lines[-1])

    def read_dashboard(self) -> dict[str, bytes]:
        """Return the answers of the dashboard, and the node's metrics, by path; an answer with an error is one, too."""
        paths = [f"api/v0/{name}?detail=1&limit=1000" for name in STATE] + ["api/jobs/", "nodes?view=summary", "logical/actors"]
        urls = {path: f"{self.dashboard}/{path}" for path in paths} | {"metrics": f"http://127.0.0.1:{self.metrics_port}/metrics"}
        return {path: self._get(url) for path, url in urls.items()}

    def status(self, job: str) -> str:
        """Return the status of a submitted job: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; the command takes seconds for that."""
        return json.loads(self._get(f"{self.dashboard}/api/jobs/{job}"))["status"]

    def _get(self, url: str) -> bytes:
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=token), timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            return error.read()

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()


@contextmanager
def running_head() -> Iterator[Head]:
    """Start a cluster that takes jobs, and stop it; the folder of its files is deleted."""
    # Not pytest's tmp_path: sockets lie in there, and their paths may have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="yh", dir="/tmp"))
    head = Head(folder)
    try:
        head.wait()
        yield head
    finally:
        head.stop()
        shutil.rmtree(folder, ignore_errors=True)
