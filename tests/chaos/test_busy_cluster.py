"""Jobs beside each other on one cluster: a job that is stopped and submitted again, two jobs of one run, and a study that has to wait."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from head import RAY, Head, running_head
from yolor_ray.io import manifest, storage
from yolor_ray.pack.run import pack_scenes
from yolor_ray.train.checkpoint.attempts import read_attempts
from yolor_ray.train.run_log import read_metrics

pytestmark = pytest.mark.chaos

EPOCHS, LONG_EPOCHS, IMAGES = 24, 100, 33
"""The long run lasts until a second job has started, which takes some 20 s on an idle machine."""
TINY = (
    "--network.stem_width 8 --network.widths 8 16 16 16 --network.depths 1 1 1 1 --data.image_px 64 --optim.batch 4 "
    "--optim.nominal_batch 4 --cluster.compute_threads 1 --cluster.workers 2"
)
WAIT_S = 240
HOLD = "import ray, time; ray.init(); holder = ray.remote(num_cpus=3)(lambda: time.sleep(40)).remote(); ray.get(holder)"


@pytest.fixture(scope="module")
def head(s3: Callable[[], str]) -> Iterator[Head]:
    with running_head() as head:
        yield head


@pytest.fixture(scope="module")
def bucket(s3: Callable[[], str]) -> str:
    bucket = s3()
    pack_scenes(f"{bucket}/train", IMAGES, 0)
    pack_scenes(f"{bucket}/val", 8, 1)
    return bucket


def training(bucket: str, name: str, epochs: int = EPOCHS) -> list[str]:
    places = f"--data.train {bucket}/train --data.val {bucket}/val --run.storage {bucket}/runs --run.name {name}"
    length = f"--optim.epochs {epochs} --run.validate_epochs {EPOCHS} --run.checkpoint_steps 8"
    return ["python", "jobs/train.py", "nano", *places.split(), *TINY.split(), *length.split()]


def start(head: Head, name: str, command: list[str]) -> None:
    started = head.submit("--submission-id", name, "--no-wait", "--", *command)
    assert started.returncode == 0, started.stderr


def ask(head: Head, *words: str) -> str:
    """Return the output of `ray job` with these words."""
    return subprocess.run([RAY, "job", *words], env=head.environment, capture_output=True, text=True, timeout=60).stdout


def wait_for(condition: Callable[[], bool], description: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {WAIT_S} s for {description}"
        time.sleep(2)


def has_checkpoint(run: str) -> bool:
    folder = f"{run}/checkpoints"
    return any(manifest.is_published(f"{folder}/{name}") for name in storage.list_names(folder))


def check_records(run: str, epochs: int = EPOCHS) -> None:
    """Check that each epoch took each record once, whatever stopped it."""
    assert [(row["epoch"], row["records"]) for row in read_metrics(run)] == [(epoch + 1, IMAGES) for epoch in range(epochs)]


def test_a_stopped_job_goes_on_when_it_is_submitted_again(head: Head, bucket: str) -> None:
    run, command = f"{bucket}/runs/stopped", training(bucket, "stopped")
    start(head, "first", command)
    wait_for(lambda: has_checkpoint(run), "a checkpoint")
    ask(head, "stop", "first")
    assert head.status("first") == "STOPPED"
    head.result(*command[1:])
    first, second = read_attempts(run)
    assert (first.from_step, second.lost_steps) == (0, 0) and second.from_step > 0
    check_records(run)


def test_the_newer_of_two_jobs_of_one_run_goes_on_and_the_older_ends(head: Head, bucket: str) -> None:
    run, command = f"{bucket}/runs/twice", training(bucket, "twice", LONG_EPOCHS)
    start(head, "older", command)
    wait_for(lambda: has_checkpoint(run), "a checkpoint")
    head.result(*command[1:])
    wait_for(lambda: head.status("older") == "FAILED", "the end of the older job")
    assert "SupersededError" in ask(head, "logs", "older") and "another job continues the run" in ask(head, "logs", "older")
    assert len(read_attempts(run)) == 2
    check_records(run, LONG_EPOCHS)


def test_a_study_waits_for_cpus_that_another_job_holds(head: Head, bucket: str) -> None:
    start(head, "holder", ["python", "-c", HOLD])
    wait_for(lambda: head.status("holder") == "RUNNING", "the other job")
    places = f"--data.train {bucket}/train --data.val {bucket}/val --run.storage {bucket}/runs --run.name study"
    study = ["jobs/tune.py", "search", "nano", "--trials", "1", *places.split(), *TINY.split(), "--optim.epochs", "2"]
    done = head.submit("--", "python", *study)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "event=waiting_for_nodes" in done.stdout or "event=trials_wait" in done.stdout
    result = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    assert (result["trials"], result["failed"]) == (1, 0)
