"""The job `serve` from the command line, with a Ray of its own, Ray Serve, HAProxy, weights and HTTP."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import psutil
import pytest
import requests
import torch
from PIL import Image

import pictures
import yolor_ray as yr
from yolor_ray.config import NetworkConfig
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights

REPOSITORY = Path(__file__).parents[2]
JOB = REPOSITORY / "jobs" / "serve.py"
TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(16, 16, 32, 32), depths=(1, 1, 1, 1), neck_depth=1)
ANCHORS = torch.tensor([[[12.0, 12], [20, 20], [30, 30]], [[40, 40], [60, 60], [80, 80]], [[90, 90], [120, 120], [150, 150]]])
HOST = "127.0.0.2"
"""Address of the service, other than the one at which replicas listen."""
ALL_BOXES = "?confidence=0.001&max_detections=20"


def publish_weights(folder):
    torch.manual_seed(0)
    network = Yolor(TINY, 3, ANCHORS)
    for level in network.head.levels:
        torch.nn.init.normal_(level.predict.bias, std=1.0)
    save_weights(str(folder), network.eval(), WeightsInfo("tiny", ("circle", "square", "triangle"), 160))


def read(path):
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def descendants(pid):
    """Return the command lines by pid of all descendants of a process."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        if line := read(path):
            parents[int(path.parent.name)] = int(line.rpartition(")")[2].split()[1])
    command_lines, generation = {}, {pid}
    while generation := {child for child, parent in parents.items() if parent in generation}:
        command_lines |= {child: read(Path(f"/proc/{child}/cmdline")) for child in generation}
    return command_lines


def haproxies(processes):
    return [pid for pid, line in processes.items() if "bin/haproxy\0-db" in line]


def listening_addresses(pid):
    """Return the addresses on which a process listens."""
    connections = psutil.Process(pid).net_connections("inet")
    return {connection.laddr.ip.removeprefix("::ffff:") for connection in connections if connection.status == psutil.CONN_LISTEN}


class Job:
    def __init__(self, folder, *flags):
        self.folder = folder
        with socket.create_server((HOST, 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"TMPDIR": str(folder), "RAY_TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, str(JOB), "--weights", str(folder / "weights"), "--host", HOST, "--port", str(self.port), *flags]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )

    def wait_until_ready(self):
        deadline = time.monotonic() + 300
        while b"event=service_ready" not in self.log.read_bytes():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def stop(self):
        # To the whole process group, as `timeout` does: not to the job alone.
        os.killpg(self.process.pid, signal.SIGTERM)
        output, _ = self.process.communicate(timeout=180)
        return output.decode()


@pytest.fixture(scope="module")
def job():
    # Not pytest's tmp_path: the folder holds sockets, whose paths may have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ys", dir="/tmp"))
    publish_weights(folder / "weights")
    job = Job(folder, "--max-batch", "2", "--max-queued", "2")
    try:
        job.wait_until_ready()
        yield job
    finally:
        if job.process.poll() is None:
            job.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def jpeg():
    return next(record.image for record in map(scene, range(100)) if record.image[:2] == b"\xff\xd8")


def post(job, body, query=ALL_BOXES, media_type="image/jpeg", **headers):
    return requests.post(f"{job.url}/v1/detect{query}", data=body, headers={"Content-Type": media_type} | headers, timeout=30)


def test_three_encodings_of_one_photo_give_the_same_boxes(job, jpeg):
    raw = post(job, jpeg).json()
    multipart = requests.post(f"{job.url}/v1/detect{ALL_BOXES}", files={"file": ("photo.jpg", jpeg)}, timeout=30).json()
    document = requests.post(f"{job.url}/v1/detect{ALL_BOXES}", json={"image": base64.b64encode(jpeg).decode()}, timeout=30).json()
    assert raw["detections"] == multipart["detections"] == document["detections"]
    assert len(raw["detections"]) == 20
    width, height = Image.open(BytesIO(jpeg)).size
    assert raw["image"] == {"width": width, "height": height}
    for detection in raw["detections"]:
        x1, y1, x2, y2 = detection["box"]
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        assert detection["class"] == ("circle", "square", "triangle")[detection["class_id"]]


def test_http_client_batch_and_open_inference_protocol_find_the_same_boxes(job, jpeg):
    # curl declares this type by default.
    answer = post(job, jpeg, media_type="application/x-www-form-urlencoded").json()
    expected = answer["detections"]
    assert len(expected) == 20
    options = {"confidence": 0.001, "max_detections": 20}

    with yr.Client(job.url) as client:
        assert client.detect(jpeg, **options)["detections"] == expected
        found, broken = client.detect_batch([jpeg, jpeg[:-2000]], **options)
        assert found["detections"] == expected and broken["error"]["code"] == "truncated_image"

    files = [("file", ("photo.jpg", jpeg)), ("file", ("broken.jpg", jpeg[:-2000]))]
    batch = requests.post(f"{job.url}/v1/detect/batch{ALL_BOXES}", files=files, timeout=30).json()
    assert [result.get("detections") for result in batch["results"]] == [expected, None]

    image = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(jpeg).decode()]}
    inferred = requests.post(f"{job.url}/v2/models/tiny/infer", json={"inputs": [image], "parameters": options}, timeout=30).json()
    assert (inferred["model_name"], inferred["model_version"]) == ("tiny", answer["model"]["version"])
    outputs = {output["name"]: output["data"] for output in inferred["outputs"]}
    assert outputs["boxes"] == [edge for detection in expected for edge in detection["box"]]
    assert outputs["scores"] == [detection["confidence"] for detection in expected]
    assert outputs["labels"] == [detection["class"] for detection in expected]


def test_all_exif_orientations_of_one_photo_give_the_same_boxes(job, jpeg):
    upright = Image.open(BytesIO(jpeg)).convert("RGB")
    answers = []
    for orientation in range(1, 9):
        exif, buffer = Image.Exif(), BytesIO()
        exif[0x0112] = orientation
        stored = pictures.stored(upright, orientation)
        stored.save(buffer, "PNG", exif=exif)
        answers.append(post(job, buffer.getvalue()).json())
    assert len(answers[0]["detections"]) == 20
    for answer in answers[1:]:
        assert answer["image"] == answers[0]["image"]
        assert answer["detections"] == answers[0]["detections"]


def test_a_request_id_is_returned_once(job, jpeg):
    answer = post(job, jpeg, **{"X-Request-ID": "trace-7"})
    assert answer.json()["request_id"] == "trace-7"
    assert answer.headers["X-Request-ID"] == "trace-7"


def test_errors_pass_the_proxy_as_json(job, jpeg):
    assert post(job, jpeg[:-2000]).json()["code"] == "truncated_image"
    assert post(job, b"\0" * 20_000_001).json()["code"] == "body_too_large"
    assert post(job, jpeg, "?iou=0").json()["code"] == "bad_parameter"
    assert requests.get(f"{job.url}/nowhere", timeout=10).json()["code"] == "not_found"


def test_an_image_is_read_from_a_request_that_offers_another_protocol(job, jpeg):
    # HAProxy passes this offer on to the replica.
    assert post(job, jpeg, Connection="Upgrade", Upgrade="TLS/1.0").json()["detections"] == post(job, jpeg).json()["detections"]


def test_a_full_queue_is_answered_429_with_retry_after(job, jpeg):
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: post(job, jpeg), range(120)))
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["code"] == "overloaded" and refused.headers["Retry-After"] == "1"
    assert post(job, jpeg).status_code == 200


def test_pages_probes_and_metrics_are_served(job, jpeg):
    post(job, jpeg)
    assert "Drop an image here" in requests.get(job.url, timeout=10).text
    assert "openapi.json" in requests.get(f"{job.url}/docs", timeout=10).text
    assert requests.get(f"{job.url}/readyz", timeout=10).json() == {"status": "ready"}
    assert requests.get(f"{job.url}/healthz", timeout=10).json() == {"status": "ok"}
    card = requests.get(f"{job.url}/v1/model", timeout=10).json()
    assert (card["name"], card["image_px"], card["fused"]) == ("tiny", 160, True)
    assert card["engine"] in {"torch", "onnxruntime", "openvino"}
    text = requests.get(f"{job.url}/metrics", timeout=10).text
    assert 'route="/v1/detect",status="200"' in text and 'stage="network"' in text


def test_haproxy_alone_listens_at_the_address_of_the_service(job):
    processes = descendants(job.process.pid)
    [pid] = haproxies(processes)
    assert listening_addresses(pid) == {"127.0.0.1", HOST}
    assert set().union(*(listening_addresses(other) for other in processes if other != pid)) == {"127.0.0.1"}


def test_replicas_and_haproxy_have_the_priority_of_the_command(job):
    processes = descendants(job.process.pid)
    served = [pid for pid, line in processes.items() if "ServeReplica" in line] + haproxies(processes)
    assert len(served) >= 2
    assert {psutil.Process(pid).nice() for pid in served} == {psutil.Process(job.process.pid).nice()}


def test_a_second_service_on_the_same_port_is_the_users_mistake(job):
    second = subprocess.run(
        [sys.executable, str(JOB), "--weights", str(job.folder / "weights"), "--host", HOST, "--port", str(job.port)],
        capture_output=True,
        text=True,
    )
    assert second.returncode == 2
    assert f"{HOST}:{job.port}" in second.stderr


def test_missing_weights_are_the_users_mistake_and_start_no_service(tmp_path):
    run = subprocess.run([sys.executable, str(JOB), "--weights", str(tmp_path / "none")], capture_output=True, text=True)
    assert run.returncode == 2
    assert str(tmp_path / "none") in run.stderr
    assert "event=deployment_started" not in run.stderr


def test_sigterm_ends_the_service_and_all_its_processes(job):
    before = descendants(job.process.pid)
    assert haproxies(before)
    output = job.stop()
    assert job.process.returncode == 0, job.log.read_text()
    assert json.loads(output.splitlines()[-1])["url"] == job.url
    assert {line for pid, line in before.items() if read(Path(f"/proc/{pid}/cmdline")) == line} == set()
    with pytest.raises(requests.ConnectionError):
        requests.get(job.url, timeout=5)
