"""The documented commands of a cluster: `ray start --head`, then train, evaluate, export and serve by `ray job submit`, all data in S3."""

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
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.model.weights import load_weights
from yolor_ray.pack.run import pack_scenes

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
TINY = "--network.stem_width 8 --network.widths 8 16 16 16 --network.depths 1 1 1 1 --data.image_px 64 --optim.batch 8"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Head:
    """A cluster of one node, started as a user starts it, with token authentication."""

    def __init__(self, folder: Path) -> None:
        self.dashboard = f"http://127.0.0.1:{free_port()}"
        ports = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("STATS", "METRICS")}
        head_variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        head_variables |= {"RAY_ADDRESS": self.dashboard, "RAY_TMPDIR": str(folder)}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, **head_variables, **ports, "PATH": path, "OMP_NUM_THREADS": "1"}
        flags = ["--num-cpus", "4", "--dashboard-port", self.dashboard.rpartition(":")[2], "--port", str(free_port())]
        # The agent takes submitted jobs, and would share its usual port with every other Ray of this machine.
        flags += ["--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port())]
        flags += ["--temp-dir", str(folder), "--disable-usage-stats", "--block"]
        start = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        command = [RAY, "start", "--head", "--node-ip-address", "127.0.0.1", *flags]
        self.log = (folder / "head.log").open("wb")
        self.process = subprocess.Popen(command, env=start, stdout=self.log, stderr=self.log, start_new_session=True)

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [RAY, "job", "submit", "--working-dir", ".", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=240)

    def wait(self) -> None:
        """Wait until a job can be run: the dashboard answers some seconds before the node's agent takes jobs."""
        deadline = time.monotonic() + 120
        while subprocess.run([RAY, "job", "submit", "--", "true"], env=self.environment, capture_output=True).returncode:
            assert self.process.poll() is None and time.monotonic() < deadline, Path(self.log.name).read_text()
            time.sleep(1)

    def result(self, *job: str) -> dict:
        """Run a job to its end and return the JSON that it printed last."""
        done = self.submit("--", "python", *job)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        return json.loads(lines[-1])

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def head(s3: Callable[[], str]) -> Iterator[Head]:
    # Not pytest's tmp_path: sockets lie in there, and their paths may have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="yh", dir="/tmp"))
    head = Head(folder)
    try:
        head.wait()
        yield head
    finally:
        head.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_submitted_jobs_train_evaluate_export_and_serve_from_s3(head: Head, s3: Callable[[], str]) -> None:
    bucket = s3()
    for name, count, seed in (("train", 32, 0), ("val", 8, 1)):
        pack_scenes(f"{bucket}/{name}", count, seed)
    places = f"--data.train {bucket}/train --data.val {bucket}/val --run.storage {bucket}/runs --run.name submitted"
    trained = head.result("jobs/train.py", "nano", *places.split(), *TINY.split(), "--optim.epochs", "2", "--cluster.workers", "1")
    assert trained["weights"] == f"{bucket}/runs/submitted/weights"
    measured = head.result("jobs/evaluate.py", "--weights", trained["weights"], "--data", f"{bucket}/val", "--workers", "1")
    assert measured["AP"] == pytest.approx(trained["metrics"]["AP"], abs=2e-3)
    exported = head.result("jobs/export.py", "--weights", trained["weights"], "--data", f"{bucket}/val", "--output", f"{bucket}/fused")
    assert exported["max_error"] <= 1e-4
    assert load_weights(f"{bucket}/fused")[1].fused
    detections = serve_and_detect(head, f"{bucket}/fused")
    assert detections["model"]["name"] == "submitted"
    assert (detections["image"]["width"], detections["image"]["height"]) == (320, 320)


def serve_and_detect(head: Head, weights: str) -> dict:
    """Serve weights by a submitted job, post one image and stop the job."""
    port = free_port()
    job = ["--submission-id", "serving", "--no-wait", "--", "python", "jobs/serve.py", "--weights", weights, "--port", str(port)]
    started = head.submit(*job)
    assert started.returncode == 0, started.stderr
    try:
        return post(f"http://127.0.0.1:{port}/v1/detect?confidence=0.001", scene(0).image)
    finally:
        subprocess.run([RAY, "job", "stop", "serving"], env=head.environment, check=True, capture_output=True)


def post(url: str, image: bytes) -> dict:
    """Post an image as soon as the service answers."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, image, {"Content-Type": "image/jpeg"}), timeout=10) as answer:
                return json.load(answer)
        except OSError:
            assert time.monotonic() < deadline, f"{url} did not answer"
            time.sleep(1)


def test_a_users_mistake_in_a_submitted_job_is_told_and_fails_it(head: Head, s3: Callable[[], str]) -> None:
    done = head.submit("--", "python", "jobs/evaluate.py", "--weights", f"{s3()}/absent", "--data", "scenes:4")
    assert done.returncode != 0
    assert "absent" in done.stdout and "not found" in done.stdout
