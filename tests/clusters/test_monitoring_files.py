"""The Grafana dashboard and the Prometheus alert rules ask for metrics that `/metrics` really offers."""

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from http_server import served
from red_engine import RedEngine, encode_image
from yolor_ray.serve.metrics import SPECS

FOLDER = Path(__file__).parents[2] / "clusters" / "monitoring"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
[GROUP] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
TARGETS = {f"{panel['title']}: {target['legendFormat']}": target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]}
RULES = {rule["alert"]: rule["expr"] for rule in GROUP["rules"]}
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
    from yolor_ray.serve.http.api import router
    from yolor_ray.serve.http.errors import STATUS

    text = json.dumps([*TARGETS.values(), *RULES.values()]).replace('\\"', '"')
    assert set(re.findall(r'reason="(\w+)"', text)) <= set(STATUS)
    patterns = set(re.findall(r'route=~"([^"]+)"', text))
    assert patterns and 'route="' not in text
    # The routes of an image, for the default model and by name.
    for pattern in patterns:
        assert {route.path for route in router.routes if re.fullmatch(pattern, route.path)} == {"/v1/detect", "/v1/models/{name}/detect"}
