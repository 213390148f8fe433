"""Faults of the soak, in a random order, and the trainings and deployments that they strike."""

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from hosts import BIN, Host
from lab import ROOT, Lab, wait_until
from runs import FAULT_STEP, Outcome, Run, finish
from s3_server import S3Server
from soak_requests import Load
from soak_usage import processes

LIMITS_S = {
    "training worker": 0.0,
    "training driver": 0.0,
    "replica": 3.0,
    "Serve controller": 0.0,
    "proxy": 60.0,
    "HAProxy": 60.0,
    "S3": 0.0,
    "redeploy": 0.0,
}
"""Kinds of faults, and the longest time after each in which requests may fail (s)."""
WHOLE = {"replica": 2, "Serve controller": 1, "proxy": 1, "HAProxy": 1}
"""Fewest processes of the service while the service is whole; proxies are those of the head, which gets the requests."""
PROXIES = ("proxy", "HAProxy")
RECOVERY_TIMEOUT_S = 600.0
FAULT_STEP_TIMEOUT_S = 900.0
RUN_TIMEOUT_S = 3600
S3_DOWN_S = (2.0, 10.0)
CPUS_PER_REPLICA = 0.1

logger = logging.getLogger(__name__)


@dataclass
class Fault:
    """Fault that was caused at a time of `time.monotonic`."""

    kind: str
    at: float
    recovered_s: float = 0.0


class Trainer:
    """Thread that trains run after run, gives the same command again after a killed driver, and compares each run with its twin."""

    def __init__(self, lab: Lab, new_run: Callable[[], Run], expected: Run) -> None:
        self._lab, self._new_run, self._expected = lab, new_run, expected
        self.outcomes: list[Outcome] = []
        self.error: BaseException | None = None
        self.run, self._process = new_run(), None
        self._driver_killed = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._train)

    def __enter__(self) -> "Trainer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the end of the present run."""
        self._stop.set()
        self._thread.join()

    def _train(self) -> None:
        try:
            while not self._stop.is_set():
                self._driver_killed.clear()
                self._process = self.run.start(self._lab)
                while (status := self._process.wait(RUN_TIMEOUT_S)) != 0 and self._driver_killed.is_set():
                    logger.info("event=driver_ended status=%d", status)
                    self._driver_killed.clear()
                    self._process = self.run.start(self._lab)
                self.outcomes.append(finish(self.run, self._process, self._expected))
                logger.info("event=run_finished runs=%d attempts=%d", len(self.outcomes), len(self.outcomes[-1].attempts))
                self.run = self._new_run()
        except BaseException as error:  # noqa: BLE001 - the test raises it again
            self.error = error

    def wait_until_killable(self) -> None:
        """Wait until a run trains after a complete checkpoint of FAULT_STEP."""
        wait_until(lambda: self.error is not None or self._is_killable(), "a run past its fault step", FAULT_STEP_TIMEOUT_S)
        if self.error:
            raise self.error

    @property
    def position(self) -> tuple[str, int]:
        """Return the name of the present run and the number of its attempts."""
        return self.run.name, len(self.run.attempts())

    def _is_killable(self) -> bool:
        workers = [process for role, process in processes(list(self._lab.nodes.values())) if role == "training worker"]
        return len(workers) == 2 and self.run.checkpoint_step() >= FAULT_STEP

    def kill_driver(self) -> None:
        """Kill the driver of the present run."""
        process = self._process
        assert process is not None
        self._driver_killed.set()
        process.send(signal.SIGKILL)


@dataclass
class Service:
    """Service of the lab, deployed from the project's Serve config with one of two sets of weights."""

    lab: Lab
    weights: tuple[str, str]
    """URLs of weights; the last part of a URL is the name of the weights."""
    folder: Path
    version: int = field(default=-1)

    def deploy(self) -> str:
        """Deploy the other weights and return their name."""
        self.version += 1
        weights = self.weights[self.version % 2]
        config = yaml.safe_load((ROOT / "clusters/serve.yaml").read_text())
        replicas = {"min_replicas": 2, "max_replicas": 2, "gpus_per_replica": 0, "cpus_per_replica": CPUS_PER_REPLICA}
        config["applications"][0]["args"] = {"weights": weights, "engine": "torch", **replicas}
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        self.lab.run_on_head([str(BIN / "serve"), "deploy", str(file)])
        return weights.rpartition("/")[2]

    @property
    def address(self) -> str:
        """Return the address of the head's proxy: only the head has one wherever the replicas are."""
        return f"http://{self.lab.head.address}:8000"

    @property
    def hosts(self) -> list[Host]:
        return [self.lab.head, *self.lab.nodes.values()]

    def find(self, role: str) -> list[psutil.Process]:
        """Return the processes of a role; proxies are those of the head."""
        hosts = [self.lab.head] if role in PROXIES else self.hosts
        return [process for found, process in processes(hosts) if found == role]

    def is_whole(self) -> bool:
        """Return True if all processes of the service run."""
        return all(len(self.find(role)) >= number for role, number in WHOLE.items())


@dataclass
class Faults:
    """Causes faults, one after another; each waits until the cluster is whole again."""

    service: Service
    trainer: Trainer
    s3_server: S3Server
    load: Load
    random: random.Random
    caused: list[Fault] = field(default_factory=list)

    def cause_until(self, end: float, mean_pause_s: float) -> None:
        """Cause each kind once in a random order, and again, until a time; pauses have random lengths."""
        for kind in self._kinds():
            pause_s = self.random.uniform(0.5, 1.5) * mean_pause_s
            if time.monotonic() + pause_s > end:
                time.sleep(max(end - time.monotonic(), 0))
                return
            time.sleep(pause_s)
            self._cause(kind)

    def _kinds(self) -> Iterator[str]:
        while True:
            yield from self.random.sample(list(LIMITS_S), len(LIMITS_S))

    def _cause(self, kind: str) -> None:
        if kind.startswith("training"):
            self.trainer.wait_until_killable()
            before = self.trainer.position
        fault = Fault(kind, time.monotonic())
        self.caused.append(fault)
        logger.info("event=fault kind='%s'", kind)
        if kind == "redeploy":
            name = self.service.deploy()
            self._wait(lambda: self.load.newest_model() == name, f"answers of {name}")
        elif kind == "S3":
            self.s3_server.stop()
            time.sleep(self.random.uniform(*S3_DOWN_S))
            self.s3_server.start()
        elif kind == "training driver":
            self.trainer.kill_driver()
        else:
            self._kill_one(kind)
        if kind.startswith("training"):
            self._wait(lambda: self.trainer.position != before, "the next attempt")
        self._wait(self.service.is_whole, f"the service is whole after {kind}")
        fault.recovered_s = time.monotonic() - fault.at
        logger.info("event=recovered kind='%s' seconds=%.1f", kind, fault.recovered_s)

    def _kill_one(self, kind: str) -> None:
        victim = self.random.choice(self.service.find(kind))
        os.kill(victim.pid, signal.SIGKILL)
        self._wait(lambda: not victim.is_running(), f"the end of {kind}")

    def _wait(self, condition: Callable[[], bool], description: str) -> None:
        wait_until(condition, description, RECOVERY_TIMEOUT_S)
