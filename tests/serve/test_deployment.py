"""What Ray Serve and HAProxy are told, without starting either."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from ray.serve.schema import ServeDeploySchema

from yolor_ray import config
from yolor_ray.errors import ConfigError
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights
from yolor_ray.serve import haproxy, run
from yolor_ray.serve.deployment import application, build

CLUSTER_FILE = Path(__file__).parents[2] / "clusters" / "serve.yaml"


def deployment(app):
    return app._bound_deployment


def test_the_cluster_file_is_valid_and_builds_the_same_application_as_the_flags():
    schema = ServeDeploySchema.model_validate(yaml.safe_load(CLUSTER_FILE.read_text()))
    [app] = schema.applications
    assert app.import_path == "yolor_ray.serve.deployment:build"
    built = deployment(build(app.args))
    assert built.init_args == (config.ServeConfig(**app.args),)
    assert built._deployment_config == deployment(application(config.ServeConfig(**app.args)))._deployment_config


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"weights": "w", "max_bach": 8}, "found max_bach, expected only batch_wait_ms"),
        ({"weights": "w", "port": 8000}, "found port"),
        ({}, "weights: found"),
        ({"weights": "w", "max_batch": "many"}, "max_batch: found 'many'"),
        ({"weights": "w", "iou": 0}, "iou: found 0.0, expected over 0, up to 1"),
        ({"weights": "w", "min_replicas": 3}, "min_replicas: found 3, expected 1 to max_replicas, 1"),
    ],
)
def test_wrong_args_are_refused_by_name(args, words):
    with pytest.raises(ConfigError) as caught:
        build(args)
    assert words in str(caught.value)


def test_replicas_scale_between_the_given_numbers_and_surge_on_redeploy():
    settings = config.ServeConfig("w", min_replicas=2, max_replicas=5, target_ongoing_requests=3.0, gpus_per_replica=0.5, compute_threads=2)
    built = deployment(application(settings))
    scaling = built._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3.0)
    assert built._deployment_config.max_surge_percent == 100
    assert built.ray_actor_options["num_gpus"] == 0.5
    assert built.ray_actor_options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"


def test_one_fixed_number_of_replicas_needs_no_autoscaling():
    built = deployment(application(config.ServeConfig("w", min_replicas=3, max_replicas=3)))
    assert built._deployment_config.autoscaling_config is None
    assert built.num_replicas == 3


def test_rays_own_limit_lies_above_the_queue_so_that_probes_get_through():
    built = deployment(application(config.ServeConfig("w", max_queued=10, max_batch=4)))
    assert built.max_ongoing_requests > 14


def test_haproxy_statistics_move_to_loopback_and_the_service_stays():
    lines = ["frontend prometheus", "    bind :9101", "frontend http_frontend", "    bind 0.0.0.0:8000", "listen stats", "  bind *:8404"]
    found = haproxy.confine("\n".join(lines)).split("\n")
    assert found[1::2] == ["    bind 127.0.0.1:9101", "    bind 0.0.0.0:8000", "  bind 127.0.0.1:8404"]
    assert found[::2] == lines[::2]


def test_rays_haproxy_template_still_binds_as_we_expect():
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

    assert "bind :{{ config.metrics_port }}" in HAPROXY_CONFIG_TEMPLATE
    assert "bind *:{{ config.stats_port }}" in HAPROXY_CONFIG_TEMPLATE


def test_a_request_that_no_replica_can_take_is_refused_in_json():
    head, body = haproxy.error_answer().split("\r\n\r\n")
    assert head.startswith("HTTP/1.1 503 ") and f"Content-Length: {len(body)}" in head
    assert '"code": "not_ready"' in body


def test_an_engine_that_kept_the_replicas_from_starting_is_named(tmp_path, monkeypatch):
    anchors = torch.tensor([[[12.0, 12]] * 3, [[40.0, 40]] * 3])
    network = Yolor(
        config.NetworkConfig(stem="reorg", stem_width=8, widths=(8, 8, 8), depths=(1, 1, 1), neck_depth=1, levels=2), 1, anchors
    )
    save_weights(str(tmp_path), network.eval(), WeightsInfo("tiny", ("thing",), 64))
    run._explain(config.ServeConfig(str(tmp_path)))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match="engine: found openvino, which does not run this network"):
        run._explain(config.ServeConfig(str(tmp_path), engine="openvino"))
