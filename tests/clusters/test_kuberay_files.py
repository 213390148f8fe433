"""The files under clusters/kuberay/ against KubeRay's schemas, Serve's and the job's own flags; nothing is started."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from yolor_ray import cli, config
from yolor_ray.config.presets import DESCRIPTIONS, PRESETS

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "clusters"
KUBERAY = {"raycluster": "rayclusters", "rayjob": "rayjobs", "rayservice": "rayservices"}
RAY_VERSION = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
# In pods KubeRay brings the token, /tmp is on disk, and all have the Python of one image.
MACHINES_ALONE = {"RAY_AUTH_MODE", "RAY_TMPDIR", "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"}
EXPORTS = re.findall(r"^export (RAY_\w+)=(.*)$", (CLUSTERS / "node.env").read_text(), re.MULTILINE)


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / "kuberay" / f"{name}.yaml").read_text())


def cluster_of(name: str) -> dict[str, Any]:
    """Return the cluster that a KubeRay file describes."""
    spec = read(name)["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict[str, Any]]:
    """KubeRay's schemas, made to refuse what they do not name."""
    # Not by the fixture `shared`, whose reason to skip is that data sets are absent.
    folder = ROOT.parent / "shared" / "reference" / "kuberay-crds"
    if not folder.is_dir():
        pytest.skip(f"needs KubeRay's CRDs in {folder}, which are no part of this repository")
    found = {}
    for name, plural in KUBERAY.items():
        definition = yaml.load((folder / f"{plural}.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
        found[name] = tightened(version["schema"]["openAPIV3Schema"])
    return found


def tightened(schema: Any) -> Any:
    """Return a schema that refuses unknown keys, and takes text where Kubernetes takes numbers or text."""
    if isinstance(schema, list):
        return [tightened(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    new = {key: tightened(value) for key, value in schema.items()}
    if isinstance(new.get("properties"), dict) and not new.get("x-kubernetes-preserve-unknown-fields"):
        new.setdefault("additionalProperties", False)
    return new


def with_defaults(value: Any, schema: dict[str, Any]) -> Any:
    """Return a value with the schema's defaults where it says nothing, as Kubernetes fills them in before it checks."""
    if isinstance(value, list):
        return [with_defaults(each, schema.get("items", {})) for each in value]
    if not isinstance(value, dict):
        return value
    known = schema.get("properties", {})
    defaults = {key: each["default"] for key, each in known.items() if "default" in each}
    return {key: with_defaults(each, known.get(key, {})) for key, each in (defaults | value).items()}


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberays_schema_takes_the_file(schemas, name):
    # Kubernetes has a schema of its own for the metadata.
    file = read(name) | {"metadata": {}}
    assert faults(with_defaults(file, schemas[name]), schemas[name]) == []


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
    # Not jsonschema.validate: it would check the schema, of a megabyte, first.
    return [f"{'.'.join(map(str, each.absolute_path))}: {each.message}" for each in Draft7Validator(schema).iter_errors(file)]


@pytest.mark.parametrize("name", KUBERAY)
def test_the_file_is_of_the_kind_that_its_name_says(name):
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
        environment = {each["name"]: each["value"] for each in container["env"]}
        assert 0 < int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) < pod["terminationGracePeriodSeconds"]
        for variable, value in EXPORTS:
            assert variable in MACHINES_ALONE or environment.get(variable) == value, variable
        assert pod["serviceAccountName"] == read("account")["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["image"].endswith(f":{RAY_VERSION}")
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]


def test_the_jobs_training_command_is_one_that_the_job_understands_and_can_go_on_by_itself():
    spec = read("rayjob")["spec"]
    python, script, *flags = shlex.split(spec["entrypoint"])
    assert (python, script.removeprefix("/home/ray/yolor_ray/")) == ("python", "jobs/train.py")
    job: config.TrainConfig = cli._read(cli._subcommands(PRESETS, DESCRIPTIONS), flags)
    low, high = job.cluster.worker_range
    gpus = sum(group["maxReplicas"] for group in cluster_of("rayjob")["workerGroupSpecs"] if group["groupName"].startswith("gpu-"))
    assert job.cluster.gpu
    assert 1 <= low < high <= gpus
    assert spec["backoffLimit"] > 0
    assert "--run.name" in flags, "a run without a fixed name would not be found again"


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
def test_the_service_is_the_same_on_kubernetes_as_elsewhere():
    from ray.serve.schema import ServeDeploySchema

    there = yaml.safe_load(read("rayservice")["spec"]["serveConfigV2"])
    assert there == yaml.safe_load((CLUSTERS / "serve.yaml").read_text())
    ServeDeploySchema.model_validate(there)
