"""The files under clusters/kuberay/, checked by the schemas of KubeRay and Serve and by the job's flags; no cluster is started."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from yolor_ray import cli

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "clusters"
KUBERAY = {"raycluster": "rayclusters", "rayjob": "rayjobs", "rayservice": "rayservices"}
RAY_VERSION = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
# Pods do not need these variables: KubeRay sets the token, /tmp is on disk, and all pods have the Python of one image.
MACHINE_VARIABLES = {"RAY_AUTH_MODE", "RAY_TMPDIR", "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"}
EXPORTS = re.findall(r"^export (RAY_\w+)=(.*)$", (CLUSTERS / "node.env").read_text(), re.MULTILINE)


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / "kuberay" / f"{name}.yaml").read_text())


def cluster_of(name: str) -> dict[str, Any]:
    """Return the cluster of a KubeRay file."""
    spec = read(name)["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict[str, Any]]:
    """Return KubeRay's schemas, which refuse unknown keys."""
    # The fixture `shared` would skip with another reason, that datasets are absent.
    folder = ROOT.parent / "shared" / "reference" / "kuberay-crds"
    if not folder.is_dir():
        pytest.skip(f"needs KubeRay's CRDs in {folder}, which are no part of this repository")
    schemas = {}
    for name, plural in KUBERAY.items():
        definition = yaml.load((folder / f"{plural}.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
        schemas[name] = refuse_unknown_keys(version["schema"]["openAPIV3Schema"])
    return schemas


def refuse_unknown_keys(schema: Any) -> Any:
    """Return a schema that refuses unknown keys, and accepts text where Kubernetes accepts numbers or text."""
    if isinstance(schema, list):
        return [refuse_unknown_keys(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {key: refuse_unknown_keys(value) for key, value in schema.items()}
    if isinstance(strict.get("properties"), dict) and not strict.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


def add_defaults(value: Any, schema: dict[str, Any]) -> Any:
    """Return a value with the schema's defaults for missing keys, as Kubernetes adds them before its check."""
    if isinstance(value, list):
        return [add_defaults(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    defaults = {key: subschema["default"] for key, subschema in properties.items() if "default" in subschema}
    return {key: add_defaults(item, properties.get(key, {})) for key, item in (defaults | value).items()}


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberays_schema_accepts_the_file(schemas, name):
    # Kubernetes has another schema for the metadata.
    file = read(name) | {"metadata": {}}
    assert faults(add_defaults(file, schemas[name]), schemas[name]) == []


def test_kuberays_schema_finds_a_typo_at_depth_and_a_wrong_type(schemas):
    file = read("raycluster") | {"metadata": {}}
    template = file["spec"]["workerGroupSpecs"][1]["template"]["spec"]
    template["containers"][0]["imagePolicy"] = "Always"
    template["terminationGracePeriodSeconds"] = "120"
    assert sorted(faults(file, schemas["raycluster"])) == [
        "spec.workerGroupSpecs.1.template.spec.containers.0: Additional properties are not allowed ('imagePolicy' was unexpected)",
        "spec.workerGroupSpecs.1.template.spec.terminationGracePeriodSeconds: '120' is not of type 'integer'",
    ]


def faults(file: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    # jsonschema.validate would first check the schema, which has a megabyte.
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in Draft7Validator(schema).iter_errors(file)]


@pytest.mark.parametrize("name", KUBERAY)
def test_the_kind_of_a_file_is_its_name(name):
    file = read(name)
    assert (file["apiVersion"], file["kind"].lower()) == ("ray.io/v1", name)


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_are_drained_in_time_and_have_a_role_instead_of_keys(name):
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert (cluster["enableInTreeAutoscaling"], cluster["autoscalerOptions"]["version"]) == (True, "v2")
    assert cluster["rayVersion"] == RAY_VERSION
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for pod in pods(cluster):
        (container,) = pod["containers"]
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        assert 0 < int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) < pod["terminationGracePeriodSeconds"]
        for variable, value in EXPORTS:
            assert variable in MACHINE_VARIABLES or environment.get(variable) == value, variable
        assert pod["serviceAccountName"] == read("account")["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["image"].endswith(f":{RAY_VERSION}")
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]


def test_the_training_job_accepts_its_command_and_can_resume():
    spec = read("rayjob")["spec"]
    python, script, *flags = shlex.split(spec["entrypoint"])
    assert (python, script.removeprefix("/home/ray/yolor_ray/")) == ("python", "jobs/train.py")
    cluster = cli.read_training(flags, "jobs/train.py").cluster
    min_workers, max_workers = cluster.worker_range
    gpus = sum(group["maxReplicas"] for group in cluster_of("rayjob")["workerGroupSpecs"] if group["groupName"].startswith("gpu-"))
    assert cluster.gpu
    assert 1 <= min_workers < max_workers <= gpus
    assert spec["backoffLimit"] > 0
    assert "--run.name" in flags, "a restarted job needs the name of its run"


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
def test_the_service_has_the_same_config_on_kubernetes_as_elsewhere():
    from ray.serve.schema import ServeDeploySchema

    serve_config = yaml.safe_load(read("rayservice")["spec"]["serveConfigV2"])
    assert serve_config == yaml.safe_load((CLUSTERS / "serve.yaml").read_text())
    ServeDeploySchema.model_validate(serve_config)
