"""Access to a cluster and the environment of its workers, with real Ray clusters and real heads."""

import importlib
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import ray
from ray._private import services

from yolor_ray import config
from yolor_ray.cluster import access, connect
from yolor_ray.errors import ConfigError
from yolor_ray.io import manifest
from yolor_ray.serve import local, run

TOKEN = secrets.token_hex(32)
# Ray Serve 2.60 uses a spelling that Pydantic 2 deprecates, once, while it is imported.
IGNORE_PYDANTIC = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")


def test_workers_have_their_environment_and_ray_records_no_secrets(ray_cluster):
    environment = ray.get(ray.remote(lambda: dict(os.environ)).remote())
    assert {name: environment[name] for name in connect.WORKER_ENVIRONMENT} == connect.WORKER_ENVIRONMENT
    assert environment["RAY_ADDRESS"] == ray.get_runtime_context().gcs_address, "Ray Train would search this machine for its cluster"
    nodes = ray.get(ray.remote(lambda: [node.node_id for node in importlib.import_module("ray.util.state").list_nodes()]).remote())
    assert nodes == [ray.get_runtime_context().get_node_id()], "Ray Train asks the cluster of its worker for the state of actors"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        assert environment[name] == os.environ[name]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in json.dumps(ray.get_runtime_context().runtime_env)


def test_a_ray_of_this_machine_alone_sends_no_statistics_of_usage(ray_cluster):
    assert not ray.get(ray.remote(lambda: importlib.import_module("ray._common.usage.usage_lib").usage_stats_enabled()).remote())


def test_starting_ray_twice_joins_the_running_one(ray_cluster):
    before = ray.get_runtime_context().get_job_id()
    connect.start_ray()
    assert ray.get_runtime_context().get_job_id() == before


def test_variables_of_a_submitted_job_take_precedence(monkeypatch):
    job = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "3"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert connect._environment().keys() == connect.WORKER_ENVIRONMENT.keys() - {"OMP_NUM_THREADS"}


@pytest.mark.parametrize(
    "prepare",
    [connect.start_ray, lambda: os.environ.update(local.ray_environment(Path("/tmp"), config.ServeConfig("w")))],
    ids=["job", "serve"],
)
def test_ray_starts_with_dockers_64_mb_of_shared_memory_on_a_large_machine(prepare, monkeypatch):
    monkeypatch.setattr(os, "environ", {"RAY_SERVE_ENABLE_HA_PROXY": "0"})
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect.ray, "init", lambda **options: None)
    monkeypatch.setattr("ray._private.utils.get_shared_memory_bytes", lambda: 64 * 2**20)
    monkeypatch.setattr("ray._common.utils.get_system_memory", lambda: 64 * 10**9)
    with pytest.raises(ValueError, match="shm-size"):
        services.determine_plasma_store_config(19 * 10**9, "/tmp")
    prepare()
    assert services.determine_plasma_store_config(19 * 10**9, "/tmp")[0] == "/tmp"


def test_ray_starts_where_tmpdir_names_no_folder():
    """In a process of its own, because Python finds the temporary folder once."""
    program = "from yolor_ray.cluster.connect import start_ray; import ray, tempfile; ray.init = lambda **options: None; start_ray(); "
    program += (
        "from ray._common.utils import get_default_system_temp_dir as folder; assert folder() == tempfile.gettempdir() != '/proc/none'"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"TMPDIR": "/proc/none"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=180)


def test_an_address_without_a_cluster_is_a_user_error(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
        with pytest.raises(ConfigError, match=f"RAY_ADDRESS: found '{address}', expected a running cluster"):
            connect.start_ray()


@pytest.fixture
def start_head(tmp_path, monkeypatch) -> Iterator[Callable[[str], str]]:
    """Return a function that starts the GCS server of a head, alone, and returns its address, which becomes RAY_ADDRESS."""
    servers = []

    def start(auth_mode: str) -> str:
        # Not ray.util.get_node_ip_address: in a process with a local Ray that is 127.0.0.1, which other processes replace.
        host = services.node_ip_address_from_perspective()
        with socket.socket() as unused:
            unused.bind((host, 0))
            address = f"{host}:{unused.getsockname()[1]}"
        program = Path(ray.__file__).parent / "core/src/ray/gcs/gcs_server"
        options = {"gcs_server_port": address.rpartition(":")[2], "node-ip-address": host, "session-dir": tmp_path, "log_dir": tmp_path}
        command = [str(program), "--config_list=e30=", "--session-name=test", *(f"--{key}={value}" for key, value in options.items())]
        log = (tmp_path / "log").open("wb")
        environment = os.environ | {"RAY_AUTH_MODE": auth_mode, "RAY_AUTH_TOKEN": TOKEN}
        servers.append((subprocess.Popen(command, env=environment, stdout=log, stderr=log), log))
        deadline = time.monotonic() + 30
        while access._check_alive(grpc.insecure_channel(address))[0] is grpc.StatusCode.UNAVAILABLE:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.02)
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
        return address

    yield start
    for process, log in servers:
        process.terminate()
        process.wait()
        log.close()


def test_an_unauthenticated_cluster_is_refused_even_by_a_process_with_a_token(start_head, monkeypatch):
    address = start_head("disabled")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    message = (
        f"RAY_ADDRESS: found a cluster without authentication at '{address}', expected token authentication"
        ".*--cluster.allow_unauthenticated"
    )
    with pytest.raises(ConfigError, match=message):
        connect.start_ray()


def test_an_unauthenticated_cluster_is_joined_with_a_warning_if_allowed(start_head, monkeypatch, caplog):
    address = start_head("disabled")
    calls = []
    monkeypatch.setattr(connect.ray, "init", lambda **options: calls.append(options))
    with caplog.at_level(logging.WARNING):
        connect.start_ray(allow_unauthenticated=True)
    assert len(calls) == 1
    assert f"event=unauthenticated_cluster address={address}" in caplog.text


def test_a_cluster_with_another_token_is_a_user_error(start_head):
    address = start_head("token")
    with pytest.raises(
        ConfigError, match=f"found a cluster at '{address}' that refuses this process .RAY_AUTH_MODE is .*RAY_AUTH_TOKEN_PATH"
    ):
        connect.start_ray()


def check_access_in_a_process(home: Path, allow_unauthenticated: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    """Check access to RAY_ADDRESS in a new process with these RAY_AUTH_* variables, which Ray reads when it is imported."""
    program = (
        f"import os; from yolor_ray.cluster.access import check_access; check_access(os.environ['RAY_ADDRESS'], {allow_unauthenticated})"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    environment = inherited | {"HOME": str(home), "RAY_AUTH_MODE": "token"} | variables
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=180)


def test_a_cluster_with_this_processes_token_is_joined(start_head, tmp_path):
    start_head("token")
    process = check_access_in_a_process(tmp_path, RAY_AUTH_TOKEN=TOKEN)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(("auth_mode", "allow_unauthenticated"), [("token", False), ("disabled", True)])
def test_a_missing_token_in_token_mode_is_a_user_error(start_head, tmp_path, auth_mode, allow_unauthenticated):
    address = start_head(auth_mode)
    message = check_access_in_a_process(tmp_path, allow_unauthenticated).stderr.splitlines()[-1]
    assert message.startswith(f"yolor_ray.errors.ConfigError: RAY_ADDRESS: found no token for the cluster at '{address}' (Token authent")
    assert "expected RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token" in message
    no_file = str(tmp_path / "none")
    process = check_access_in_a_process(tmp_path, allow_unauthenticated, RAY_AUTH_TOKEN_PATH=no_file)
    assert f"or is empty: {no_file}), expected" in process.stderr


class Joined(Exception):
    """A call that starts or joins Ray."""


@pytest.fixture
def service(tmp_path) -> config.ServeConfig:
    """Return the settings of a service whose weights exist; nothing loads the weights before Ray runs."""
    manifest.publish(str(tmp_path / "weights"), {"config.json": b"{}"})
    return config.ServeConfig(weights=str(tmp_path / "weights"))


@IGNORE_PYDANTIC
def test_the_service_joins_an_unauthenticated_cluster_with_a_warning(start_head, monkeypatch, caplog, service):
    address = start_head("disabled")

    def join(**_):
        assert f"event=unauthenticated_cluster address={address}" in caplog.text, "access was checked too late"
        raise Joined

    monkeypatch.setattr(ray, "init", join)
    with caplog.at_level(logging.WARNING), pytest.raises(Joined):
        run.serve(service)


@IGNORE_PYDANTIC
def test_a_cluster_that_refuses_the_service_is_a_user_error(start_head, service):
    address = start_head("token")
    with pytest.raises(ConfigError, match=f"found a cluster at '{address}' that refuses this process"):
        run.serve(service)


@pytest.mark.parametrize("address", ["", "local"])
def test_a_service_without_a_cluster_starts_ray_locally(monkeypatch, service, address):
    def serve_locally(*_):
        raise Joined

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(run, "_serve_locally", serve_locally)
    with pytest.raises(Joined):
        run.serve(service)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "somewhere"])
def test_an_address_of_another_kind_is_a_user_error(address):
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS: found '{address}', expected HOST:PORT"):
        access.check_access(address)


def test_a_cluster_behind_ray_client_is_refused_because_its_authentication_is_unknown():
    with pytest.raises(ConfigError, match="found Ray Client, which cannot tell"):
        access.check_access("ray://127.0.0.1:10001")
