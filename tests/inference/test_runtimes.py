"""Graphs of small networks: what other runtimes predict for inputs of any size is what torch predicts."""

import json
import subprocess
import sys

import pytest
import torch

from yolor_ray.config.network import TASKS
from yolor_ray.inference import runtimes
from yolor_ray.model.fuse import fuse
from yolor_ray.model.weights import WeightsInfo

INFO = WeightsInfo("guesses", ("a", "b", "c"), 64, {"AP": 0.25}, "0123456789ab")
SHAPES = [(1, 64, 64), (3, 64, 64), (2, 32, 96), (1, 160, 16), (5, 16, 16)]


@pytest.fixture
def packages():
    for name in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(name)


def pixels(count, height, width):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count + height))


def assert_predicts_like(found, network, images):
    with torch.inference_mode():
        expected = runtimes.DecodedYolor(network)(images)
    torch.testing.assert_close(found(images), expected, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", [{}, {"stem": "conv", "down": "downc"}, {"block": "cspf", "joint_norm": True}, {"tasks": TASKS}], ids=str)
def test_onnx_runtime_predicts_the_same_for_any_number_of_images_of_any_shape(packages, make_network, kind):
    network = make_network(**kind)
    found = runtimes.onnx_predictor(runtimes.onnx_files(fuse(network), INFO))
    for shape in SHAPES:
        assert_predicts_like(found, network, pixels(*shape))


def test_openvino_predicts_the_same_from_its_own_files_and_from_onnx(packages, make_network):
    network = make_network(classes=1, tasks=TASKS)
    fused = fuse(network)
    for files in (runtimes.openvino_files(fused, INFO), runtimes.onnx_files(fused, INFO)):
        found = runtimes.openvino_predictor(files)
        for shape in SHAPES:
            assert_predicts_like(found, network, pixels(*shape))


def test_openvino_for_one_side_takes_any_number_of_images_of_it(packages, make_network):
    network = make_network()
    found = runtimes.openvino_predictor(runtimes.onnx_files(fuse(network), INFO), image_px=48)
    for count in (1, 4):
        assert_predicts_like(found, network, pixels(count, 48, 48))
    with pytest.raises(RuntimeError):
        found(pixels(1, 64, 64))


def test_the_answer_of_one_call_outlives_the_next(packages, make_network):
    files = runtimes.onnx_files(fuse(make_network()), INFO)
    for found in (runtimes.onnx_predictor(files), runtimes.openvino_predictor(files)):
        first = found(pixels(1, 64, 64))
        kept = {name: part.clone() for name, part in first.items()}
        found(pixels(2, 64, 64))
        torch.testing.assert_close(first, kept, rtol=0, atol=0)


def test_torch_predicts_the_same_with_channels_last(make_network):
    network = make_network()
    found = runtimes.torch_predictor(fuse(network))
    for shape in SHAPES:
        assert_predicts_like(found, network, pixels(*shape))


def test_bfloat16_moves_predictions_but_little(make_network):
    fused = fuse(make_network())
    images = pixels(2, 64, 64)
    exact = runtimes.torch_predictor(fused)(images)["scores"]
    coarse = runtimes.torch_predictor(fused, "bfloat16")(images)["scores"]
    assert coarse.dtype == torch.float32
    assert 0 < (exact - coarse).abs().mean() < 0.02


def test_a_graph_says_that_its_sides_may_vary_and_by_what_step(packages, make_network):
    import onnx

    files = runtimes.onnx_files(fuse(make_network()), INFO)
    model = onnx.load_from_string(files[runtimes.ONNX_FILE])
    onnx.checker.check_model(model, full_check=True)
    [image] = model.graph.input
    assert [axis.dim_param or axis.dim_value for axis in image.type.tensor_type.shape.dim] == ["batch", 3, "height", "width"]
    inside = {item.key: item.value for item in model.metadata_props}
    beside = json.loads(files["config.json"])
    assert (json.loads(inside["stride"]), json.loads(inside["image_px"])) == (beside["stride"], beside["image_px"]) == (16, 64)
    assert "H and W any multiples of 16; trained for H = W = 64" in inside["input"]


def test_a_graph_keeps_no_path_of_the_machine_and_no_training_operator(packages, make_network):
    import onnx

    data = runtimes.onnx_files(fuse(make_network()), INFO)[runtimes.ONNX_FILE]
    assert b".py" not in data
    assert not {node.op_type for node in onnx.load_from_string(data).graph.node} & {"BatchNormalization", "If", "Loop", "Dropout"}


SIGNALLED = """
import faulthandler, pathlib, signal, sys
from yolor_ray.model import graph

faulthandler.enable()  # So that signals are taken on a stack of their own, as in pytest and in Ray's workers.
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
files = {graph.ONNX_FILE: pathlib.Path(sys.argv[1]).read_bytes()}
first = graph.openvino_predictor(files)
second = graph.openvino_predictor(files)
del first
del second
signal.raise_signal(signal.SIGTERM)
print(heard)
"""


def test_a_process_that_dropped_predictors_hears_signals(packages, make_network, tmp_path):
    file = tmp_path / runtimes.ONNX_FILE
    file.write_bytes(runtimes.onnx_files(fuse(make_network()), INFO)[runtimes.ONNX_FILE])
    done = subprocess.run([sys.executable, "-c", SIGNALLED, str(file)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[15]\n"), done.stderr
