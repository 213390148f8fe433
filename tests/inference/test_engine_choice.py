"""The choice of an engine: among engines made for the test, and among all installed engines."""

import functools
import logging
import math
import sys

import pytest
import torch

from yolor_ray.config import NetworkConfig
from yolor_ray.errors import ConfigError
from yolor_ray.inference import engine_choice as module
from yolor_ray.inference.detect import to_input
from yolor_ray.inference.engine_choice import choose_engine, scene_images
from yolor_ray.inference.parity import difference
from yolor_ray.inference.runtimes.torch_runtime import DecodedYolor, torch_predictor
from yolor_ray.inference.timing import time_interleaved
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1)
ANCHORS = torch.tensor([[[12.0, 12], [20, 20], [30, 30]], [[40, 40], [60, 60], [80, 80]], [[50, 90], [90, 50], [90, 90]]])
INFO = WeightsInfo("tiny", ("a", "b"), 64)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = Yolor(TINY, 2, ANCHORS)
    for level in network.head.levels:
        torch.nn.init.normal_(level.predict.bias, std=1.0)
    return network.eval()


@pytest.fixture
def engines(monkeypatch):
    """Replace the real engines by engines with given seconds per image on a fake clock, and a given change of the predictions."""
    now = [0.0]

    def install(network, **recipes):
        def build(seconds, change):
            predict = torch_predictor(fuse(network))

            def run(pixels):
                now[0] += seconds * len(pixels)
                outputs = predict(pixels)
                return dict(zip(outputs, change(*outputs.values()), strict=True))

            return lambda: run

        builders = {name: build(*recipe) for name, recipe in recipes.items()}
        monkeypatch.setattr(module, "_builders", lambda *_: builders)
        monkeypatch.setattr(module, "time_interleaved", functools.partial(time_interleaved, clock=lambda: now[0]))

    return install


def unchanged(boxes_xyxy, scores):
    return boxes_xyxy, scores


def test_the_fastest_engine_is_chosen_and_all_ratios_are_logged(network, engines, caplog):
    engines(network, torch=(0.3, unchanged), onnxruntime=(0.1, unchanged), openvino=(0.2, unchanged))
    with caplog.at_level(logging.INFO):
        assert choose_engine(network, INFO).engine == "onnxruntime"
    for line in ("engine=torch ms=300.0 ratio=1.00", "engine=onnxruntime ms=100.0 ratio=3.00", "engine=openvino ms=200.0 ratio=1.50"):
        assert f"event=engine_timed {line}" in caplog.text


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.1, 1), (0.6, 2), (1.1, 3)])
def test_no_round_of_timing_begins_after_the_budget(network, engines, monkeypatch, budget_s, rounds):
    engines(network, torch=(0.3, unchanged), openvino=(0.2, unchanged))
    timed = []
    measure = module.time_interleaved
    monkeypatch.setattr(module, "time_interleaved", lambda *args, **options: timed.append(measure(*args, **options)) or timed[-1])
    choose_engine(network, INFO, budget_s=budget_s)
    assert [len(rows) for rows in timed] == [rounds]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda boxes, scores: (boxes, scores + 0.0015),
        lambda boxes, scores: (boxes + 0.0015 * INFO.image_px, scores),
        lambda boxes, scores: (boxes, scores * float("nan")),
        lambda boxes, scores: (boxes[:1], scores[:1]),
    ],
    ids=["scores", "boxes", "nan", "shape"],
)
def test_an_engine_with_other_predictions_is_never_chosen(network, engines, caplog, wrong):
    engines(network, torch=(0.3, unchanged), onnxruntime=(0.1, wrong), openvino=(0.2, unchanged))
    assert choose_engine(network, INFO).engine == "openvino"
    assert "engine=onnxruntime max_error=" in caplog.text
    with pytest.raises(ConfigError, match="engine: found onnxruntime, which does not run this network"):
        choose_engine(network, INFO, engine="onnxruntime")


def test_torch_in_float32_is_chosen_when_no_engine_passes(network, engines, caplog):
    def wrong(boxes_xyxy, scores):
        return boxes_xyxy, 1 - scores

    engines(network, torch=(0.3, wrong), openvino=(0.2, wrong))
    model = choose_engine(network, INFO, precision="bfloat16")
    assert "event=no_engine_passed engine=torch precision=float32" in caplog.text
    pixels = to_input(torch.from_numpy(scene_images(64, 1)), torch.device("cpu"))
    with torch.inference_mode():
        assert difference(DecodedYolor(network)(pixels), model.predict(pixels), 64) < 1e-5


def test_a_named_engine_is_not_timed(network, engines, caplog):
    engines(network, torch=(0.1, unchanged), openvino=(0.2, unchanged))
    with caplog.at_level(logging.INFO):
        assert choose_engine(network, INFO, engine="openvino").engine == "openvino"
    assert "event=engine_timed" not in caplog.text


def test_an_unavailable_engine_is_refused_by_name(network, engines):
    engines(network, torch=(0.1, unchanged))
    with pytest.raises(ConfigError, match="engine: found 'openvino', expected one of fastest, torch on this device"):
        choose_engine(network, INFO, engine="openvino")


def test_an_engine_without_its_package_is_skipped(network, monkeypatch, caplog):
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    assert choose_engine(network, INFO).engine == "torch"
    assert "event=engine_failed engine=openvino reason='ModuleNotFoundError" in caplog.text


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_installed_engines_pass_the_check_and_are_timed(network, precision, caplog):
    for name in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(name)
    with caplog.at_level(logging.INFO):
        model = choose_engine(network, INFO, precision=precision)
    engines = [record.getMessage().split()[1] for record in caplog.records]
    assert engines == ["engine=torch", "engine=onnxruntime", "engine=openvino"]
    assert model.error < (1e-5 if model.precision == "float32" else 0.02)
    assert model.precision == ("float32" if model.engine == "onnxruntime" else precision)
    assert not is_fused(network)


def test_the_difference_measures_boxes_as_fractions_of_the_side_and_keeps_nan():
    boxes_xyxy, scores = torch.zeros(1, 2, 4), torch.zeros(1, 2, 3)
    shifted = boxes_xyxy.index_fill(1, torch.tensor([1]), 16.0)
    expected = {"boxes_xyxy": boxes_xyxy, "scores": scores}
    assert difference(expected, {"boxes_xyxy": shifted, "scores": scores - 0.125}, 64) == 0.25
    assert difference(expected, expected | {"scores": scores - 0.125}, 64) == 0.125
    assert math.isnan(difference(expected, expected | {"boxes_xyxy": boxes_xyxy * math.nan}, 64))
    assert difference(expected, {"boxes_xyxy": boxes_xyxy[:, :1], "scores": scores[:, :1]}, 64) == math.inf
    assert difference(expected | {"image_labels": scores[0]}, expected, 64) == math.inf
    assert scene_images(96, 3).shape == (3, 96, 96, 3)


def test_the_difference_measures_other_tasks_in_their_own_units():
    expected = {"boxes_xyxy": torch.zeros(1, 2, 4), "scores": torch.zeros(1, 2, 3), "prototypes": torch.full((1, 2, 4, 4), 8.0)}
    expected |= {"keypoints": torch.zeros(1, 2, 5, 3), "embeddings": torch.zeros(1, 2, 8)}
    assert difference(expected, expected | {"prototypes": expected["prototypes"] + 2}, 64) == 0.25
    assert difference(expected, expected | {"embeddings": expected["embeddings"] + 0.5}, 64) == 0.5
    for axis, error in ((0, 0.125), (2, 8.0)):
        keypoints = expected["keypoints"].clone()
        keypoints[..., axis] = 8
        assert difference(expected, expected | {"keypoints": keypoints}, 64) == error
    assert math.isnan(difference(expected, expected | {"keypoints": expected["keypoints"] * math.nan}, 64))


def test_a_side_that_does_not_fit_the_network_is_refused(network):
    with pytest.raises(ConfigError, match="image_px: found 80, expected a multiple of the coarsest stride, 32"):
        choose_engine(network, WeightsInfo("tiny", ("a", "b"), 80))
