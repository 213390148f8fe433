"""A Ray cluster of several hosts, started as a user starts one, with S3 behind a faulty proxy; and the faults of its nodes."""

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
BUSY_MACHINE = {
    # Ray starts a worker process for each CPU in advance: too many processes for four hosts on two cores.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "OMP_NUM_THREADS": "1",
    # By default workers have niceness 15: beside any other program of the machine they stand still, and limits of time are broken.
    "RAY_worker_niceness": "0",
    # By default Ray kills a proxy of Serve that takes over 5 s to start.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # The GCS keeps 3 kB of each of the last 100,000 tasks, and a request is a task. With a lower bound, an hour shows what else grows.
    "RAY_task_events_max_num_task_in_gcs": "1000",
}
NODE_SETTING = re.compile(r"^export (RAY_health_check_\w+|RAY_SERVE_\w+)=(\d+)$", re.MULTILINE)
WORKER = "RayTrainWorker"
"""Part of the command line of every training worker."""
NODE_CPUS = 2
CPUS_PER_WORKER = 1.5
"""Logical CPUs of a worker: one worker fits on a node, and none on the head with its single CPU."""


def node_settings() -> dict[str, str]:
    """Return settings of the project's cluster files: health checks decide how soon Ray takes a silent node for dead."""
    settings = dict(NODE_SETTING.findall((ROOT / "clusters/node.env").read_text()))
    assert len(settings) == 5, f"clusters/node.env sets only {settings}"
    return settings


class Lab:
    """A head without capacity for workers, nodes with capacity for one worker each, and S3."""

    def __init__(self, net: Network, s3: FaultyS3, folder: Path) -> None:
        self.net, self.s3, self.folder = net, s3, folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "AWS_ENDPOINT_URL": s3.endpoint}
        settings = {**access, **node_settings(), **BUSY_MACHINE}
        self.environment = {**inherited, **settings, "PATH": f"{BIN}:{os.environ['PATH']}"}
        self.nodes: dict[str, Host] = {}
        self._faulty_nodes: set[str] = set()
        self._jobs: list[Process] = []
        self.rays: dict[str, Process] = {}
        self.head = net.host("head")
        self.address = f"{self.head.address}:{PORT}"
        self._start_ray(self.head, "--head", "--port", str(PORT), "--num-cpus", "1")
        wait_for_port(self.head.address, PORT, START_TIMEOUT_S)

    def start_node(self, name: str) -> Host:
        """Start a host and Ray on it; an earlier host of that name must have ended."""
        self.nodes[name] = host = self.net.host(name)
        self._start_ray(host, "--address", self.address, "--num-cpus", str(NODE_CPUS))
        return host

    def _start_ray(self, host: Host, *role: str) -> None:
        node = ["--node-ip-address", host.address, "--temp-dir", str(host.folder / "ray")]
        limits = ["--object-store-memory", str(OBJECT_STORE_BYTES), "--disable-usage-stats", "--block"]
        self.rays[host.name] = host.start([RAY, "start", *role, *node, *limits], self.environment, self.folder / f"{host.name}.log")

    def wait_for_nodes(self) -> None:
        """Wait until the cluster consists of the head and the nodes, and of no other node."""
        expected = {self.head.address, *(host.address for host in self.nodes.values())}
        alive = "{node['NodeManagerAddress'] for node in ray.nodes() if node['Alive']}"
        self._run_script(f"while {alive} != {expected}: time.sleep(0.2)")

    def run_on_head(self, command: list[str]) -> str:
        """Run a command on the head as a driver of the cluster, and return the last word of its output."""
        process = self.head.start(command, self.driver_environment, self.folder / "commands.log")
        assert process.wait(START_TIMEOUT_S) == 0, process.output
        return (process.output.split() or [""])[-1]

    def _run_script(self, script: str) -> str:
        """Run lines of Python on the head as a driver of the cluster, and return the last word of their output."""
        start = "import logging, ray, time\nray.init(logging_level=logging.ERROR, log_to_driver=False)\n"
        return self.run_on_head([PYTHON, "-c", start + script])

    @property
    def driver_environment(self) -> Mapping[str, str]:
        return {**self.environment, "RAY_ADDRESS": self.address}

    def train(self, arguments: list[str], name: str) -> Process:
        """Start a training job on the head; jobs of the same name share a log."""
        command = [PYTHON, str(ROOT / "jobs/train.py"), *arguments]
        self._jobs.append(self.head.start(command, self.driver_environment, self.folder / f"{name}.log"))
        return self._jobs[-1]

    def workers(self, name: str) -> list[int]:
        """Return the process ids, on this machine, of the training workers on a node."""
        return self.nodes[name].find(WORKER)

    def cut(self, name: str) -> None:
        """Drop all packets from and to a node."""
        self._faulty_nodes.add(name)
        self.net.cut(name)

    def heal(self, name: str) -> None:
        """Connect the node again; the cluster may have removed the node meanwhile."""
        self.net.heal(name)

    def lose(self, name: str) -> None:
        """Kill a node for good, without a message to the cluster, as a power cut does."""
        self.cut(name)
        self.nodes.pop(name).kill()

    def end_ray(self, name: str) -> None:
        """End Ray on a node by SIGTERM to `ray start --block`, as the shutdown of a machine does."""
        self._faulty_nodes.add(name)
        self.rays[name].send(signal.SIGTERM)

    def announce_loss(self, name: str, notice_s: int) -> None:
        """Drain a node that ends after so many seconds, as a cloud does before it takes a spot machine back."""
        self._faulty_nodes.add(name)
        is_node = f"node['Alive'] and node['NodeManagerAddress'] == {self.nodes[name].address!r}"
        node_id = self._run_script(f"print(*(node['NodeID'] for node in ray.nodes() if {is_node}))")
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the machine is taken back"]
        self.run_on_head([RAY, "drain-node", "--node-id", node_id, *reason, "--deadline-remaining-seconds", str(notice_s)])

    def repair(self) -> None:
        """End all jobs and faults, and replace the nodes that had a fault."""
        for job in self._jobs:
            job.stop()
        self._jobs.clear()
        self.s3.set_faults(**asdict(Faults()))
        if not self._faulty_nodes:
            return
        for name in self._faulty_nodes:
            if name in self.nodes:
                self.nodes.pop(name).kill()
            self.start_node(name)
        self._faulty_nodes.clear()
        self.wait_for_nodes()


@contextmanager
def start_lab(upstream: str, folder: Path, nodes: tuple[str, ...] = ("node1", "node2")) -> Iterator[Lab]:
    """Start a head and nodes; `upstream` is the HOST:PORT of the real S3 server on this machine."""
    with ExitStack() as stack:
        net = stack.enter_context(network())
        s3 = stack.enter_context(FaultyS3(upstream, listen=f"{net.address}:0"))
        lab = Lab(net, s3, folder)
        for name in nodes:
            lab.start_node(name)
        lab.wait_for_nodes()
        yield lab


def wait_until(condition: Callable[[], bool], description: str, timeout_s: float) -> None:
    """Wait until a condition holds; fail with its description after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain: {description}"
        time.sleep(0.1)
