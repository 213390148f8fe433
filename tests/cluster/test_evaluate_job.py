import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from yolor_ray.config import EvaluateConfig, NetworkConfig
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.data.synthetic import scenes
from yolor_ray.errors import ConfigError, DataError, StorageError
from yolor_ray.evaluate import run
from yolor_ray.evaluate.coco import METRICS
from yolor_ray.evaluate.run import evaluate
from yolor_ray.inference.engine_choice import choose_engine
from yolor_ray.io.manifest import read_published
from yolor_ray.io.storage import join
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights
from yolor_ray.pack.run import pack_scenes

REPOSITORY = Path(__file__).parents[2]
SMALL = NetworkConfig(stem="reorg", stem_width=8, widths=(16, 16, 32, 32), depths=(1, 1, 1, 1), neck_depth=1)
ANCHORS = ((12, 12), (20, 16), (16, 28), (30, 30), (40, 26), (28, 48), (60, 60), (80, 50), (50, 90))


def _weights(url, classes=scenes.CLASSES):
    """Publish untrained weights, some of whose many detections hit objects."""
    torch.manual_seed(5)
    network = Yolor(SMALL, len(classes), torch.tensor(ANCHORS, dtype=torch.float32).reshape(3, 3, 2)).eval()
    save_weights(url, network, WeightsInfo("guesses", tuple(classes), image_px=128))
    return url


@pytest.fixture(scope="module")
def published(ray_cluster, s3):
    """Publish weights and a dataset of 150 images, in three row groups, in a bucket."""
    bucket = s3()
    pack_scenes(join(bucket, "data"), 150, seed=1, size_px=128)
    return _weights(join(bucket, "weights")), join(bucket, "data")


def test_accuracy_does_not_depend_on_the_number_of_workers(published):
    weights, data = published
    results = [evaluate(EvaluateConfig(weights=weights, data=data, workers=workers)) for workers in (0, 1, 2, 5)]
    assert results[0]["AR100"] > 0.01
    assert set(results[0]) == {*METRICS, "images", "weights", "data"}
    assert results[0]["images"] == 150
    for result in results[1:]:
        assert result == pytest.approx(results[0], abs=1e-6)


def test_bfloat16_measures_the_engine_that_a_replica_would_choose(tmp_path, monkeypatch):
    precisions = []

    def recording(*arguments, precision):
        precisions.append(precision)
        return choose_engine(*arguments, precision=precision)

    monkeypatch.setattr(run, "choose_engine", recording)
    pack_scenes(str(tmp_path / "data"), 20, seed=1, size_px=128)
    weights = _weights(str(tmp_path / "weights"))
    full, half = (evaluate(EvaluateConfig(weights, str(tmp_path / "data"), precision=name)) for name in ("float32", "bfloat16"))
    assert precisions == ["bfloat16"]
    assert half["AR100"] == pytest.approx(full["AR100"], abs=0.03)
    assert half["AR100"] > 0.01


def test_a_report_is_published(published):
    weights, data = published
    output = join(data.rpartition("/")[0], "report")
    result = evaluate(EvaluateConfig(weights=weights, data=data, workers=2, output=output))
    files = read_published(output)
    assert sorted(files) == ["detections.parquet", "index.html", "metrics.json", "predictions.png"]
    numbers = json.loads(files["metrics.json"])
    assert {name: numbers[name] for name in ("AP", "AR100", "images", "weights", "data")} == pytest.approx(
        {name: result[name] for name in ("AP", "AR100", "images", "weights", "data")}
    )
    assert list(numbers["classes"]) == list(scenes.CLASSES)


def test_a_missing_shard_is_named(published, tmp_path):
    weights, _ = published
    pack_scenes(str(tmp_path), 20, seed=1, size_px=64)
    shard = tmp_path / open_dataset(str(tmp_path)).shards[0].name
    shard.unlink()
    with pytest.raises(StorageError, match=f"{shard}.*not found"):
        evaluate(EvaluateConfig(weights=weights, data=str(tmp_path), workers=1))


def test_weights_of_other_classes_are_refused(published, tmp_path):
    weights = _weights(str(tmp_path), classes=("cat", "dog"))
    with pytest.raises(DataError, match=r"found classes .*, expected some of cat, dog"):
        evaluate(EvaluateConfig(weights=weights, data=published[1]))


def test_built_in_scenes_are_evaluated_by_their_count(published):
    weights, _ = published
    assert evaluate(EvaluateConfig(weights=weights, data="scenes:3"))["images"] == 3
    with pytest.raises(ConfigError, match="found 'scenes:few', expected scenes:N"):
        evaluate(EvaluateConfig(weights=weights, data="scenes:few"))


def test_workers_find_the_starting_weights_of_the_package(ray_cluster):
    assert evaluate(EvaluateConfig(weights="builtin", data="scenes:3", image_px=64, workers=1))["images"] == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_absent_gpu_is_the_users_mistake(published):
    with pytest.raises(ConfigError, match="gpu: found no CUDA device"):
        evaluate(EvaluateConfig(weights=published[0], data=published[1], gpu=True))


def _job(*flags):
    return subprocess.run([sys.executable, "jobs/evaluate.py", *flags], cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_the_job_prints_the_published_numbers(shared):
    folder = shared / "datasets" / "coco_eval_check"
    names = ("instances_val2014_100.json", "instances_val2014_fakebbox100_results.json")
    truth, results = (str(folder / name) for name in names)
    done = _job("--truth", truth, "--results", results)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    expected = "0.504581 0.696973 0.572982 0.585626 0.519400 0.501398 0.386813 0.593680 0.595353 0.639811 0.566421 0.564291"
    assert list(json.loads(done.stdout).values()) == pytest.approx(np.array(expected.split(), float).tolist(), abs=1e-6)


@pytest.mark.parametrize("flags", [(), ("--weights", "w"), ("--truth", "t"), ("--weights", "w", "--data", "d", "--truth", "t")])
def test_the_job_requires_one_complete_pair_of_flags(flags):
    done = _job(*flags)
    assert done.returncode == 2
    assert "expected weights and data, or truth and results" in done.stderr
    assert done.stdout == ""
