"""The benchmark of prediction, with results in place of workers and of a network."""

import json
import subprocess
import sys

import numpy as np
import pytest

from yolor_ray.benchmark import prediction
from yolor_ray.benchmark.run import benchmark
from yolor_ray.config import WorkersConfig
from yolor_ray.config.benchmark import PredictionConfig
from yolor_ray.errors import ConfigError
from yolor_ray.predict.output import PartResult

SMALL = PredictionConfig(images="scenes:6", passes=3, rounds=2, engine="torch")


class ReadingPredictor:
    """Predictor that only reads."""

    def __init__(self, config, threads):
        pass

    def predict(self, images):
        yield from images


@pytest.fixture
def workers(monkeypatch):
    """Predict each part in this process, as a worker would, with the given numbers of images."""
    seen = []

    def by_ray(job, tasks):
        for index, key, part in tasks:
            images = len(list(part.read()))
            seen.append(images)
            yield PartResult(index, key, images, 0, 0, "", ())

    monkeypatch.setattr(prediction, "predict_by_ray", by_ray)
    monkeypatch.setattr(prediction, "Predictor", ReadingPredictor)
    monkeypatch.setattr(prediction, "start_ray", lambda **_: None)
    monkeypatch.setattr(prediction, "MEMORY_EVERY_S", 0.0)
    return seen


def test_loop_and_workers_predict_the_same_images(workers):
    result = benchmark(SMALL)
    assert result["benchmark"] == "predict"
    assert sum(workers) == 2 * 3 * 6 and [row["images"] for row in result["rounds"]] == [18.0, 18.0]
    assert min(*result["images_per_s"].values(), result["first_result_s"]) > 0
    assert result["ratio"] == pytest.approx(np.median([row["workers"] / row["loop"] for row in result["rounds"]]))
    memory = result["memory"]
    assert 50 < memory["first_mb"] <= memory["peak_mb"] and memory["last_mb"] <= memory["peak_mb"]
    json.dumps(result, allow_nan=False)


def test_the_growth_of_the_memory_is_that_of_the_second_half():
    filling = [(images, min(images, 1000) / 10) for images in range(100, 2100, 100)]
    assert prediction._growth(filling) == pytest.approx(0)
    leaking = [(images, memory + images / 500) for images, memory in filling]
    assert prediction._growth(leaking) == pytest.approx(2)
    assert prediction._growth([(64, 1.0)]) == 0


def test_processes_below_this_one_count():
    before = prediction._memory_mb()
    program = "x = bytes(range(256)) * 800_000; print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert prediction._memory_mb() - before > 150
        child.communicate(b"\n")


@pytest.mark.parametrize("workers", ["0", "1-2"])
def test_the_number_of_workers_is_fixed(workers):
    with pytest.raises(ConfigError, match=r"cluster\.workers: .* expected one number, 1 or more"):
        PredictionConfig(cluster=WorkersConfig(workers=workers))
