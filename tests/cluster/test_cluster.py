import json
import os
import socket

import pytest
import ray

from yolor_ray.errors import ConfigError
from yolor_ray.runtime import cluster


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
