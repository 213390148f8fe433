"""The Grafana dashboard and the Prometheus alert rules ask for metrics that `/metrics` really offers."""

import itertools
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from http_server import served
from red_engine import RedEngine, encode_image
from yolor_ray.serve.metrics import COUNTS, SPECS

FOLDER = Path(__file__).parents[2] / "clusters" / "monitoring"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
[GROUP] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
TARGETS = {f"{panel['title']}: {target['legendFormat']}": target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]}
RULES = {rule["alert"]: rule["expr"] for rule in GROUP["rules"]}
IMAGE_ROUTES = {"/v1/detect", "/v1/models/{name}/detect"}
BATCH_ROUTES = {"/v1/detect/batch", "/v1/models/{name}/detect/batch", "/v2/models/{name}/infer"}
SELECTOR = re.compile(r'\{__name__=~"\(ray_\)\?(\w+)"([^}]*)\}')


@pytest.fixture(scope="module")
def offered():
    """Return the labels, with their values, of each sample of `/metrics` after an answer and a refusal."""
    with served(RedEngine()) as client:
        assert client.post(encode_image()).status_code == 200
        assert client.post(b"no image").status_code == 415
        text = client.get("/metrics").text
    labels = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, []).append(sample.labels)
    return labels


@pytest.mark.parametrize("name", [*TARGETS, *RULES])
def test_an_expression_asks_for_metrics_and_labels_that_exist(offered, name):
    expression = {**TARGETS, **RULES}[name]
    selectors = SELECTOR.findall(expression)
    assert selectors and len(selectors) == expression.count("yolor_")
    for metric, conditions in selectors:
        assert metric in offered, metric
        names = set(offered[metric][0])
        asked = set(re.findall(r"(\w+)=", conditions)) | set(re.findall(r"\w+", (re.findall(r"by \(([^)]*)\)", expression) or [""])[0]))
        assert asked <= names, (metric, asked - names)
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)


def test_the_dashboard_shows_every_metric_and_its_panels_do_not_overlap():
    shown = {re.sub(r"_(total|sum|count|bucket)$", "", metric) for expr in TARGETS.values() for metric, _ in SELECTOR.findall(expr)}
    assert shown == set(SPECS)
    cells = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(cells)) == len(cells) and all(x + 8 <= 24 for x, _ in cells)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(cells)


def test_every_rule_says_for_how_long_how_bad_and_what():
    for rule in GROUP["rules"]:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning"} and rule["annotations"]["summary"]


def test_reasons_and_routes_in_the_rules_are_those_of_the_service():
    from yolor_ray.serve.http import api, kserve
    from yolor_ray.serve.http.errors import STATUS

    text = json.dumps([*TARGETS.values(), *RULES.values()]).replace('\\"', '"')
    assert set(re.findall(r'reason="(\w+)"', text)) <= set(STATUS)
    patterns = set(re.findall(r'route=~"([^"]+)"', text))
    assert patterns and 'route="' not in text
    # The routes of one image, for the time of a request, and all that may be refused because the queue is full.
    for pattern in patterns:
        routes = {route.path for route in [*api.router.routes, *kserve.router.routes] if re.fullmatch(pattern, route.path)}
        assert routes == (IMAGE_ROUTES | BATCH_ROUTES if "batch" in pattern else IMAGE_ROUTES)


def test_the_middle_of_a_bucket_is_the_mean_of_its_numbers_on_the_port_of_ray():
    for low, high in itertools.pairwise(COUNTS):
        numbers = range(math.floor(low) + 1, math.floor(high) + 1)
        assert (low + high) / 2 == sum(numbers) / len(numbers)


BATCHES = 'requests_total{route="/v1/detect/batch",status="429"}'
CASES = {
    "YolorServiceErrors": (4, 11, {'requests_total{status="200"}': "0+98x60", 'requests_total{status="500"}': "0+2x60"}),
    "YolorServiceOverloaded": (4, 11, {BATCHES: "0+10x60", 'refusals_total{reason="overloaded"}': "0+10x60"}),
    "YolorServiceSlow": (
        9,
        16,
        {f'request_seconds_bucket{{route="/v1/detect",le="{le}"}}': f"0+{n}x60" for le, n in (("1", 5), ("2.5", 6), ("+Inf", 60))},
    ),
    "YolorServiceQueued": (18, 21, {"queue_depth": "0x9 20x50"}),
    # Ray's port counts an image without boxes as a quarter of a box, and a service that finds nothing has no confidences.
    "YolorServiceFindsNothing": (29, 62, {"detections_sum": "0+2.5x90", "detections_count": "0+10x90"}),
    "YolorVersionRejected": (40, 21, {"rejected_versions_total": "_x20 1x40"}),
}


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
@pytest.mark.parametrize("prefix", ["yolor_", "ray_yolor_"])
@pytest.mark.parametrize("alert", RULES)
def test_an_alert_fires_when_it_should_and_no_other_does(tmp_path, alert, prefix):
    quiet, firing, series = CASES[alert]
    question = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})'}
    asked = [
        {**question, "eval_time": f"{quiet}m", "exp_samples": []},
        {**question, "eval_time": f"{firing}m", "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}]},
    ]
    inputs = [{"series": prefix + name, "values": values} for name, values in series.items()]
    tests = [{"interval": "1m", "input_series": inputs, "promql_expr_test": asked}]
    (tmp_path / "tests.json").write_text(
        json.dumps({"rule_files": [str(FOLDER / "alerts.yaml")], "evaluation_interval": "1m", "tests": tests})
    )
    run = subprocess.run(["promtool", "test", "rules", "tests.json"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
