"""Run a Ray cluster of several hosts, as a user starts one, with S3 behind a proxy that makes S3's faults, and hurt it."""

import os
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from faulty_s3 import Faults, FaultyS3
from hosts import BIN, Host, Network, Process, network, wait_for_port

ROOT = Path(__file__).resolve().parents[2]
RAY, PYTHON = str(BIN / "ray"), str(BIN / "python")
PORT = 6379
START_TIMEOUT_S = 90
OBJECT_STORE_BYTES = 100 << 20
# Ray has a process ready for each CPU before anyone asks: on two cores for four hosts they come too soon.
STARTS_LITTLE = {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0", "OMP_NUM_THREADS": "1"}
NODE_SETTINGS = re.compile(r"^export (RAY_health_check_\w+)=(\d+)$", re.MULTILINE)
WORKER = "RayTrainWorker"
"""In the command line of every training worker."""
NODE_CPUS = 2
CPUS_PER_WORKER = 1.5
"""A node takes one worker, the head with its single CPU none."""


def shipped_health_checks() -> dict[str, str]:
    """Return how soon Ray takes a silent node for dead, as the project's cluster files have it."""
    found = dict(NODE_SETTINGS.findall((ROOT / "clusters/node.env").read_text()))
    assert found, "clusters/node.env sets no RAY_health_check_*"
    return found


class Lab:
    """A head without room for workers, nodes with room for one each, and S3."""

    def __init__(self, net: Network, s3: FaultyS3, folder: Path) -> None:
        self.net, self.s3, self.folder = net, s3, folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "AWS_ENDPOINT_URL": s3.endpoint}
        self.environment = {**inherited, **own, **shipped_health_checks(), **STARTS_LITTLE, "PATH": f"{BIN}:{os.environ['PATH']}"}
        self.nodes: dict[str, Host] = {}
        self._hurt: set[str] = set()
        self._jobs: list[Process] = []
        self.rays: dict[str, Process] = {}
        self.head = net.host("head")
        self.address = f"{self.head.address}:{PORT}"
        self._ray(self.head, "--head", "--port", str(PORT), "--num-cpus", "1")
        wait_for_port(self.head.address, PORT, START_TIMEOUT_S)

    def start_node(self, name: str) -> Host:
        """Start a host and Ray on it, in place of the one that had the name if it is gone."""
        self.nodes[name] = host = self.net.host(name)
        self._ray(host, "--address", self.address, "--num-cpus", str(NODE_CPUS))
        return host

    def _ray(self, host: Host, *role: str) -> None:
        own = ["--node-ip-address", host.address, "--temp-dir", str(host.folder / "ray")]
        room = ["--object-store-memory", str(OBJECT_STORE_BYTES), "--disable-usage-stats", "--block"]
        self.rays[host.name] = host.start([RAY, "start", *role, *own, *room], self.environment, self.folder / f"{host.name}.log")

    def wait_for_nodes(self) -> None:
        """Wait until the cluster has the head and these nodes, each of them and no other."""
        wanted = {self.head.address, *(host.address for host in self.nodes.values())}
        alive = "{node['NodeManagerAddress'] for node in ray.nodes() if node['Alive']}"
        self._ask(f"while {alive} != {wanted}: time.sleep(0.2)")

    def _ask(self, script: str) -> str:
        """Run a few lines of Python on the head as a driver of the cluster, and return the last word that they printed."""
        begin = "import logging, ray, time\nray.init(logging_level=logging.ERROR, log_to_driver=False)\n"
        return self._tell([PYTHON, "-c", begin + script])

    def _tell(self, command: list[str]) -> str:
        process = self.head.start(command, self.driver_environment, self.folder / "asked.log")
        assert process.wait(START_TIMEOUT_S) == 0, process.output
        return (process.output.split() or [""])[-1]

    @property
    def driver_environment(self) -> Mapping[str, str]:
        return {**self.environment, "RAY_ADDRESS": self.address}

    def train(self, arguments: list[str], name: str) -> Process:
        """Start a training job on the head; the same name again goes on in the same log."""
        command = [PYTHON, str(ROOT / "jobs/train.py"), *arguments]
        self._jobs.append(self.head.start(command, self.driver_environment, self.folder / f"{name}.log"))
        return self._jobs[-1]

    def workers(self, name: str) -> list[int]:
        """Return the training workers on a node, as this machine numbers them."""
        return self.nodes[name].find(WORKER)

    def cut(self, name: str) -> None:
        """Lose all that a node sends and is sent."""
        self._hurt.add(name)
        self.net.cut(name)

    def heal(self, name: str) -> None:
        """Let the node speak again; the cluster may have given it up by now."""
        self.net.heal(name)

    def lose(self, name: str) -> None:
        """Take a node away for good, as if its power were cut: nobody hears of it."""
        self.cut(name)
        self.nodes.pop(name).kill()

    def end_ray(self, name: str) -> None:
        """End Ray on a node as whoever shuts a machine down does, by SIGTERM to what the machine was started with."""
        self._hurt.add(name)
        self.rays[name].send(signal.SIGTERM)

    def announce_loss(self, name: str, notice_s: int) -> None:
        """Tell the cluster that a node will be gone in so many seconds, as a cloud does before it takes a spot machine back."""
        self._hurt.add(name)
        here = f"node['Alive'] and node['NodeManagerAddress'] == {self.nodes[name].address!r}"
        node = self._ask(f"print(*(node['NodeID'] for node in ray.nodes() if {here}))")
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the machine is taken back"]
        self._tell([RAY, "drain-node", "--node-id", node, *why, "--deadline-remaining-seconds", str(notice_s)])

    def repair(self) -> None:
        """End all jobs and faults, and put new nodes in place of those that were hurt."""
        for job in self._jobs:
            job.stop()
        self._jobs.clear()
        self.s3.set_faults(**asdict(Faults()))
        if not self._hurt:
            return
        for name in self._hurt:
            if name in self.nodes:
                self.nodes.pop(name).kill()
            self.start_node(name)
        self._hurt.clear()
        self.wait_for_nodes()


@contextmanager
def lab(upstream: str, folder: Path, nodes: tuple[str, ...] = ("node1", "node2")) -> Iterator[Lab]:
    """Start a head and nodes; `upstream` is the HOST:PORT of the real S3 server on this machine."""
    with ExitStack() as stack:
        net = stack.enter_context(network())
        s3 = stack.enter_context(FaultyS3(upstream, listen=f"{net.address}:0"))
        made = Lab(net, s3, folder)
        for name in nodes:
            made.start_node(name)
        made.wait_for_nodes()
        yield made


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Wait until something holds; `what` says what was waited for in vain."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain: {what}"
        time.sleep(0.1)
