"""The documented commands of a cluster: `ray start --head`, then train, evaluate, export and serve by `ray job submit`, all data in S3.

Credentials are planted before the cluster starts, and at the end every byte that cluster and jobs leave behind is searched for them.
"""

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from canaries import files, find_canaries, lacking, objects, plant
from head import RAY, Head, free_port, running_head
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.io import storage
from yolor_ray.model.weights import load_weights
from yolor_ray.pack.run import pack_scenes

TINY = "--network.stem_width 8 --network.widths 8 16 16 16 --network.depths 1 1 1 1 --data.image_px 64 --optim.batch 8"
LOG_A_SECRET = """
import logging, os, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    print("ended", ended.code, flush=True)
import ray
# A library logs a secret in a worker of the job, so that the absence of the secret proves something.
@ray.remote(num_cpus=0)
def log_secret():
    logging.getLogger("a.library").warning("signing with %s", os.environ["AWS_SECRET_ACCESS_KEY"])
ray.get(log_secret.remote())
"""
"""Program that runs a job, and logs a secret in one of the job's workers."""
REPORTED_S = 30
"""Workers report their tasks about once a second."""


@pytest.fixture(scope="module")
def canaries(s3: Callable[[], str]) -> Iterator[dict[str, str]]:
    """Name every secret that the processes of the cluster can see, but for Ray's token."""
    with pytest.MonkeyPatch.context() as patch:
        yield plant(patch)


@pytest.fixture(scope="module")
def head(canaries: dict[str, str]) -> Iterator[Head]:
    with running_head() as head:
        yield head


@pytest.fixture(scope="module")
def bucket(s3: Callable[[], str]) -> str:
    """Pack datasets, one of them without its shards: a job opens it, and only the tasks on workers miss its images."""
    url = s3()
    for name, count, seed in (("train", 32, 0), ("val", 8, 1), ("broken", 4, 0)):
        pack_scenes(f"{url}/{name}", count, seed)
    for name in storage.list_names(f"{url}/broken"):
        if name.endswith(".parquet"):
            storage.delete(f"{url}/broken/{name}")
    return url


@pytest.fixture(scope="module")
def trained(head: Head, bucket: str) -> dict:
    """Return the result of a submitted training."""
    places = f"--data.train {bucket}/train --data.val {bucket}/val --run.storage {bucket}/runs --run.name submitted"
    return head.result("jobs/train.py", "nano", *places.split(), *TINY.split(), "--optim.epochs", "2", "--cluster.workers", "1")


def test_submitted_jobs_train_evaluate_export_and_serve_from_s3(head: Head, bucket: str, trained: dict) -> None:
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
    deadline = time.monotonic() + 300
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, image, {"Content-Type": "image/jpeg"}), timeout=10) as answer:
                return json.load(answer)
        except OSError:
            assert time.monotonic() < deadline, f"{url} did not answer"
            time.sleep(1)


def test_a_users_mistake_in_a_submitted_job_is_told_and_fails_it(head: Head, bucket: str) -> None:
    done = head.submit("--", "python", "jobs/evaluate.py", "--weights", f"{bucket}/absent", "--data", "scenes:4")
    assert done.returncode != 0
    assert "absent" in done.stdout and "not found" in done.stdout


def test_no_byte_that_cluster_and_jobs_leave_behind_holds_a_credential(
    head: Head, bucket: str, trained: dict, canaries: dict[str, str]
) -> None:
    broken = ["jobs/evaluate.py", "--weights", trained["weights"], "--data", f"{bucket}/broken", "--workers", "1"]
    failed = head.submit("--", "python", "-c", LOG_A_SECRET, *broken)
    assert "ended 2" in failed.stdout, failed.stdout[-4000:]
    deadline = time.monotonic() + REPORTED_S
    while b", row group 0: " not in (state := head.read_dashboard())[next(iter(state))] and time.monotonic() < deadline:
        time.sleep(0.2)
    everything = {"output": failed.stdout.encode(), **state, **dict(objects(bucket)), **dict(files(head.folder))}
    secrets = {**canaries, "RAY_AUTH_TOKEN": head.environment["RAY_AUTH_TOKEN"]}
    assert find_canaries(secrets, everything.items()) == []
    # Every searched file exists, and the failure is in the files that report failures.
    expected = (
        ("output", b", row group 0: "),
        ("/submitted/config.json", b"optim"),
        ("/submitted/metrics.jsonl", b"loss"),
        ("/logs/worker-", b"event=checkpoint"),
        ("/logs/worker-", b"signing with <AWS_SECRET_ACCESS_KEY>"),
        ("/logs/job-driver-", b"event="),
        ("api/v0/tasks", b", row group 0: "),
        ("api/jobs/", b"jobs/train.py"),
    )
    assert lacking(expected, everything) == []
