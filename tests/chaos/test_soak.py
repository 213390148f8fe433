"""A soak: trainings and a service on one cluster for an hour, with random faults, 1 % bad requests and redeployments.

| promise | test |
| --- | --- |
| no record is taken twice or lost | each epoch's ledger, and weights equal bit for bit to those of an undisturbed run |
| every request gets its right answer | except in the stated seconds after a fault (`soak_faults.LIMITS_S`) |
| memory, files, threads and actors are flat | the 95 % interval of a slope allows 5 % per hour, and what Ray itself keeps (`soak_usage`) |

Slopes are judged from 25 minutes on.

`make soak` runs it, as root; `make soak MINUTES=10` takes ten minutes besides the start and the end. SOAK_SEED changes the order of faults.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lab import PYTHON, Lab, wait_until
from runs import Run
from s3_server import S3Server
from soak_faults import Faults, Service, Trainer
from soak_report import report
from soak_requests import Load
from soak_usage import Usage
from yolor_ray.config import NetworkConfig
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights

MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))
SEED = int(os.environ.get("SOAK_SEED", "0"))
PAUSE_S = min(180.0, MINUTES * 60 / 20)
EPOCHS = max(20, int(2 * MINUTES))
READY_TIMEOUT_S = 180
TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(16, 16, 32, 32), depths=(1, 1, 1, 1), neck_depth=1)
ANCHORS = torch.tensor([[[12.0, 12], [20, 20], [30, 30]], [[40, 40], [60, 60], [80, 80]], [[90, 90], [120, 120], [150, 150]]])
COUNT_ACTORS = """
import json, sys, time
import ray
from ray.util.state import list_actors
ray.init(log_to_driver=False)
while True:
    actors = list_actors(filters=[("state", "=", "ALIVE")], limit=10000)
    print(json.dumps([time.monotonic(), len(actors)]), flush=True)
    time.sleep(10)
"""
"""Script of the head. `time.monotonic` is the same on all hosts, which share a kernel."""


def publish_weights(url: str) -> str:
    torch.manual_seed(0)
    save_weights(url, Yolor(TINY, 3, ANCHORS).eval(), WeightsInfo(url.rpartition("/")[2], ("circle", "square", "triangle"), 160))
    return url


@pytest.mark.soak
def test_an_hour_of_faults_breaks_no_promise(
    lab: Lab, s3_server: S3Server, new_run: Callable[..., Run], undisturbed: Callable[[Run], Run], tmp_path: Path, add_report: Callable
) -> None:
    expected = undisturbed(new_run("2", EPOCHS))
    bucket = s3_server.make_bucket()
    service = Service(lab, (publish_weights(f"{bucket}/red"), publish_weights(f"{bucket}/blue")), tmp_path)
    first, photo = service.deploy(), next(record.image for record in map(scene, range(100)) if record.image[:2] == b"\xff\xd8")
    wait_until(service.is_whole, "the first deployment", READY_TIMEOUT_S)
    with Load(service.address, photo, SEED) as probe:
        wait_until(lambda: probe.newest_model() == first, "an answer", READY_TIMEOUT_S)
    counter = lab.head.start([PYTHON, "-c", COUNT_ACTORS], lab.driver_environment, tmp_path / "actors.log")
    trainer, usage = Trainer(lab, lambda: new_run("2", EPOCHS), expected), Usage(service.hosts)
    load = Load(service.address, photo, SEED)
    faults = Faults(service, trainer, s3_server, load, random.Random(SEED))
    try:
        with usage, load, trainer:
            faults.cause_until(time.monotonic() + MINUTES * 60, PAUSE_S)
    finally:
        counter.stop()
        lines, broken = report(faults, usage, counter.output)
        add_report(lines)
    assert broken == []
