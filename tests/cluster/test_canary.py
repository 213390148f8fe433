"""Plant credentials, run jobs on real workers that end well and badly, and search every byte that they leave behind."""

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from canaries import files, find_canaries, objects, plant
from yolor_ray.io import storage
from yolor_ray.pack.run import pack_scenes

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    "--network.stem_width 8 --network.widths 8 16 16 16 --network.depths 1 1 1 1 --data.image_px 64 --optim.batch 4 "
    "--optim.nominal_batch 4 --optim.epochs 1 --run.checkpoint_epochs 1 --cluster.compute_threads 1 --cluster.workers 1 "
    "--cluster.max_failures 0"
)
# All jobs share one process and one Ray, as each start takes seconds. Ray's own state is read while Ray still runs.
JOBS = """
import json, logging, os, runpy, sys, time, urllib.request
from pathlib import Path
jobs, answers = json.loads(sys.argv[1]), Path(sys.argv[2])
for job in jobs:
    sys.argv = job
    try:
        runpy.run_path(job[0], run_name="__main__")
    except SystemExit as ended:
        print("ended", ended.code, flush=True)
import ray
# A library logs a secret in a worker of the jobs' own Ray, so that the absence of the secret proves something.
@ray.remote(num_cpus=0)
def log_secret():
    logging.getLogger("a.library").warning("signing with %s", os.environ["AWS_SECRET_ACCESS_KEY"])
ray.get(log_secret.remote())
state = "tasks actors runtime_envs workers objects jobs nodes placement_groups cluster_events"
paths = [f"api/v0/{name}?detail=1&limit=1000" for name in state.split()]
paths += ["api/jobs/", "nodes?view=summary", "logical/actors"]
from yolor_ray.cluster.ray_internals import dashboard_url
urls = [f"http://{dashboard_url()}/{path}" for path in paths]
urls.append(f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics")
def read(url):
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()
# Workers report their tasks about once a second.
deadline = time.monotonic() + 30
while b", row group 0: " not in read(urls[0]) and time.monotonic() < deadline:
    time.sleep(0.2)
answers.mkdir()
for number, url in enumerate(urls):
    (answers / str(number)).write_bytes(read(url))
"""


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch, s3: Callable[[], str]) -> dict[str, str]:
    """Name every secret that the jobs' processes can see; Ray's token is one."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return {**plant(monkeypatch), "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}


@pytest.fixture
def left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of Ray's files; the folder holds sockets, whose paths may have 107 characters at most."""
    folder = Path(tempfile.mkdtemp(prefix="yc", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_no_byte_that_jobs_leave_behind_holds_a_credential(canaries: dict[str, str], left_behind: Path, s3: Callable[[], str]) -> None:
    bucket = s3()
    for name, count, seed in (("train", 8, 0), ("val", 4, 1), ("broken", 4, 0)):
        pack_scenes(f"{bucket}/{name}", count, seed=seed)
    # The job opens this dataset and starts; only the tasks on Ray's workers then miss its images.
    for name in storage.list_names(f"{bucket}/broken"):
        if name.endswith(".parquet"):
            storage.delete(f"{bucket}/broken/{name}")
    data = f"--data.train {bucket}/train --data.val {bucket}/val --run.storage {bucket}/runs"
    train = f"jobs/train.py nano {data} --run.name run {FLAGS}"
    tune = f"jobs/tune.py search nano --trials 1 {data} --run.name study {FLAGS} --cluster.workers 0"
    evaluate = f"jobs/evaluate.py --weights {bucket}/runs/run/weights --data {bucket}/broken --workers 1"
    command = [sys.executable, "-c", JOBS, json.dumps([train.split(), tune.split(), evaluate.split()]), str(left_behind / "answers")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    ended = [line for line in done.stdout.splitlines() if line.startswith("ended")]
    assert (done.returncode, ended) == (0, ["ended 0", "ended 0", "ended 2"]), done.stderr[-4000:]
    everything = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode(), **dict(objects(bucket)), **dict(files(left_behind))}
    assert find_canaries(canaries, everything.items()) == []
    # Every searched file exists, and the failure is in the files that report failures.
    assert b", row group 0: " in everything["stderr"] and b"event=checkpoint" in everything["stderr"]
    for name, text in (
        ("/run/config.json", b"optim"),
        ("/run/metrics.jsonl", b"loss"),
        ("/logs/worker-", b"event=checkpoint"),
        ("/logs/worker-", b"signing with <AWS_SECRET_ACCESS_KEY>"),
        ("/answers/", b", row group 0: "),
    ):
        assert any(name in location and text in data for location, data in everything.items()), f"{text!r} is not in any {name}"


def test_the_search_finds_every_spelling_in_a_nested_file(tmp_path: Path) -> None:
    canary = f"canary/{secrets.token_hex(8)}+="
    written = [canary, urllib.parse.quote(canary, safe=""), canary.replace("/", r"\/")]
    written += [base64.b64encode(f"{'x' * before}{canary}yz".encode()).decode() for before in range(4)]
    for number, text in enumerate(written):
        folder = tmp_path / str(number) / "deeper"
        folder.mkdir(parents=True)
        (folder / "log").write_text(f"before {text} after")
    hits = find_canaries({"planted": canary}, files(tmp_path))
    assert {Path(hit.split(" in ")[1]).parents[1].name for hit in hits} == {str(number) for number in range(len(written))}
