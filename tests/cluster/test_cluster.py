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

from yolor_ray.errors import ConfigError
from yolor_ray.runtime import cluster

TOKEN = secrets.token_hex(32)


def test_workers_have_their_environment_and_secrets_are_not_in_rays_records(ray_cluster):
    seen = ray.get(ray.remote(lambda: dict(os.environ)).remote())
    assert {name: seen[name] for name in cluster.WORKER_ENVIRONMENT} == cluster.WORKER_ENVIRONMENT
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        assert seen[name] == os.environ[name]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in json.dumps(ray.get_runtime_context().runtime_env)


def test_starting_ray_twice_joins_what_runs(ray_cluster):
    before = ray.get_runtime_context().get_job_id()
    cluster.start_ray()
    assert ray.get_runtime_context().get_job_id() == before


def test_variables_that_a_submitted_job_sets_are_left_to_it(monkeypatch):
    job = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "3"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert cluster._environment().keys() == cluster.WORKER_ENVIRONMENT.keys() - {"OMP_NUM_THREADS"}


def test_an_address_where_no_cluster_listens_is_the_users_mistake(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
        with pytest.raises(ConfigError, match=f"RAY_ADDRESS: found '{address}', expected a running cluster"):
            cluster.start_ray()


@pytest.fixture
def start_head(tmp_path, monkeypatch) -> Iterator[Callable[[str], str]]:
    """Start the part of a cluster's head that lets others in, alone; returns its address, which becomes RAY_ADDRESS."""
    started = []

    def start(auth_mode: str) -> str:
        host = ray.util.get_node_ip_address()
        with socket.socket() as unused:
            unused.bind((host, 0))
            address = f"{host}:{unused.getsockname()[1]}"
        program = Path(ray.__file__).parent / "core/src/ray/gcs/gcs_server"
        options = {"gcs_server_port": address.rpartition(":")[2], "node-ip-address": host, "session-dir": tmp_path, "log_dir": tmp_path}
        command = [str(program), "--config_list=e30=", "--session-name=test", *(f"--{key}={value}" for key, value in options.items())]
        log = (tmp_path / "log").open("wb")
        environment = os.environ | {"RAY_AUTH_MODE": auth_mode, "RAY_AUTH_TOKEN": TOKEN}
        started.append((subprocess.Popen(command, env=environment, stdout=log, stderr=log), log))
        deadline = time.monotonic() + 30
        while cluster._ask(grpc.insecure_channel(address))[0] is grpc.StatusCode.UNAVAILABLE:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.02)
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
        return address

    yield start
    for process, log in started:
        process.terminate()
        process.wait()
        log.close()


def test_an_open_cluster_is_refused_even_by_a_process_with_a_token(start_head, monkeypatch):
    address = start_head("disabled")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    message = f"RAY_ADDRESS: found a cluster that lets everyone in at '{address}', expected token authentication.*--cluster.allow_open"
    with pytest.raises(ConfigError, match=message):
        cluster.start_ray()


def test_an_open_cluster_is_joined_with_a_warning_where_that_is_allowed(start_head, monkeypatch, caplog):
    address = start_head("disabled")
    joined = []
    monkeypatch.setattr(cluster.ray, "init", lambda **options: joined.append(options))
    with caplog.at_level(logging.WARNING):
        cluster.start_ray(allow_open=True)
    assert len(joined) == 1
    assert f"event=open_cluster address={address}" in caplog.text


def test_a_cluster_with_another_token_is_the_users_mistake(start_head):
    address = start_head("token")
    with pytest.raises(
        ConfigError, match=f"found a cluster at '{address}' that refuses this process .RAY_AUTH_MODE is .*RAY_AUTH_TOKEN_PATH"
    ):
        cluster.start_ray()


def test_a_cluster_with_this_processes_token_is_joined(start_head):
    start_head("token")
    program = "from yolor_ray.runtime.cluster import check_access; import os; check_access(os.environ['RAY_ADDRESS'])"
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}, check=True)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "somewhere"])
def test_an_address_that_is_no_clusters_is_the_users_mistake(address):
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS: found '{address}', expected HOST:PORT"):
        cluster.check_access(address)


def test_a_cluster_behind_ray_client_cannot_be_told_to_ask_for_a_token():
    with pytest.raises(ConfigError, match="found Ray Client, which cannot tell"):
        cluster.check_access("ray://127.0.0.1:10001")
