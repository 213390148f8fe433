"""Make several hosts of one machine: each with its own address, processes, host name, shared memory and Ray folder.

A host is a set of Linux namespaces that a sleeping process keeps open: the host is gone when that process dies, and it dies
with whoever made it. All are plugged into one bridge in a namespace of its own, and so is this machine, which is how hosts
reach an S3 server here; there is no way further out. A cut takes the plug out of the bridge, so that packets vanish and
nobody is told. Kernel, disk and clock are shared.
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
MACHINE = 254
"""Last byte of the machine's address."""
PR_SET_PDEATHSIG = 1


def missing() -> str:
    """Return what this machine lacks to make hosts, or nothing."""
    lacking = [tool for tool in ("ip", "unshare", "nsenter", "mount") if shutil.which(tool) is None]
    if lacking:
        return f"needs the programs {', '.join(lacking)}"
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    tried = subprocess.run(
        ["unshare", "-n", "-m", "-p", "-u", "--fork", "ip", "link", "add", "probe0", "type", "veth"], capture_output=True
    )
    return "" if tried.returncode == 0 else f"needs the right to make namespaces: {tried.stderr.decode().strip()}"


def _die_with_me() -> None:
    """Let the kernel kill this process when the one that started it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Host:
    """A host on the network; `address` is where the others find it."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address, self.folder = name, address, folder
        flags = ["-n", "-m", "-u", "-p", "--fork", "--kill-child", "--mount-proc"]
        # The first process of a host has nobody to wait for it: it ignores the end of orphans, and the kernel buries them.
        sleep = ["env", "--ignore-signal=CHLD", "sleep", "infinity"]
        self.holder = subprocess.Popen(["unshare", *flags, *sleep], preexec_fn=_die_with_me, start_new_session=True)
        self.first = _only_child(self.holder)
        folder.mkdir(exist_ok=True)
        self._started: list[Process] = []
        self.check("sh", "-c", self._furnish())

    def _furnish(self) -> str:
        """Return the commands that give it a place, shared memory and a name; gloo listens where that name leads."""
        named = f"{self.folder}/hosts"
        lines = [
            f"mount -t tmpfs -o size={SHM_MB}m shm /dev/shm",
            f"mount -t tmpfs own {self.folder}",
            f"printf '127.0.0.1 localhost\\n{self.address} {self.name}\\n' > {named}",
            f"mount --bind {named} /etc/hosts",
            f"hostname {self.name}",
            "ip link set lo up",
        ]
        return " && ".join(lines)

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs a command on this host."""
        return ["nsenter", "-t", str(self.first), "-n", "-m", "-u", "-p", "--", *command]

    def check(self, *command: str) -> str:
        """Run a short command here and return what it printed."""
        done = subprocess.run(self.inside(*command), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{self.name}: {' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> "Process":
        """Start a program here; it writes to `log`, which is outside."""
        self._started.append(Process(self, command, environment, log))
        return self._started[-1]

    def seen(self, path: str | Path) -> Path:
        """Return where this machine finds a file of the host."""
        return Path(f"/proc/{self.first}/root{path}")

    def find(self, words: str) -> list[int]:
        """Return the processes here whose command line has the words, as this machine numbers them."""
        space = Path(f"/proc/{self.first}/ns/pid").readlink()
        return [pid for entry in Path("/proc").glob("[0-9]*") if _is_of(pid := int(entry.name), space, words)]

    def kill(self) -> None:
        """Switch the host off: the kernel ends all its processes, and its interface is gone with the last."""
        self.holder.kill()
        self.holder.wait()
        deadline = time.monotonic() + READY_TIMEOUT_S
        while Path(f"/proc/{self.first}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in self._started:
            process.wait(READY_TIMEOUT_S)


class Process:
    """A program on a host; `pid` is its own, as this machine numbers it, not that of what carried it inside."""

    def __init__(self, host: Host, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            options = {"env": dict(environment), "stdout": out, "stderr": subprocess.STDOUT, "preexec_fn": _die_with_me}
            self.carrier = subprocess.Popen(host.inside(*command), stdin=subprocess.DEVNULL, start_new_session=True, **options)
        self.pid = _only_child(self.carrier)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program, if it still runs."""
        if self.carrier.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int:
        """Return the exit status; that of a killed program is negative."""
        return self.carrier.wait(timeout_s)

    @property
    def ended(self) -> bool:
        return self.carrier.poll() is not None

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        self.send(signal.SIGKILL)
        self.carrier.wait(READY_TIMEOUT_S)


class Network:
    """Hosts on one bridge, and this machine beside them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        # Ray keeps its sockets in here, and their paths may have 107 characters at most.
        self.folder = Path(tempfile.mkdtemp(prefix="yh", dir="/tmp"))
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._subnet, self._last = _free_subnet(), 0
        self._switch = Host("switch", "", self.folder / "switch")
        stack.callback(self._switch.kill)
        self._switch.check("ip", "link", "add", "bridge", "type", "bridge")
        self._switch.check("ip", "link", "set", "bridge", "up")
        self.address = f"{self._subnet}.{MACHINE}"
        """Of this machine, as the hosts see it."""
        self._plug("machine", self.folder.name, self.address, None)

    def host(self, name: str) -> Host:
        """Return a new host; the name may have 15 characters, and another host that had it must have been killed."""
        self._last += 1
        # One place for all: each sees what it mounted there itself.
        host = Host(name, f"{self._subnet}.{self._last}", self.folder / "own")
        self._stack.callback(host.kill)
        self._plug(name, "eth0", host.address, host)
        return host

    def cut(self, name: str) -> None:
        """Unplug a host, or the machine and with it S3: what is sent from now on is lost without an answer."""
        self._switch.check("ip", "link", "set", name, "nomaster")

    def heal(self, name: str) -> None:
        """Plug it in again."""
        self._switch.check("ip", "link", "set", name, "master", "bridge")

    def _plug(self, name: str, inner: str, address: str, host: Host | None) -> None:
        """Lay a cable from the bridge, where it is called `name`, to a host or to this machine."""
        there = str(host.first if host else os.getpid())
        # The kernel takes its time to clear away a dead host, and with it the cable of the same name.
        self._switch_link("sh", "-c", f"! ip link show {name} || ip link delete {name}")
        self._switch_link("ip", "link", "add", name, "type", "veth", "peer", "name", inner, "netns", there)
        self._switch.check("ip", "link", "set", name, "master", "bridge", "up")
        for command in (["addr", "add", f"{address}/24", "dev", inner], ["link", "set", inner, "up"]):
            subprocess.run(host.inside("ip", *command) if host else ["ip", *command], check=True, capture_output=True)

    def _switch_link(self, *command: str) -> None:
        """Run a command in the switch's network, but among this machine's processes, which it names by their numbers."""
        subprocess.run(["nsenter", "-t", str(self._switch.first), "-n", *command], check=True, capture_output=True)


@contextmanager
def network() -> Iterator[Network]:
    """Make an empty network; its hosts and all that runs on them are gone afterwards."""
    with ExitStack() as stack:
        yield Network(stack)


def wait_for_port(address: str, port: int, timeout_s: float) -> None:
    """Wait until something listens."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return socket.create_connection((address, port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens at {address}:{port}"
            time.sleep(0.1)


def _free_subnet() -> str:
    """Return the first three bytes of addresses that nothing here leads to."""
    taken = subprocess.run(["ip", "-4", "addr"], check=True, capture_output=True, text=True).stdout
    return random.SystemRandom().choice([found for n in range(1, 250) if (found := f"10.77.{n}") not in taken])


def _only_child(parent: subprocess.Popen) -> int:
    """Return the process that another one is there to start."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        # It has not become what it is to be as long as it bears its parent's name.
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


def _is_of(pid: int, space: Path, words: str) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink() == space and words in _command(pid)
    except OSError:
        return False
