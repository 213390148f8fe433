"""The jobs `serve` and `release` with a bucket, a Ray, HAProxy and two replicas under load: no request fails, whatever is released."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import requests
import torch

from yolor_ray.config import NetworkConfig
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.io.release_folder import Event, ReleaseFolder
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights

JOBS = Path(__file__).parents[2] / "jobs"
TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(16, 16, 32, 32), depths=(1, 1, 1, 1), neck_depth=1)
ANCHORS = torch.tensor([[[12.0, 12], [20, 20], [30, 30]], [[40, 40], [60, 60], [80, 80]], [[90, 90], [120, 120], [150, 150]]])
QUERY = "?confidence=0.001&max_detections=20"


@torch.no_grad()
def save_version(folder, change, variance=1.0):
    """Save a random network whose last biases are changed; with a negative variance, its predictions are not finite."""
    torch.manual_seed(0)
    network = Yolor(TINY, 3, ANCHORS)
    for level in network.head.levels:
        torch.nn.init.normal_(level.predict.bias, std=1.0)
        level.predict.bias += change
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.running_var.fill_(variance)
    save_weights(str(folder), network.eval(), WeightsInfo("tiny", ("circle", "square", "triangle"), 160))
    return str(folder)


def release(*arguments):
    run = subprocess.run([sys.executable, str(JOBS / "release.py"), *arguments], env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])["version"]


def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}


def wait_for(condition, log, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-5000:]
        time.sleep(0.1)


class Clients:
    """Clients that ask without a pause until they are stopped; `answers` has the status, release, number of boxes and seconds of each."""

    def __init__(self, url, count):
        self.answers, self._stopped, self._started = [], threading.Event(), time.monotonic()
        images = [record.image for record in map(scene, range(12))]
        self._threads = [threading.Thread(target=self._ask, args=[url, images[start:] + images[:start]]) for start in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, url, images):
        with requests.Session() as session:
            while not self._stopped.is_set():
                for image in images:
                    answer = session.post(f"{url}/v1/detect{QUERY}", data=image, timeout=30)
                    body = answer.json()
                    found = body.get("model", {}).get("release"), len(body.get("detections", ()))
                    self.answers.append((answer.status_code, *found, time.monotonic() - self._started))

    def since(self, start):
        return {version for _, version, *_ in self.answers[start:]}

    def counts_by_time(self, seconds):
        """Return the answers of each version in each interval of so many seconds."""
        counts = Counter((int(since // seconds) * seconds, version) for _, version, _, since in self.answers)
        return [f"{start} s: {version[:8]} {count}" for (start, version), count in sorted(counts.items())]

    def stop(self):
        self._stopped.set()
        for thread in self._threads:
            thread.join(60)


@pytest.mark.chaos
def test_versions_come_are_rejected_and_go_back_without_a_failed_request(s3, tmp_path):
    live = f"{s3()}/live"
    first = release(save_version(tmp_path / "first", 0.0), "--to", live)
    # Not pytest's tmp_path: the folder holds sockets, whose paths may have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="yr", dir="/tmp"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    flags = ["--min_replicas", "2", "--max_replicas", "2", "--cpus_per_replica", "0.5", "--engine", "torch", "--port", str(port)]
    places = {"TMPDIR": str(folder), "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled"}
    log, url, releases = folder / "log", f"http://127.0.0.1:{port}", ReleaseFolder(live)
    with log.open("wb") as file:
        command = [sys.executable, str(JOBS / "serve.py"), "--weights", live, *flags]
        job = subprocess.Popen(command, env=environment() | places, stdout=subprocess.PIPE, stderr=file, start_new_session=True)
    clients = None
    try:
        wait_for(lambda: b"event=service_ready" in log.read_bytes(), log)
        clients = Clients(url, 4)

        def serves(version):
            """Return True when both replicas have answered with the version alone for a while."""
            start = len(clients.answers)
            time.sleep(1)
            return clients.since(start) == {version}

        wait_for(lambda: serves(first), log)
        second = release(save_version(tmp_path / "second", 0.001), "--to", live)
        wait_for(lambda: any(event == Event("accepted", second) for event in releases.read().events), log)
        wait_for(lambda: serves(second), log)
        start = len(clients.answers)
        broken = release(save_version(tmp_path / "broken", 0.0, variance=-1.0), "--to", live)
        wait_for(lambda: broken in releases.read().rejected, log)
        blind = release(save_version(tmp_path / "blind", -30.0), "--to", live)
        wait_for(lambda: blind in releases.read().rejected, log)
        assert clients.since(start) == {second}
        assert release("--back", "--to", live) == first
        wait_for(lambda: serves(first), log)
        metrics = requests.get(f"{url}/metrics", timeout=30).text
        card = requests.get(f"{url}/v1/model", timeout=30).json()
    finally:
        if clients:
            clients.stop()
        os.killpg(job.pid, signal.SIGTERM)
        job.communicate(timeout=60)
        text = log.read_text()
        shutil.rmtree(folder, ignore_errors=True)
    assert (card["name"], card["release"]) == ("live", first)
    rejected = releases.read().rejected
    assert "not finite" in rejected[broken] and rejected[blind].startswith("detections per image: found 0.00")
    assert Counter(status for status, *_ in clients.answers).keys() == {200}, Counter(answer[:3] for answer in clients.answers)
    assert {boxes for _, _, boxes, _ in clients.answers} == {20}
    assert "Traceback" not in text and "yolor_version_requests_total" in metrics
    logging.getLogger(__name__).info("answers=%s rejected=%s", clients.counts_by_time(5), rejected)


@pytest.mark.parametrize("arguments", [["--back"], []])
def test_a_release_without_a_version_is_the_users_mistake(tmp_path, arguments):
    run = subprocess.run(
        [sys.executable, str(JOBS / "release.py"), "--to", str(tmp_path / "live"), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "found" in run.stderr and "expected" in run.stderr
