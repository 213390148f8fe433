"""Plant credentials, submit every job to a cluster, each to a good and to a bad end, and search every byte that they leave behind."""

import shlex
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from canaries import files, find_canaries, lacking, objects, plant
from head import RAY, Head, free_port, running_head
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.io import storage
from yolor_ray.pack.run import pack_scenes

pytestmark = pytest.mark.chaos

SIZE = "--network.stem_width 8 --network.widths 8 16 16 16 --network.depths 1 1 1 1 --data.image_px 64 --optim.batch 4"
SHORT = f"{SIZE} --optim.nominal_batch 4 --optim.epochs 1 --cluster.compute_threads 1 --cluster.max_failures 0 --run.storage BUCKET/runs"
GOOD, BROKEN = "--data.train BUCKET/train --data.val BUCKET/val", "--data.train BUCKET/broken --data.val BUCKET/val"
WEIGHTS = "--weights BUCKET/runs/alone/weights"
JOBS = (
    ("pack scenes --count 8 --output BUCKET/packed", True),
    ("pack auto BUCKET/absent --output BUCKET/nothing", False),
    (f"train nano {GOOD} {SHORT} --run.name alone", True),
    (f"train nano {GOOD} {SHORT} --run.name workers --cluster.workers 2", True),
    (f"train nano {BROKEN} {SHORT} --run.name broken", False),
    (f"train nano {BROKEN} {SHORT} --run.name broken-workers --cluster.workers 2", False),
    (f"tune search nano --trials 1 {GOOD} {SHORT} --run.name study", True),
    (f"tune search nano --trials 1 {BROKEN} {SHORT} --run.name broken-study", False),
    (f"evaluate {WEIGHTS} --data BUCKET/val --workers 1 --output BUCKET/evaluation", True),
    (f"evaluate {WEIGHTS} --data BUCKET/broken --workers 1", False),
    (f"export {WEIGHTS} --data BUCKET/val --output BUCKET/fused", True),
    ("export --weights BUCKET/absent --data BUCKET/val --output BUCKET/nothing", False),
    ("release BUCKET/fused --to BUCKET/live", True),
    ("release --back --to BUCKET/live", False),
    (f"predict {WEIGHTS} --images BUCKET/photos --output BUCKET/predicted --draw 1", True),
    (f"predict {WEIGHTS} --images BUCKET/absent --output BUCKET/nothing", False),
    ("serve --weights BUCKET/absent", False),
)
"""Arguments of a job, and whether the job ends well. The datasets `broken` have a manifest but no shards."""
STARTS_S = 120


def prepare(bucket: str) -> None:
    """Pack datasets, one of them without its shards, and write images, one of them cut off."""
    for name, count, seed in (("train", 8, 0), ("val", 4, 1), ("broken", 4, 0)):
        pack_scenes(f"{bucket}/{name}", count, seed=seed)
    for name in storage.list_names(f"{bucket}/broken"):
        if name.endswith(".parquet"):
            storage.delete(f"{bucket}/broken/{name}")
    for number in range(3):
        storage.write_bytes(f"{bucket}/photos/{number}.jpg", scene(number).image[: 400 if number == 2 else None])


def submit(head: Head, job: str) -> tuple[bool, str]:
    """Run a job on the cluster to its end; return whether it ended well, and its output."""
    name, *arguments = shlex.split(job)
    done = head.submit("--", "python", f"jobs/{name}.py", *arguments)
    return done.returncode == 0, done.stdout + done.stderr


def serve_once(head: Head, weights: str) -> str:
    """Serve weights, post a good and a bad image, stop the job and return its output."""
    port = free_port()
    started = head.submit(
        "--submission-id", "serving", "--no-wait", "--", "python", "jobs/serve.py", "--weights", weights, "--port", str(port)
    )
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + STARTS_S
    statuses: list[int] = []
    while len(statuses) < 2 and time.monotonic() < deadline:
        image = scene(0).image if not statuses else b"no image"
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/detect", image, {"Content-Type": "image/jpeg"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                statuses.append(answer.status)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                statuses.append(error.code)
        except OSError:
            time.sleep(1)
    output = subprocess.run([RAY, "job", "logs", "serving"], env=head.environment, capture_output=True, text=True).stdout
    subprocess.run([RAY, "job", "stop", "serving"], env=head.environment, check=True, capture_output=True)
    assert statuses == [200, 415], output[-4000:]
    return output


def test_no_job_leaves_a_credential_behind(s3: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, canaries = s3(), plant(monkeypatch)
    prepare(bucket)
    with running_head() as head:
        canaries["RAY_AUTH_TOKEN"] = head.environment["RAY_AUTH_TOKEN"]
        outputs = {}
        for job, ends_well in JOBS:
            ended_well, outputs[job] = submit(head, job.replace("BUCKET", bucket))
            assert ended_well == ends_well, f"{job}: {outputs[job][-4000:]}"
        outputs["serve"] = serve_once(head, f"{bucket}/fused")
        texts = {name: text.encode() for name, text in outputs.items()}
        everything = {**texts, **head.read_dashboard(), **dict(objects(bucket)), **dict(files(head.folder))}
    assert find_canaries(canaries, everything.items()) == []
    expected = (
        ("/job-driver-", b"event="),
        ("/worker-", b"event="),
        ("/runtime_env_agent.log", b"working_dir"),
        ("api/jobs/", b"jobs/tune.py"),
    )
    assert lacking(expected, everything) == []
