"""The benchmark of the scorer, with few images."""

import json
import sys

import pytest

from yolor_ray.benchmark.run import benchmark
from yolor_ray.benchmark.scoring import make_detections
from yolor_ray.config.benchmark import ScoringConfig
from yolor_ray.errors import ConfigError

SMALL = ScoringConfig(images=20, detections=30, classes=4, rounds=2)


def test_both_scorers_give_the_same_table_and_their_seconds():
    result = benchmark(SMALL)
    assert result["benchmark"] == "scoring"
    assert result["largest_difference"] == 0
    assert 0 < result["AP"] < 1
    assert min(result["scoring_s"].values()) > 0
    assert result["ratio"] > 0
    assert result["settings"] == {"images": 20, "detections": 30, "classes": 4, "rounds": 2}
    json.dumps(result, allow_nan=False)


def test_detections_have_the_asked_numbers_of_images_and_classes():
    truth, rows = make_detections(SMALL)
    assert len(truth["images"]) == 20
    assert len(rows) == 20 * 30
    assert {row["category_id"] for row in rows} == {0, 1, 2, 3}
    assert {row["image_id"] for row in rows} == set(range(20))
    assert (truth, rows) == make_detections(SMALL)


def test_without_pycocotools_the_message_names_the_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ConfigError, match="expected `pip install pycocotools`"):
        benchmark(SMALL)
