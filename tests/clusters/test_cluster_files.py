"""The files of `ray up`, the image and the other files under clusters/, checked by the code of Ray and EC2 that reads them.

No cluster is started.
"""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "clusters"
RAY_UP = ("gpu", "local")
TORCH = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
RAY_VERSION = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())


SECRETS = (
    r"AKIA[0-9A-Z]{16}",
    r"(?i)secret_access_key",
    r"BEGIN [A-Z ]*PRIVATE KEY",
    r"RAY_AUTH_TOKEN=[^\"$]",
    r"\b[0-9a-f]{32,}\b",
)


@pytest.fixture(scope="module")
def prepared() -> dict[str, dict[str, Any]]:
    """Return the `ray up` files with Ray's defaults, after Ray's own check."""
    from yolor_ray.cluster.ray_internals import prepare_config, validate_config

    files = {name: prepare_config(read(name)) for name in RAY_UP}
    for file in files.values():
        validate_config(file)
    return files


@pytest.mark.parametrize("name", RAY_UP)
def test_node_counts_of_a_ray_up_file_agree(prepared, name):
    file = prepared[name]
    groups = file["available_node_types"]
    for group, node in groups.items():
        assert 0 <= node["min_workers"] <= node["max_workers"], group
    workers = sum(node["max_workers"] for group, node in groups.items() if group != file["head_node_type"] or name == "local")
    assert workers == file["max_workers"], "under a lower total, the last group could never reach its max_workers"


def test_aws_accepts_every_node_config():
    assert aws_faults(read("gpu")) == ""


def test_a_mistyped_node_config_is_a_fault():
    file = read("gpu")
    file["available_node_types"]["gpu_spot"]["node_config"]["InstanceMarketOptions"]["SpotOptions"]["MaxPrize"] = "1"
    assert 'Unknown parameter in InstanceMarketOptions.SpotOptions: "MaxPrize"' in aws_faults(file)


def aws_faults(file: dict[str, Any]) -> str:
    """Return the faults of the node configs by EC2's description of RunInstances."""
    import botocore.session
    from botocore.validate import ParamValidator

    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    counts = {"MinCount": 1, "MaxCount": 1}
    nodes = file["available_node_types"].values()
    return "".join(ParamValidator().validate(node["node_config"] | counts, shape).generate_report() for node in nodes)


def test_only_workers_run_on_spot_and_every_node_has_a_role_and_an_encrypted_disk():
    spot, groups = set(), read("gpu")["available_node_types"]
    for group, node in groups.items():
        options = node["node_config"]
        if options.get("InstanceMarketOptions", {}).get("MarketType") == "spot":
            spot.add(group)
        if "labels" in node:
            assert (node["labels"]["ray.io/market-type"] == "spot") == (group in spot)
        assert options["IamInstanceProfile"]["Name"] == ("yolor-ray-head" if group == "head" else "yolor-ray-worker")
        assert options["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in options["BlockDeviceMappings"])
    assert spot == {"gpu_spot", "cpu"}
    assert groups["head"]["resources"] == {"CPU": 0, "GPU": 0}


def test_the_autoscaler_prefers_spot_to_on_demand(prepared):
    """Ray's own scheduler decides, with the groups of the file."""
    assert launched(prepared["gpu"], [{"GPU": 1}] * 2) == {"gpu_spot": 2}
    assert launched(prepared["gpu"], [{"GPU": 1}] * 6) == {"gpu_spot": 4, "gpu_on_demand": 2}
    assert launched(prepared["gpu"], [{"GPU": 1}], {"gpu_spot": 0.9}) == {"gpu_on_demand": 1}
    assert launched(prepared["gpu"], [{"CPU": 1}]) == {"cpu": 1}, "CPU tasks must not start GPU nodes"
    assert launched(prepared["gpu"], []) == {}


def test_a_request_by_label_starts_on_demand_nodes(prepared):
    assert launched(prepared["gpu"], [{"GPU": 1}] * 2, market="on-demand") == {"gpu_on_demand": 2}


def launched(
    file: dict[str, Any], demand: list[dict[str, float]], availability: dict[str, float] | None = None, market: str = ""
) -> dict[str, int]:
    """Return the number of nodes that the autoscaler starts for a demand, by group; an availability below 1 is a recent failure."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    selectors = [[("ray.io/market-type", LabelSelectorOperator.LABEL_OPERATOR_IN, [market])]] if market else []
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=AutoscalingConfig(copy.deepcopy(file), skip_content_hash=True).get_node_type_configs(),
        max_num_nodes=file["max_workers"] + 1,
        resource_requests=ResourceRequestUtil.group_by_count(
            [ResourceRequestUtil.make(each, label_selectors=selectors) for each in demand]
        ),
        recoverable_resource_availabilities=availability or {},
    )
    return {launch.instance_type: launch.count for launch in ResourceDemandScheduler().schedule(request).to_launch}


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_starts_with_the_token_and_its_dashboard_listens_on_loopback(name):
    file = read(name)
    assert file["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in file["setup_commands"][0]
    assert any("clusters/node.env" in line for line in file["setup_commands"])
    (head,) = [line for line in file["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--block" not in " ".join(file["head_start_ray_commands"] + file["worker_start_ray_commands"]), "SSH would never return"


@pytest.mark.parametrize("name", RAY_UP)
def test_nodes_install_torch_first_and_from_files_that_exist(name):
    file = read(name)
    installs = [line for line in file["setup_commands"] if "pip install" in line]
    assert installs[0].endswith(f" {TORCH}")
    for remote, local in file["file_mounts"].items():
        if remote.startswith("~/yolor_ray/"):
            assert (ROOT / local).exists(), local
    mounted = {remote.removeprefix("~/yolor_ray/") for remote in file["file_mounts"]}
    assert {"requirements.txt", "constraints.txt", "pyproject.toml", "README.md", "LICENSE", "yolor_ray", "clusters"} <= mounted
    for script in re.findall(r"clusters/[\w./]+", (CLUSTERS / f"{name}.yaml").read_text()):
        assert (ROOT / script.rstrip(".")).is_file(), script


def test_the_environment_of_nodes_requires_the_token_and_has_settings_that_ray_knows():
    from yolor_ray.cluster.ray_internals import SystemConfig

    pairs = dict(re.findall(r"^export (\w+)=(.*)$", (CLUSTERS / "node.env").read_text(), re.MULTILINE))
    assert pairs["RAY_AUTH_MODE"] == "token"
    assert pairs["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert pairs["RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"] == "minor", "images of other dates have other patch versions of Python 3.11"
    assert pairs["RAY_TMPDIR"] == "/var/tmp", "/tmp is memory on Amazon Linux 2023"
    check = {name.removeprefix("RAY_"): int(value) for name, value in pairs.items() if "health_check" in name}
    assert all(hasattr(SystemConfig, name) for name in check)
    check_ms = check["health_check_period_ms"] + check["health_check_timeout_ms"]
    assert check_ms * check["health_check_failure_threshold"] <= 20_000


def test_the_image_is_built_from_files_that_exist_and_runs_without_root():
    lines = (CLUSTERS / "Dockerfile").read_text().splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith(("#", " "))]
    included = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for step, rest in steps if step == "COPY" for name in rest.split()[:-1] if not name.startswith("--")]
    assert included == set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert [rest for step, rest in steps if step == "USER"] == ["1000"]
    (base,) = [rest for step, rest in steps if step == "FROM"]
    assert re.fullmatch(r"python:3\.11\.\d+-[\w-]+", base), "a moving tag would change the image without a commit"
    early_to_late = (TORCH, "requirements.txt", "yolor_ray yolor_ray")
    order = [index for index, (_, rest) in enumerate(steps) if any(each in rest for each in early_to_late)]
    assert len(order) == 4
    assert f"install --no-cache-dir {TORCH}" in steps[order[0]][1]
    assert (CLUSTERS / "Dockerfile").read_text().count("ray:") == 1
    assert f"-t yolor-ray:{RAY_VERSION} " in lines[0]


@pytest.mark.parametrize("path", sorted(p for p in CLUSTERS.rglob("*") if p.is_file()), ids=lambda p: p.relative_to(CLUSTERS).as_posix())
def test_no_file_holds_a_key_or_opens_the_dashboard(path):
    text = path.read_text()
    for secret in SECRETS:
        assert not re.search(secret, text), secret
    assert not re.search(r"dashboard-host\W+0\.0\.0\.0", text)


def test_cluster_files_that_the_documentation_names_exist():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"clusters/[\w./-]*\w", page.read_text())}
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
