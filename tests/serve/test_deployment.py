"""Settings for Ray Serve and HAProxy, checked without starting either of them."""

import importlib
import inspect
import resource
import sys
from pathlib import Path

import pytest
import torch
import yaml
from ray.serve.schema import ServeDeploySchema

from yolor_ray import config
from yolor_ray.config.serve import SERVED_RANGES
from yolor_ray.errors import ConfigError
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights
from yolor_ray.serve import haproxy, local, run
from yolor_ray.serve.deployment import build, make_application

CLUSTER_FILE = Path(__file__).parents[2] / "clusters" / "serve.yaml"


def deployment(application):
    return application._bound_deployment


def test_the_cluster_file_builds_the_same_application_as_the_flags():
    schema = ServeDeploySchema.model_validate(yaml.safe_load(CLUSTER_FILE.read_text()))
    [application] = schema.applications
    assert application.import_path == "yolor_ray.serve.deployment:build"
    built = deployment(build(application.args))
    assert built.init_args == (config.ServeConfig(**application.args),)
    assert built._deployment_config == deployment(make_application(config.ServeConfig(**application.args)))._deployment_config


@pytest.mark.parametrize(("api_keys", "is_told"), [("", True), ("s3://models/keys.yaml", False)])
def test_a_service_of_a_cluster_file_without_keys_is_told(caplog, api_keys, is_told):
    build({"weights": "w", "api_keys": api_keys})
    assert is_told == ("event=service_is_open host=http_options missing='api_keys'" in caplog.text)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"weights": "w", "max_bach": 8}, "found max_bach, expected only access_log"),
        ({"weights": "w", "port": 8000}, "found port"),
        ({}, "weights: found"),
        ({"weights": "w", "max_batch": "many"}, "max_batch: found 'many'"),
        ({"weights": "w", "iou": 0}, "iou: found 0.0, expected over 0, up to 1"),
        ({"weights": "w", "min_replicas": 3}, "min_replicas: found 3, expected 1 to max_replicas, 1"),
    ],
)
def test_wrong_args_are_refused_by_name(args, message):
    with pytest.raises(ConfigError) as caught:
        build(args)
    assert message in str(caught.value)


def test_replicas_scale_between_min_and_max_and_surge_on_redeploy():
    settings = config.ServeConfig("w", min_replicas=2, max_replicas=5, target_ongoing_requests=3.0, gpus_per_replica=0.5, compute_threads=2)
    built = deployment(make_application(settings))
    scaling = built._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3.0)
    assert built._deployment_config.max_surge_percent == 100
    assert built.ray_actor_options["num_gpus"] == 0.5
    assert built.ray_actor_options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"


def test_a_fixed_number_of_replicas_needs_no_autoscaling():
    built = deployment(make_application(config.ServeConfig("w", min_replicas=3, max_replicas=3)))
    assert built._deployment_config.autoscaling_config is None
    assert built.num_replicas == 3


def test_rays_limit_is_above_the_queue_so_that_probes_reach_a_full_replica():
    built = deployment(make_application(config.ServeConfig("w", max_queued=10, max_batch=4)))
    assert built.max_ongoing_requests > 14


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "::", "::1", "node.example"])
@pytest.mark.parametrize("rays", ["127.0.0.1", "*"])
def test_haproxy_statistics_listen_on_loopback_and_the_service_on_its_host(rays, host, tmp_path):
    lines = ["frontend prometheus", "    bind :9101", "frontend http_frontend", f"    bind {rays}:8000", "listen stats", "  bind *:8404"]
    text = haproxy.bind_statistics_to_loopback("\n".join(lines))
    changed = haproxy.listen_on(text, host, tmp_path / "none.pem").split("\n")
    assert changed[1::2] == ["    bind 127.0.0.1:9101", f"    bind {host}:8000", "  bind 127.0.0.1:8404"]
    assert changed[::2] == lines[::2]


def test_the_starter_of_haproxy_knows_host_places_and_origins_and_keeps_the_users_program(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", sys.executable)
    settings = config.ServeConfig("w", host="0.0.0.0", max_queued=10, max_batch=4, cors_origins=("https://a.example", "http://b.example"))
    environment = local.ray_environment(tmp_path, settings)
    starter = Path(environment["RAY_SERVE_HAPROXY_BINARY_PATH"])
    assert starter.is_relative_to(tmp_path) and starter.read_text().endswith(
        f""" {sys.executable} 0.0.0.0 14 'https://a.example http://b.example' "$@"\n"""
    )
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert "RAY_SERVE_HAPROXY_BINARY_PATH" not in local.ray_environment(tmp_path, settings)


def test_rays_haproxy_template_binds_its_statistics_as_expected():
    from yolor_ray.cluster.ray_internals import HAPROXY_CONFIG_TEMPLATE

    assert "bind :{{ config.metrics_port }}" in HAPROXY_CONFIG_TEMPLATE
    assert "bind *:{{ config.stats_port }}" in HAPROXY_CONFIG_TEMPLATE


def test_a_request_without_a_ready_replica_gets_a_json_error():
    head, body = haproxy.no_replica_response().split("\r\n\r\n")
    assert head.startswith("HTTP/1.1 503 ") and f"Content-Length: {len(body)}" in head
    assert '"code": "not_ready"' in body


def test_too_few_open_files_for_haproxy_are_the_users_mistake(monkeypatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    for limit in (resource.RLIM_INFINITY, 2**20, local.MIN_OPEN_FILES):
        monkeypatch.setattr(local.resource, "getrlimit", lambda _, limit=limit: (256, limit))
        local.check_open_files()
    monkeypatch.setattr(local.resource, "getrlimit", lambda _: (256, 256))
    with pytest.raises(ConfigError, match=r"ulimit -n: found 256 open files, expected 16384 or more .*or RAY_SERVE_ENABLE_HA_PROXY=0"):
        local.check_open_files()
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    local.check_open_files()


def test_an_engine_that_prevents_the_start_of_replicas_is_named(tmp_path, monkeypatch):
    anchors = torch.tensor([[[12.0, 12]] * 3, [[40.0, 40]] * 3])
    network = Yolor(
        config.NetworkConfig(stem="reorg", stem_width=8, widths=(8, 8, 8), depths=(1, 1, 1), neck_depth=1, levels=2), 1, anchors
    )
    save_weights(str(tmp_path), network.eval(), WeightsInfo("tiny", ("thing",), 64))
    run._raise_replica_error(config.ServeConfig(str(tmp_path)))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match="engine: found openvino, which does not run this network"):
        run._raise_replica_error(config.ServeConfig(str(tmp_path), engine="openvino"))


def test_serve_configs_of_earlier_versions_find_build_under_its_former_module():
    assert importlib.import_module("yolor_ray.serve.app").build is build


@pytest.mark.parametrize("name", sorted(SERVED_RANGES.keys() & config.ServeConfig.__dataclass_fields__.keys()))
def test_the_documented_range_of_a_limit_is_the_checked_one(name):
    source = inspect.getsource(config.ServeConfig)
    documented = source.partition(f"    {name}: ")[2].partition('"""')[2].partition('"""')[0]
    assert f"{SERVED_RANGES[name]};" in documented


def test_the_old_name_of_a_field_still_works_in_a_serve_config(caplog):
    build({"weights": "w", "threads": 2})
    assert "event=field_renamed old=threads new=compute_threads" in caplog.text
    with pytest.raises(ConfigError, match="compute_threads: found a value for its old name threads, too"):
        build({"weights": "w", "threads": 2, "compute_threads": 2})
