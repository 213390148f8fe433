"""Exports as `yolor-ray export` writes them, in the jobs that take weights: answers are those of the weights."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest

import yolor_ray as yr
from exported import ENGINES, change_config
from http_server import served
from red_engine import serve_settings
from yolor_ray.config import EvaluateConfig, ExportConfig, PredictConfig, ServeConfig
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.errors import ConfigError, WeightsError
from yolor_ray.evaluate.run import evaluate
from yolor_ray.export.run import TOLERANCE, export
from yolor_ray.io import manifest
from yolor_ray.io.weights_url import BUILTIN
from yolor_ray.model.weights import load_weights, save_weights
from yolor_ray.pack.run import pack_scenes
from yolor_ray.predict.part_file import from_parquet
from yolor_ray.predict.run import predict
from yolor_ray.serve import run
from yolor_ray.serve.engine import LocalEngine

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 224
BEST = {"ball": 0.8, "star": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("scenes"))
    pack_scenes(url, 4, seed=1, size_px=SIDE)
    return url


@pytest.fixture(scope="module")
def folders(tmp_path_factory, data):
    """Weights, by the name `weights`, and their exports, by format."""
    for name in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("folders")
    # Trained weights: the predictions of random ones tie, and rounding decides their order.
    network, info = load_weights(BUILTIN)
    save_weights(str(folder / "weights"), network, replace(info, thresholds=BEST, image_px=SIDE))
    for name in ENGINES:
        export(ExportConfig(str(folder / "weights"), str(folder / name), format=name, data=data, check_images=2))
    return {name: str(folder / name) for name in ("weights", *ENGINES)}


def local_engine(weights):
    engine = LocalEngine(serve_settings(weights=weights, engine="torch" if weights.endswith("weights") else "fastest"))
    engine.gate = threading.Event()
    return engine


def ask(weights, query):
    """Return the answer to an image, and the description of the model, over HTTP."""
    with served(local_engine(weights)) as client:
        answer = client.post(scene(3).image, query=query, media_type="")
        assert answer.status_code == 200, answer.text
        return answer.json(), client.get("/v1/model").json()


def assert_close(found, expected, rounding):
    """Compare two JSON values; numbers may differ by a rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value, rounding)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_close(*pair, rounding)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=rounding)
    else:
        assert found == expected


@pytest.mark.parametrize("query", ["", "?confidence=0.3&max_detections=9"])
def test_a_service_of_an_export_answers_as_a_service_of_its_weights(folders, query):
    expected, model = ask(folders["weights"], query)
    assert expected["detections"]
    for name, engine in ENGINES.items():
        found, described = ask(folders[name], query)
        for answer in (found, expected):
            answer.pop("timing_ms", None), answer.pop("request_id", None)
        # Two decimals of a pixel, and rounding of the answer beside that of the network.
        assert_close(found, expected, 0.01 + TOLERANCE * SIDE)
        assert described == model | {"engine": engine}
        assert described["thresholds"] == BEST and described["tasks"] == ["detect"] and described["fused"]


@pytest.mark.parametrize("format_name", ENGINES)
def test_the_confidence_best_takes_the_thresholds_of_the_export(folders, format_name):
    best = ask(folders[format_name], "")[0]["detections"]
    every = ask(folders[format_name], "?confidence=0.1")[0]["detections"]
    assert {box["class"] for box in best} <= {box["class"] for box in every}
    least = [BEST.get(box["class"], 0.25) for box in best]
    assert all(box["confidence"] > threshold for box, threshold in zip(best, least, strict=True))
    assert len(best) < len(every)


@pytest.mark.parametrize("format_name", ENGINES)
def test_a_detector_of_an_export_finds_the_objects_of_its_weights(folders, format_name):
    expected, found = (yr.Detector(folders[name], device=device) for name, device in (("weights", "cpu"), (format_name, "")))
    assert (found.classes, found.thresholds, found.tasks) == (expected.classes, BEST, ("detect",))
    for image in (scene(0).image, scene(1).image):
        a, b = (detector(image, confidence=0.2) for detector in (expected, found))
        assert len(b) == len(a) > 0 and b.classes == a.classes
        np.testing.assert_allclose(b.boxes_xyxy, a.boxes_xyxy, atol=TOLERANCE * max(a.width, a.height))
        np.testing.assert_allclose(b.confidences, a.confidences, atol=TOLERANCE)
    with pytest.raises(ConfigError, match="which has its own engine"):
        yr.Detector(folders[format_name], engine="torch")
    with pytest.raises(ConfigError, match="computes on the CPU"):
        yr.Detector(folders[format_name], device="cuda:0")


@pytest.mark.parametrize("format_name", ENGINES)
def test_the_predictions_of_an_export_are_those_of_its_weights(folders, data, format_name, tmp_path):
    rows = []
    for name, engine in (("weights", "torch"), (format_name, "fastest")):
        settings = {"weights": folders[name], "images": data, "output": str(tmp_path / name), "engine": engine, "confidence": 0.3}
        assert predict(PredictConfig(**settings))["images"] == 4
        rows.append(from_parquet((tmp_path / name / "part-00000.parquet").read_bytes()))
    assert json.loads((tmp_path / format_name / "predict.json").read_text())["weights"]["name"] == "nano"
    for expected, found in zip(*rows, strict=True):
        assert found["classes"] == expected["classes"]
        np.testing.assert_allclose(found["boxes_xyxy"], expected["boxes_xyxy"], atol=TOLERANCE * SIDE)


@pytest.mark.parametrize("format_name", ENGINES)
def test_the_evaluation_of_an_export_has_the_metrics_of_its_weights(folders, data, format_name):
    expected, found = (evaluate(EvaluateConfig(weights=folders[name], data=data)) for name in ("weights", format_name))
    assert found.keys() == expected.keys()
    for name in found.keys() - {"weights", "data"}:
        assert found[name] == pytest.approx(expected[name], abs=1e-3), name


def test_an_export_is_evaluated_at_another_side_and_not_on_a_gpu(folders, data):
    assert evaluate(EvaluateConfig(weights=folders["onnx"], data=data, image_px=64))["images"] == 4
    with pytest.raises(ConfigError, match=r"gpu: found no CUDA device|computes on the CPU"):
        evaluate(EvaluateConfig(weights=folders["onnx"], data=data, gpu=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "torch"}, "engine: found 'torch', expected onnxruntime or fastest: .*onnx, which has its own engine"),
        ({"gpus_per_replica": 1.0}, "gpus_per_replica: found 1.0, expected 0, as .*onnx is an export as onnx, which computes on the CPU"),
    ],
    ids=["engine", "gpu"],
)
def test_the_job_refuses_settings_that_an_export_cannot_have_before_ray_starts(folders, monkeypatch, changes, message):
    monkeypatch.setattr(run, "_serve_locally", lambda *_: pytest.fail("Ray started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=message):
        run.serve(ServeConfig(weights=folders["onnx"], **changes))


def test_the_error_of_a_replica_of_an_export_names_the_cause(folders, tmp_path):
    manifest.publish(str(tmp_path), manifest.read_published(folders["onnx"]))
    change_config(str(tmp_path), classes=list(reversed(load_weights(folders["weights"])[1].classes)), thresholds={})
    with pytest.raises(WeightsError, match=r"found classes .* in the graph, expected the same"):
        run._raise_replica_error(serve_settings(weights=str(tmp_path)))


def test_an_exported_export_is_refused(folders, data, tmp_path):
    with pytest.raises(WeightsError, match="found an export as openvino, which can only predict, expected weights with tensors"):
        export(ExportConfig(folders["openvino"], str(tmp_path / "again"), data=data))
