"""The documented commands of a cluster: `ray start --head`, then train, evaluate, export and serve by `ray job submit`, all data in S3."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from head import RAY, Head, free_port, running_head
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.model.weights import load_weights
from yolor_ray.pack.run import pack_scenes

TINY = "--network.stem_width 8 --network.widths 8 16 16 16 --network.depths 1 1 1 1 --data.image_px 64 --optim.batch 8"


@pytest.fixture(scope="module")
def head(s3: Callable[[], str]) -> Iterator[Head]:
    with running_head() as head:
        yield head


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
