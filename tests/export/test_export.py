"""Exports of small untrained networks with random norms and implicit vectors, so that fusing changes all weights."""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from yolor_ray.config import ExportConfig, NetworkConfig
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.errors import ConfigError, DataError, StorageError, WeightsError
from yolor_ray.export import run as export_module
from yolor_ray.export.run import TOLERANCE, export
from yolor_ray.inference.dataset_images import image_batches
from yolor_ray.inference.detect import to_input
from yolor_ray.inference.parity import compare
from yolor_ray.inference.runtimes.torch_runtime import DecodedYolor
from yolor_ray.io.manifest import is_published, publish, read_published
from yolor_ray.io.storage import exists, join, list_names
from yolor_ray.io.weights_url import CARD_FILE
from yolor_ray.model.fuse import fuse
from yolor_ray.model.implicit import Implicit
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights, save_weights
from yolor_ray.pack.run import pack_scenes

pytestmark = pytest.mark.usefixtures("one_thread")
REPOSITORY = Path(__file__).parents[2]
TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1)
FREE = replace(TINY, head="free")
JOINT = replace(TINY, block="cspf", joint_norm=True, down="downc")
ANCHORS = ((12, 12), (20, 16), (16, 28), (30, 30), (40, 26), (28, 48), (60, 60), (80, 50), (50, 90))
CLASSES = ("red", "green", "blue")
SIDE = 64


def _network(config=TINY, classes=3, seed=3):
    """Make a network with norms and implicit vectors far from their initial values."""
    torch.manual_seed(seed)
    network = Yolor(config, classes, torch.tensor(ANCHORS, dtype=torch.float32).reshape(3, 3, 2))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.momentum = 1.0
        elif isinstance(module, Implicit):
            nn.init.normal_(module.z, mean=module.z.mean().item(), std=0.3)
    with torch.no_grad():
        network.train()(torch.rand(8, 3, 2 * SIDE, 2 * SIDE))
    return network.eval()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Pack six scenes."""
    folder = str(tmp_path_factory.mktemp("scenes"))
    pack_scenes(folder, 6, seed=1, size_px=96)
    return folder


def _save(folder, config):
    info = WeightsInfo("guesses", CLASSES, image_px=SIDE, metrics={"AP": 0.25}, thresholds={CLASSES[1]: 0.3})
    save_weights(folder, _network(config), info)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Save weights as training publishes them: not fused."""
    return _save(str(tmp_path_factory.mktemp("weights")), TINY)


@pytest.fixture(scope="module", params=[TINY, FREE], ids=["anchors", "free"])
def weights_of_each_head(tmp_path_factory, request):
    return _save(str(tmp_path_factory.mktemp("weights")), request.param)


def _pixels(scenes, image_px=SIDE):
    dataset = open_dataset(scenes)
    (batch,) = image_batches(dataset, dataset.row_groups, image_px, 6)
    return to_input(torch.from_numpy(batch.images), torch.device("cpu")).contiguous()


def _expected(weights, pixels):
    with torch.inference_mode():
        return [output.numpy() for output in DecodedYolor(load_weights(weights)[0])(pixels).values()]


def _assert_same(outputs, expected):
    boxes, scores = outputs
    assert boxes.shape == expected[0].shape
    assert np.abs(boxes - expected[0]).max() < TOLERANCE * SIDE
    assert np.abs(scores - expected[1]).max() < TOLERANCE
    assert np.ptp(scores) > 0.01


def test_exported_weights_hold_no_batch_norm_and_no_implicit_tensor(weights, scenes, tmp_path):
    result = export(ExportConfig(weights, str(tmp_path / "fused"), data=scenes))
    network, info = load_weights(result["output"])
    module_types = {type(module) for module in network.modules()}
    assert not module_types & {nn.BatchNorm2d, nn.SyncBatchNorm, Implicit}
    assert not [name for name in network.state_dict() if name.endswith((".z", "running_mean", "running_var"))]
    assert result["parameters"] < sum(p.numel() for p in load_weights(weights)[0].parameters())
    assert (info.fused, info.name, info.classes, info.image_px, info.metrics) == (True, "guesses", CLASSES, SIDE, {"AP": 0.25})


def test_weights_and_data_in_a_bucket_are_exported_into_a_bucket(weights, scenes, s3):
    bucket = s3()
    source, output = join(bucket, "weights"), join(bucket, "fused")
    publish(source, read_published(weights))
    pack_scenes(join(bucket, "scenes"), 2, seed=1, size_px=96)
    result = export(ExportConfig(source, output, data=join(bucket, "scenes")))
    assert (result["output"], result["images"]) == (output, 2)
    assert load_weights(output)[1].fused


@pytest.mark.parametrize("config", [TINY, JOINT, FREE], ids=["main", "joint_norm", "free"])
def test_exported_weights_predict_the_same_as_unfused_weights(config, scenes, tmp_path):
    source, output = str(tmp_path / "source"), str(tmp_path / "fused")
    save_weights(source, _network(config), WeightsInfo("guesses", CLASSES, image_px=SIDE))
    result = export(ExportConfig(source, output, data=scenes, check_images=4))
    assert result["images"] == 4
    assert 0 < result["max_error"] <= TOLERANCE
    assert result["raw_error"] > 0
    pixels = _pixels(scenes)
    _assert_same(_expected(output, pixels), _expected(source, pixels))


def test_a_network_that_amplifies_rounding_is_allowed_a_larger_error(weights, scenes, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(export_module, "TOLERANCE", 1e-12)
    assert export(ExportConfig(weights, str(tmp_path / "fused"), data=scenes))["max_error"] > 1e-12
    assert "this network amplifies the rounding of float32" in caplog.text
    monkeypatch.setattr(export_module, "ROUNDINGS", 1e-3)
    with pytest.raises(WeightsError, match="found predictions that differ by"):
        export(ExportConfig(weights, str(tmp_path / "again"), data=scenes))


def test_fused_weights_can_be_exported_again_unchanged(weights, scenes, tmp_path):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    export(ExportConfig(weights, first, data=scenes))
    assert export(ExportConfig(first, second, data=scenes))["max_error"] == 0
    assert load_weights(first)[1] == load_weights(second)[1]


def test_onnx_runtime_predicts_the_same_for_batches_of_any_size(weights_of_each_head, scenes, tmp_path):
    weights = weights_of_each_head
    onnxruntime = pytest.importorskip("onnxruntime")
    output = str(tmp_path / "onnx")
    result = export(ExportConfig(weights, output, format="onnx", data=scenes))
    assert result["max_error"] <= TOLERANCE
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(join(output, "model.onnx"), options, providers=["CPUExecutionProvider"])
    pixels = _pixels(scenes)
    for batch in (pixels[:1], pixels):
        _assert_same(session.run(["boxes_xyxy", "scores"], {"image": batch.numpy()}), _expected(weights, batch))


def test_an_onnx_file_describes_itself_and_holds_no_local_path(weights, scenes, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    output = tmp_path / "onnx"
    export(ExportConfig(weights, str(output), format="onnx", data=scenes))
    model = onnx.load(output / "model.onnx")
    metadata = {item.key: item.value for item in model.metadata_props}
    config_file = json.loads((output / "config.json").read_text())
    assert json.loads(metadata["classes"]) == config_file["classes"] == list(CLASSES)
    assert json.loads(metadata["thresholds"]) == config_file["thresholds"] == {CLASSES[1]: 0.3}
    assert json.loads(metadata["image_px"]) == config_file["image_px"] == SIDE
    assert (
        (metadata["name"], metadata["version"])
        == (config_file["name"], config_file["version"])
        == ("guesses", load_weights(weights)[1].version)
    )
    assert str(REPOSITORY).encode() not in (output / "model.onnx").read_bytes()
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization", "If", "Loop"}


def test_openvino_predicts_the_same_for_batches_of_any_size(weights_of_each_head, scenes, tmp_path):
    weights = weights_of_each_head
    openvino = pytest.importorskip("openvino")
    output = str(tmp_path / "openvino")
    result = export(ExportConfig(weights, output, format="openvino", data=scenes))
    assert result["max_error"] <= TOLERANCE
    assert list_names(output) == ["config.json", "manifest.json", "model.bin", "model.xml"]
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = openvino.Core().compile_model(join(output, "model.xml"), "CPU", options)
    pixels = _pixels(scenes)
    for batch in (pixels[:1], pixels):
        outputs = model(batch.numpy())
        _assert_same((outputs["boxes_xyxy"], outputs["scores"]), _expected(weights, batch))


def test_a_fuse_that_changes_predictions_is_refused_and_nothing_is_written(weights, scenes, tmp_path, monkeypatch):
    def careless(network):
        fused = fuse(network)
        fused.head.levels[0].predict.bias += 0.01
        return fused

    monkeypatch.setattr(export_module, "fuse", careless)
    output = str(tmp_path / "fused")
    with pytest.raises(WeightsError, match=rf"{weights}: found predictions that differ by .* expected at most 0\.0001 .*6 images"):
        export(ExportConfig(weights, output, data=scenes))
    assert not exists(output)


def test_a_fuse_that_leaves_batch_norm_is_refused(weights, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "fuse", lambda network: network)
    with pytest.raises(WeightsError, match="found batch norm or implicit tensors after fusing, expected none"):
        export(ExportConfig(weights, str(tmp_path / "fused"), data=scenes))


def test_weights_that_are_no_numbers_are_refused(scenes, tmp_path):
    source, output = str(tmp_path / "source"), str(tmp_path / "fused")
    network = _network()
    nn.init.constant_(network.head.levels[2].predict.bias, float("nan"))
    save_weights(source, network, WeightsInfo("broken", CLASSES, image_px=SIDE))
    with pytest.raises(WeightsError, match=r"'head\.levels\.2\.predict\.bias' has values that are not finite"):
        export(ExportConfig(source, output, data=scenes))
    assert not is_published(output)


def test_predictions_that_are_no_numbers_are_within_no_tolerance(scenes):
    network = _network()
    altered = fuse(network)
    nn.init.constant_(altered.head.levels[2].predict.bias, float("nan"))
    written = compare(network, fuse(network), DecodedYolor(altered), open_dataset(scenes), image_px=SIDE, images=1)
    assert not written.max_error <= TOLERANCE


def test_the_largest_difference_of_any_image_is_found(scenes):
    network = _network()
    fused, altered = fuse(network), fuse(network)
    altered.head.levels[1].predict.bias += 0.5
    dataset = open_dataset(scenes)
    same = compare(network, fused, DecodedYolor(fused), dataset, image_px=SIDE, images=6)
    written = compare(network, fused, DecodedYolor(altered), dataset, image_px=SIDE, images=6)
    raw = compare(network, altered, DecodedYolor(fused), dataset, image_px=SIDE, images=6)
    assert same.images == written.images == 6
    assert same.max_error < TOLERANCE < written.max_error == raw.max_error
    assert raw.raw_error == pytest.approx(0.5, abs=1e-3)
    assert written.raw_error == same.raw_error
    expected = _pixels(scenes)
    with torch.inference_mode():
        right, wrong = DecodedYolor(network)(expected), DecodedYolor(altered)(expected)
        gap = [(right[name] - wrong[name]).abs().max().item() for name in ("boxes_xyxy", "scores")]
    assert (written.box_error_px, written.score_error) == pytest.approx(gap, rel=1e-3)
    assert written.max_error == max(written.score_error, written.box_error_px / SIDE)


def test_a_network_of_one_class_exports(scenes, tmp_path):
    pytest.importorskip("onnxruntime")
    source = str(tmp_path / "source")
    save_weights(source, _network(classes=1, seed=4), WeightsInfo("single", ("thing",), image_px=SIDE))
    assert export(ExportConfig(source, str(tmp_path / "onnx"), format="onnx", data=scenes))["max_error"] <= TOLERANCE


def test_another_input_side_is_checked_and_kept(weights, scenes, tmp_path):
    result = export(ExportConfig(weights, str(tmp_path / "fused"), data=scenes, image_px=96))
    assert result["image_px"] == load_weights(result["output"])[1].image_px == 96


@pytest.mark.parametrize("format_name", ["onnx", "openvino"])
def test_an_absent_package_is_named_with_the_command_that_installs_it(format_name, weights, scenes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=rf"format {format_name}: found no onnx; install with: pip install onnx \w+"):
        export(ExportConfig(weights, str(tmp_path / "out"), format=format_name, data=scenes))


def test_our_own_format_needs_no_package(weights, scenes, tmp_path, monkeypatch):
    for name in ("onnx", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    assert export(ExportConfig(weights, str(tmp_path / "out"), data=scenes))["max_error"] <= TOLERANCE


def test_weights_are_never_overwritten_by_their_own_export(weights, scenes):
    with pytest.raises(ConfigError, match="output: found the URL of the weights"):
        export(ExportConfig(weights, f"{weights}/", data=scenes))
    assert not load_weights(weights)[1].fused


@pytest.mark.parametrize("name", ["image_px", "check_px"])
def test_a_side_that_does_not_fit_the_network_is_refused(scenes, tmp_path, name):
    four = replace(TINY, widths=(8, 16, 16, 16, 16), depths=(1, 1, 1, 1, 1), levels=4)
    source = str(tmp_path / "four")
    save_weights(source, Yolor(four, 2, torch.rand(4, 3, 2) + 8), WeightsInfo("four", ("a", "b"), image_px=SIDE))
    with pytest.raises(ConfigError, match=rf"{name}: found 96, expected a multiple of the coarsest stride, 64"):
        export(ExportConfig(source, str(tmp_path / "out"), data=scenes, **{name: 96}))


def test_absent_weights_and_absent_data_are_named(weights, tmp_path):
    with pytest.raises(StorageError, match=r"nowhere/manifest\.json: not found"):
        export(ExportConfig(str(tmp_path / "nowhere"), str(tmp_path / "out")))
    with pytest.raises(DataError, match=r"nodata/dataset\.json: not found"):
        export(ExportConfig(weights, str(tmp_path / "out"), data=str(tmp_path / "nodata")))


def test_exporting_leaves_logging_as_it_was(weights, scenes, tmp_path, caplog):
    pytest.importorskip("onnxruntime")
    with caplog.at_level(logging.INFO):
        export(ExportConfig(weights, str(tmp_path / "onnx"), format="onnx", data=scenes))
    assert [record.name for record in caplog.records] == ["yolor_ray.export.run"]
    assert "event=parity images=6 max_error=" in caplog.text
    assert logging.getLogger("onnx").level == logging.NOTSET


def test_the_job_prints_output_and_error(weights, scenes, tmp_path):
    output = str(tmp_path / "out")
    command = [sys.executable, "jobs/export.py", "--weights", weights, "--format", "safetensors", "--output", output, "--data", scenes]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["output"] == output
    assert result["max_error"] <= TOLERANCE
    assert "event=parity" in done.stderr
    assert is_published(output)


@pytest.mark.parametrize(("format_name", "package"), [("safetensors", "safetensors"), ("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_an_export_has_the_model_card_of_its_weights_and_its_format(weights, scenes, tmp_path, format_name, package):
    pytest.importorskip(package)
    described = tmp_path / "weights"
    shutil.copytree(weights, described)
    (described / CARD_FILE).write_text("# guesses\n\nLicence: ours.\n")
    output = export(ExportConfig(str(described), str(tmp_path / "export"), format=format_name, data=scenes))["output"]
    card = read_published(output)[CARD_FILE].decode()
    assert card == f"# guesses\n\nLicence: ours.\n\n## Export\n\nFused and written as {format_name}.\n"


def test_an_export_of_weights_without_a_card_has_none(weights, scenes, tmp_path):
    assert CARD_FILE not in list_names(export(ExportConfig(weights, str(tmp_path / "export"), data=scenes))["output"])
