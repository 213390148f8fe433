"""Simulated hosts, without Ray on them."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import hosts
from hosts import Host, Network

pytestmark = pytest.mark.chaos


@pytest.fixture
def net() -> Iterator[Network]:
    if lacking := hosts.missing():
        pytest.skip(lacking)
    with hosts.network() as net:
        yield net


def reaches(host: Host, address: tuple[str, int]) -> bool:
    connect = host.inside("timeout", "1", "bash", "-c", f": < /dev/tcp/{address[0]}/{address[1]}")
    return subprocess.run(connect, capture_output=True).returncode == 0


def test_a_host_reaches_this_machine_except_while_it_is_cut_off(net: Network) -> None:
    near, far = net.host("near"), net.host("far")
    with socket.create_server((net.address, 0)) as server:
        net.cut("far")
        assert (reaches(near, server.getsockname()), reaches(far, server.getsockname())) == (True, False)
        net.heal("far")
        assert reaches(far, server.getsockname())


def test_a_host_has_its_own_name_processes_and_files(net: Network, tmp_path: Path) -> None:
    first, second = net.host("one"), net.host("two")
    first.check("touch", f"{first.folder}/here", "/dev/shm/here")
    process = first.start(["sleep", "1000"], {}, tmp_path / "log")
    assert first.check("getent", "hosts", "one").split() == [first.address, "one"]
    assert first.find("sleep 1000") == [process.pid]
    assert second.find("sleep 1000") == []
    listed = second.check("ls", str(second.folder), "/dev/shm").split()
    assert sorted(listed) == sorted([f"{second.folder}:", "hosts", "/dev/shm:"])
    first.kill()
    assert process.wait(20) != 0


def test_a_host_replaces_a_dead_host_that_the_kernel_has_not_removed_yet(net: Network) -> None:
    dead = net.host("node")
    # An open file of the network namespace keeps the namespace alive, and its end of the cable.
    with Path(f"/proc/{dead.init_pid}/ns/net").open():
        net.cut("node")
        dead.kill()
        with socket.create_server((net.address, 0)) as server:
            assert reaches(net.host("node"), server.getsockname())


def test_nothing_is_left_of_a_network() -> None:
    if lacking := hosts.missing():
        pytest.skip(lacking)
    with hosts.network() as net:
        init_pid = net.host("gone").init_pid
        assert net.address in addresses()
    assert not net.folder.exists()
    assert not Path(f"/proc/{init_pid}").exists()
    assert net.address not in addresses()


def addresses() -> str:
    return subprocess.run(["ip", "-4", "addr"], check=True, capture_output=True, text=True).stdout
