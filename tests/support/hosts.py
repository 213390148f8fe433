"""Simulate several hosts on one machine, each with its own address, processes, host name, shared memory and Ray folder.

A host is a set of Linux namespaces that a sleeping process keeps open. The host ends with that process, which ends with the process
that started it. A bridge in a namespace of its own connects the hosts and this machine. Hosts thus reach an S3 server on this machine,
and nothing beyond this machine. A cut detaches a host from the bridge: packets are dropped silently. Kernel, disk and clock are shared.
"""

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
SHM_MB = 256
READY_TIMEOUT_S = 20
MACHINE_BYTE = 254
"""Last byte of this machine's address."""
PR_SET_PDEATHSIG = 1


def missing() -> str:
    """Return the requirement that this machine does not meet; empty if hosts can be made."""
    programs = [program for program in ("ip", "unshare", "nsenter", "mount") if shutil.which(program) is None]
    if programs:
        return f"needs the programs {', '.join(programs)}"
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    probe = subprocess.run(
        ["unshare", "-n", "-m", "-p", "-u", "--fork", "ip", "link", "add", "probe0", "type", "veth"], capture_output=True
    )
    return "" if probe.returncode == 0 else f"needs the right to make namespaces: {probe.stderr.decode().strip()}"


def _die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Host:
    """Host on the network, at `address`."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address, self.folder = name, address, folder
        flags = ["-n", "-m", "-u", "-p", "--fork", "--kill-child", "--mount-proc"]
        # The init process of a host ignores SIGCHLD, so that the kernel reaps orphans.
        sleep = ["env", "--ignore-signal=CHLD", "sleep", "infinity"]
        self.holder = subprocess.Popen(["unshare", *flags, *sleep], preexec_fn=_die_with_parent, start_new_session=True)
        self.init_pid = _wait_for_child(self.holder)
        folder.mkdir(exist_ok=True)
        self._processes: list[Process] = []
        self.check("sh", "-c", self._setup_commands())

    def _setup_commands(self) -> str:
        """Return the commands that mount the host's folders and set its name; gloo listens at the address of that name."""
        hosts_file = f"{self.folder}/hosts"
        lines = [
            f"mount -t tmpfs -o size={SHM_MB}m shm /dev/shm",
            f"mount -t tmpfs own {self.folder}",
            f"printf '127.0.0.1 localhost\\n{self.address} {self.name}\\n' > {hosts_file}",
            f"mount --bind {hosts_file} /etc/hosts",
            f"hostname {self.name}",
            "ip link set lo up",
        ]
        return " && ".join(lines)

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs a command on this host."""
        return ["nsenter", "-t", str(self.init_pid), "-n", "-m", "-u", "-p", "--", *command]

    def check(self, *command: str) -> str:
        """Run a short command on this host and return its output."""
        process = subprocess.run(self.inside(*command), capture_output=True, text=True, timeout=60)
        assert process.returncode == 0, f"{self.name}: {' '.join(command)}: {process.stdout}{process.stderr}"
        return process.stdout

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> "Process":
        """Start a program on this host; `log` is a file of this machine."""
        self._processes.append(Process(self, command, environment, log))
        return self._processes[-1]

    def outside_path(self, path: str | Path) -> Path:
        """Return the path by which this machine reaches a file of the host."""
        return Path(f"/proc/{self.init_pid}/root{path}")

    def find(self, words: str) -> list[int]:
        """Return the process ids, on this machine, of the host's processes whose command line contains the words."""
        namespace = Path(f"/proc/{self.init_pid}/ns/pid").readlink()
        return [pid for entry in Path("/proc").glob("[0-9]*") if _matches(pid := int(entry.name), namespace, words)]

    def kill(self) -> None:
        """Kill the host: the kernel ends all processes of the host, and removes its interface with the last one."""
        self.holder.kill()
        self.holder.wait()
        deadline = time.monotonic() + READY_TIMEOUT_S
        while Path(f"/proc/{self.init_pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in self._processes:
            process.wait(READY_TIMEOUT_S)


class Process:
    """Program on a host; `pid` is its process id on this machine."""

    def __init__(self, host: Host, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            options = {"env": dict(environment), "stdout": out, "stderr": subprocess.STDOUT, "preexec_fn": _die_with_parent}
            self.nsenter = subprocess.Popen(host.inside(*command), stdin=subprocess.DEVNULL, start_new_session=True, **options)
        self.pid = _wait_for_child(self.nsenter)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program, if it still runs."""
        if self.nsenter.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int:
        """Return the exit status, which is negative for a killed program."""
        return self.nsenter.wait(timeout_s)

    @property
    def ended(self) -> bool:
        return self.nsenter.poll() is not None

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        self.send(signal.SIGKILL)
        self.nsenter.wait(READY_TIMEOUT_S)


class Network:
    """Bridge that connects the hosts and this machine."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        # The folder holds Ray's sockets, and the path of a socket may have 107 characters at most.
        self.folder = Path(tempfile.mkdtemp(prefix="yh", dir="/tmp"))
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._subnet, self._last_byte = _free_subnet(), 0
        self._switch = Host("switch", "", self.folder / "switch")
        stack.callback(self._switch.kill)
        self._switch.check("ip", "link", "add", "bridge", "type", "bridge")
        self._switch.check("ip", "link", "set", "bridge", "up")
        self.address = f"{self._subnet}.{MACHINE_BYTE}"
        """Address of this machine in the hosts' network."""
        self._connect("machine", self.folder.name, self.address, None)

    def host(self, name: str) -> Host:
        """Add a host; the name may have 15 characters, and an earlier host of that name must have been killed."""
        self._last_byte += 1
        # All hosts share one path, where each host mounts its own file system.
        host = Host(name, f"{self._subnet}.{self._last_byte}", self.folder / "own")
        self._stack.callback(host.kill)
        self._connect(name, "eth0", host.address, host)
        return host

    def cut(self, name: str) -> None:
        """Detach a host from the bridge, or `machine` and with it S3: packets are dropped without an answer."""
        self._switch.check("ip", "link", "set", name, "nomaster")

    def heal(self, name: str) -> None:
        """Attach a host, or `machine`, to the bridge again."""
        self._switch.check("ip", "link", "set", name, "master", "bridge")

    def _connect(self, name: str, inner: str, address: str, host: Host | None) -> None:
        """Add a virtual cable from the bridge, with the interface `name`, to a host or to this machine."""
        target_pid = str(host.init_pid if host else os.getpid())
        # The kernel removes a dead host, and the cable of the same name, only after a while.
        self._run_in_switch_network("sh", "-c", f"! ip link show {name} || ip link delete {name}")
        self._run_in_switch_network("ip", "link", "add", name, "type", "veth", "peer", "name", inner, "netns", target_pid)
        self._switch.check("ip", "link", "set", name, "master", "bridge", "up")
        for command in (["addr", "add", f"{address}/24", "dev", inner], ["link", "set", inner, "up"]):
            subprocess.run(host.inside("ip", *command) if host else ["ip", *command], check=True, capture_output=True)

    def _run_in_switch_network(self, *command: str) -> None:
        """Run a command in the switch's network namespace but in this machine's process namespace, whose ids the command names."""
        subprocess.run(["nsenter", "-t", str(self._switch.init_pid), "-n", *command], check=True, capture_output=True)


@contextmanager
def network() -> Iterator[Network]:
    """Yield an empty network; on exit, its hosts and their processes end."""
    with ExitStack() as stack:
        yield Network(stack)


def wait_for_port(address: str, port: int, timeout_s: float) -> None:
    """Wait until a server listens at the port."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return socket.create_connection((address, port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens at {address}:{port}"
            time.sleep(0.1)


def _free_subnet() -> str:
    """Return the first three bytes of a subnet that this machine does not use."""
    addresses = subprocess.run(["ip", "-4", "addr"], check=True, capture_output=True, text=True).stdout
    return random.SystemRandom().choice([subnet for n in range(1, 250) if (subnet := f"10.77.{n}") not in addresses])


def _wait_for_child(parent: subprocess.Popen) -> int:
    """Return the process id of the only child of `unshare` or `nsenter`, once the child runs its own program."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        # Between fork and exec, the child still has the command line of its parent.
        if children and _command(int(children[0])) not in ("", _command(parent.pid)):
            return int(children[0])
        assert parent.poll() is None, f"{parent.args} ended with {parent.returncode}"
        time.sleep(0.01)
    raise TimeoutError(f"{parent.args} started nothing")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _matches(pid: int, namespace: Path, words: str) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink() == namespace and words in _command(pid)
    except OSError:
        return False
