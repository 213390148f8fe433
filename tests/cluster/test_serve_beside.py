"""The job `serve` on a cluster whose Ray Serve runs another application: refused, or beside it and gone without a trace."""

import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import requests

from exported import export_weights
from networks import tiny_network
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.model.weights import WeightsInfo, save_weights

with warnings.catch_warnings():
    # Ray 2.60 uses a spelling that Pydantic 2 deprecates, once, while it is imported.
    warnings.simplefilter("ignore", DeprecationWarning)
    from ray import serve

JOB = Path(__file__).resolve().parents[2] / "jobs" / "serve.py"
# Ray Serve has deprecated settings of its own, and leaves sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Other:
    async def __call__(self, request):
        return "other"


@pytest.fixture(scope="module")
def other(ray_cluster):
    """Run an application at `/`, and return the port of Ray Serve."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Other.bind(), name="other", route_prefix="/")
    yield port
    serve.shutdown()


def command(*flags, weights="builtin"):
    return [sys.executable, str(JOB), "--weights", weights, "--cpus_per_replica", "0.5", *flags]


def test_a_service_that_does_not_fit_is_refused_and_leaves_the_others_alone(other, ray_cluster):
    for flags, message in ((("--port", str(other)), "prefix: found /, that of the application other"), ((), f"--port {other}")):
        run = subprocess.run(command(*flags), env=ray_cluster, capture_output=True, text=True, timeout=240)
        assert run.returncode == 2 and message in run.stderr, run.stderr
    assert requests.get(f"http://127.0.0.1:{other}/", timeout=30).text == "other"


def test_a_service_of_an_export_with_its_own_name_and_prefix_runs_beside_others(other, ray_cluster, tmp_path):
    url = f"http://127.0.0.1:{other}/cars"
    save_weights(str(tmp_path / "weights"), tiny_network(), WeightsInfo("tiny", ("a", "b", "c"), 64))
    export = export_weights(str(tmp_path / "weights"), str(tmp_path / "export"), "openvino")
    cars = ("--port", str(other), "--name", "cars")
    with (tmp_path / "log").open("w+") as log:
        job = subprocess.Popen(command(*cars, "--prefix", "/cars", weights=export), env=ray_cluster, stderr=log)
        try:
            deadline = time.monotonic() + 240
            while f"event=service_ready url={url} " not in (text := (tmp_path / "log").read_text()):
                assert job.poll() is None and time.monotonic() < deadline, text
                time.sleep(0.2)
            assert requests.get(f"{url}/readyz", timeout=30).json() == {"status": "ready"}
            model = requests.get(f"{url}/v1/model", timeout=30).json()
            assert (model["name"], model["engine"], model["classes"]) == ("tiny", "openvino", ["a", "b", "c"])
            photo = {"data": scene(0).image, "headers": {"Content-Type": "image/jpeg"}}
            assert len(requests.post(f"{url}/v1/detect?confidence=0.001&max_detections=5", **photo, timeout=30).json()["detections"]) == 5
            assert "Drop an image here" in requests.get(f"{url}/", timeout=30).text
            assert requests.get(f"http://127.0.0.1:{other}/", timeout=30).text == "other"
            twin = subprocess.run(command(*cars, "--prefix", "/b"), env=ray_cluster, capture_output=True, text=True)
            assert twin.returncode == 2 and "name: found cars, an application of this cluster (RUNNING)" in twin.stderr
            assert requests.get(f"{url}/readyz", timeout=30).status_code == 200
        finally:
            job.send_signal(signal.SIGTERM)
            assert job.wait(120) == 0
    assert set(serve.status().applications) == {"other"}
    assert requests.get(f"http://127.0.0.1:{other}/", timeout=30).text == "other"
