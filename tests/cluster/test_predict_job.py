"""The prediction job by Ray Data, with an S3 server: killed and finished, and errors of workers."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from colour_engine import CLASSES, draw, write_weights
from packed import pack, square_record
from yolor_ray.config import PredictConfig, WorkersConfig
from yolor_ray.errors import StorageError
from yolor_ray.io import manifest, storage
from yolor_ray.pack.annotations.image_folder import ImageFile
from yolor_ray.predict.part_file import from_parquet
from yolor_ray.predict.run import predict, predict_by_ray
from yolor_ray.predict.sources import FilePart

# Ray Data reads deprecated settings of its own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import json, os, signal, sys
from yolor_ray.config import PredictConfig, WorkersConfig
from yolor_ray.predict import run

class KillingBar(run.tqdm):
    def update(self, n=1):
        os.kill(os.getpid(), signal.SIGKILL)

run.tqdm = KillingBar
settings = json.loads(sys.argv[1])
run.predict(PredictConfig(**settings | {"cluster": WorkersConfig(**settings["cluster"])}))
"""
"""Program that predicts until its progress bar shows the first result, and is killed there."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


def rows(url):
    names = [name for name in storage.list_names(url) if name.startswith("part-")]
    return [row for name in names for row in from_parquet(storage.read_bytes(storage.join(url, name)))]


def test_a_killed_prediction_goes_on_and_equals_one_in_a_single_process(weights, squares, s3, ray_cluster, tmp_path):
    output = storage.join(s3(), "out")
    limits = {"confidence": 0.0, "max_detections": 20, "engine": "torch"}
    settings = PredictConfig(weights, squares.url, output, format="coco", cluster=WorkersConfig(workers="1-2"), **limits)
    killed = subprocess.run([sys.executable, "-c", KILLED, json.dumps(asdict(settings))], env=ray_cluster, cwd=ROOT, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert not manifest.is_published(output)
    first = storage.list_names(storage.join(output, "unfinished"))[0].replace(".json", ".parquet")
    before = storage.read_bytes(storage.join(output, first))
    result = predict(settings)
    assert manifest.read_published(output)[first] == before
    alone = predict(replace(settings, output=str(tmp_path / "alone"), cluster=WorkersConfig()))
    assert result == {**alone, "output": output}
    assert result["images"] == 100 and result["detections"] > 1000
    found, expected = rows(output), rows(str(tmp_path / "alone"))
    assert [row["name"] for row in found] == [f"{index:04d}.png" for index in range(100)]
    for row, other in zip(found, expected, strict=True):
        assert set(row["classes"]) <= set(CLASSES)
        assert row["confidences"] == pytest.approx(other["confidences"], abs=1e-4)


def test_an_error_of_a_worker_is_raised_as_it_is(weights, tmp_path, ray_cluster):
    dataset = pack(str(tmp_path / "data"), [[square_record(index)] for index in range(2)])
    (tmp_path / "data" / dataset.shards[1].name).unlink()
    settings = PredictConfig(weights, dataset.url, str(tmp_path / "out"), engine="torch", cluster=WorkersConfig(workers="1"))
    with pytest.raises(StorageError, match=rf"{dataset.shards[1].name}.*not found"):
        predict(settings)


def test_a_result_is_yielded_before_the_next_part_is_read(weights, tmp_path, ray_cluster):
    draw((64, 64), [("red", 10, 10, 40, 40)]).save(tmp_path / "image.png")
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    # A task that reads the pipe waits until the pipe is opened to be written.
    opened = threading.Timer(240, lambda: pipe.open("wb").close())
    opened.start()
    settings = PredictConfig(weights, str(tmp_path), str(tmp_path / "out"), engine="torch", cluster=WorkersConfig(workers="1"))
    parts = [FilePart(str(tmp_path), (ImageFile(name, 1, 0),)) for name in ("image.png", "pipe.png")]
    results = predict_by_ray(settings, [(index, "key", part) for index, part in enumerate(parts)])
    assert next(results).images == 1
    assert opened.is_alive()
    opened.cancel()
    pipe.open("wb").close()
    assert [len(result.faults) for result in results] == [1]
