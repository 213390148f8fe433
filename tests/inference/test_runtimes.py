"""Engines on small networks: all predict the same as torch, for inputs of any size."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from yolor_ray.config.network import TASKS
from yolor_ray.config.presets import PLAIN
from yolor_ray.inference.runtimes.graph import OUTPUTS, output_names
from yolor_ray.inference.runtimes.onnx_runtime import ONNX_FILE, onnx_files, onnx_predictor
from yolor_ray.inference.runtimes.openvino_runtime import openvino_files, openvino_predictor
from yolor_ray.inference.runtimes.torch_runtime import DecodedYolor, torch_predictor
from yolor_ray.model.fuse import fuse
from yolor_ray.model.weights import WeightsInfo, save_weights

INFO = WeightsInfo("guesses", ("a", "b", "c"), 64, {"AP": 0.25}, "0123456789ab")
SHAPES = [(1, 64, 64), (3, 64, 64), (2, 32, 96), (1, 160, 16), (5, 16, 16)]


@pytest.fixture
def packages():
    for name in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(name)


def pixels(count, height, width):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count + height))


def assert_predicts_like(predictor, network, images):
    with torch.inference_mode():
        expected = DecodedYolor(network)(images)
    torch.testing.assert_close(predictor(images), expected, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "settings", [{}, {"stem": "conv", "down": "downc"}, {"block": "cspf", "joint_norm": True}, {"tasks": TASKS}], ids=str
)
def test_onnx_runtime_predicts_the_same_for_any_shape_of_input(packages, make_network, settings):
    network = make_network(**settings)
    predictor = onnx_predictor(onnx_files(fuse(network), INFO))
    for shape in SHAPES:
        assert_predicts_like(predictor, network, pixels(*shape))


def test_openvino_predicts_the_same_from_its_own_files_and_from_onnx(packages, make_network):
    network = make_network(classes=1, tasks=TASKS)
    fused = fuse(network)
    for files in (openvino_files(fused, INFO), onnx_files(fused, INFO)):
        predictor = openvino_predictor(files)
        for shape in SHAPES:
            assert_predicts_like(predictor, network, pixels(*shape))


def test_openvino_with_a_fixed_side_takes_any_number_of_images(packages, make_network):
    network = make_network()
    predictor = openvino_predictor(onnx_files(fuse(network), INFO), image_px=48)
    for count in (1, 4):
        assert_predicts_like(predictor, network, pixels(count, 48, 48))
    with pytest.raises(RuntimeError):
        predictor(pixels(1, 64, 64))


def test_the_outputs_of_a_call_survive_the_next_call(packages, make_network):
    files = onnx_files(fuse(make_network()), INFO)
    for predictor in (onnx_predictor(files), openvino_predictor(files)):
        first = predictor(pixels(1, 64, 64))
        copy = {name: output.clone() for name, output in first.items()}
        predictor(pixels(2, 64, 64))
        torch.testing.assert_close(first, copy, rtol=0, atol=0)


def test_torch_predicts_the_same_with_channels_last(make_network):
    network = make_network()
    predictor = torch_predictor(fuse(network))
    for shape in SHAPES:
        assert_predicts_like(predictor, network, pixels(*shape))


def test_bfloat16_changes_predictions_slightly(make_network):
    fused = fuse(make_network())
    images = pixels(2, 64, 64)
    exact = torch_predictor(fused)(images)["scores"]
    coarse = torch_predictor(fused, "bfloat16")(images)["scores"]
    assert coarse.dtype == torch.float32
    assert 0 < (exact - coarse).abs().mean() < 0.02


def test_a_graph_describes_its_variable_sides_and_their_step(packages, make_network):
    import onnx

    files = onnx_files(fuse(make_network()), INFO)
    model = onnx.load_from_string(files[ONNX_FILE])
    onnx.checker.check_model(model, full_check=True)
    [image] = model.graph.input
    assert [axis.dim_param or axis.dim_value for axis in image.type.tensor_type.shape.dim] == ["batch", 3, "height", "width"]
    metadata = {item.key: item.value for item in model.metadata_props}
    config = json.loads(files["config.json"])
    assert (json.loads(metadata["stride"]), json.loads(metadata["image_px"])) == (config["stride"], config["image_px"]) == (16, 64)
    assert "H and W any multiples of 16; trained for H = W = 64" in metadata["input"]


def test_a_graph_holds_no_local_path_and_no_training_operator(packages, make_network):
    import onnx

    data = onnx_files(fuse(make_network()), INFO)[ONNX_FILE]
    assert b".py" not in data
    assert not {node.op_type for node in onnx.load_from_string(data).graph.node} & {"BatchNormalization", "If", "Loop", "Dropout"}


SIGNAL_AFTER_PREDICTORS = """
import faulthandler, pathlib, signal, sys
from yolor_ray.inference.runtimes.openvino_runtime import ONNX_FILE, openvino_predictor

faulthandler.enable()  # Handles signals on an alternate stack, as in pytest and in Ray's workers.
received = []
signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
files = {ONNX_FILE: pathlib.Path(sys.argv[1]).read_bytes()}
first = openvino_predictor(files)
second = openvino_predictor(files)
del first
del second
signal.raise_signal(signal.SIGTERM)
print(received)
"""


def test_a_process_survives_a_signal_after_predictors_are_deleted(packages, make_network, tmp_path):
    file = tmp_path / ONNX_FILE
    file.write_bytes(onnx_files(fuse(make_network()), INFO)[ONNX_FILE])
    done = subprocess.run([sys.executable, "-c", SIGNAL_AFTER_PREDICTORS, str(file)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[15]\n"), done.stderr


@pytest.mark.parametrize("tasks", [("detect",), ("detect", "pose"), ("detect", "segment", "classify"), TASKS], ids=str)
def test_the_names_of_outputs_are_those_of_a_forward_pass(make_network, tasks):
    network = make_network(tasks=tasks)
    outputs = DecodedYolor(network)(pixels(1, 32, 32))
    assert output_names(network) == [name for name in OUTPUTS if name in outputs]


@pytest.mark.parametrize("settings", [{}, {"head": "free", "distance_bins": 8}], ids=str)
def test_loading_weights_without_implicit_knowledge_and_naming_outputs_import_no_compiler(make_network, tmp_path, settings):
    info = replace(INFO, image_classes=tuple("def"), keypoint_names=tuple("ghijk"))
    tasks = tuple(task for task in TASKS if task != "embed")
    save_weights(str(tmp_path), make_network(tasks=tasks, implicit=PLAIN, **settings), info)
    program = """
import sys
from yolor_ray.inference.models import load_model
from yolor_ray.inference.runtimes.graph import output_names
output_names(load_model(sys.argv[1])[0])
print(*sys.modules)
"""
    loaded = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded and not {"torch._dynamo", "sympy"} & set(loaded)
