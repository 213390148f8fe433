"""Exports of upstream checkpoints: the imported weights, their class names and the recognised network."""

import logging
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from yolor_ray.config import ExportConfig, presets
from yolor_ray.errors import ConfigError, DataError, WeightsError
from yolor_ray.export.run import TOLERANCE, export
from yolor_ray.io.manifest import is_published
from yolor_ray.io.storage import exists
from yolor_ray.model.upstream.coco_names import COCO_CLASSES
from yolor_ray.model.upstream.family import make_meta_network
from yolor_ray.model.upstream.layouts import POOLED_CONV, ordered_tensor_names, reverse_pool_order
from yolor_ray.model.weights import load_weights
from yolor_ray.pack.run import pack_scenes

REPOSITORY = Path(__file__).parents[2]
WIDTHS = (8, 16, 24, 32, 40)
TITLE = "YOLOR-CSP with other widths: stem 8, stages 8, 16, 24, 32, 40"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Pack four scenes."""
    folder = str(tmp_path_factory.mktemp("scenes"))
    pack_scenes(folder, 4, seed=1, size_px=96)
    return folder


def random_tensor(name, shape):
    suffix = name.rsplit(".", 1)[-1]
    if suffix in ("running_var", "weight") and len(shape) == 1:
        return 0.8 + 0.4 * torch.rand(shape)
    scale = 1 / shape[1:].numel() ** 0.5 if len(shape) == 4 else 0.1
    return torch.zeros(shape) if suffix == "num_batches_tracked" else scale * torch.randn(shape)


def network(classes):
    """Make a narrow YOLOR-CSP with random tensors."""
    torch.manual_seed(7)
    made = make_meta_network(replace(presets.CSP, stem_width=8, widths=WIDTHS), classes).to_empty(device="cpu")
    made.load_state_dict({name: random_tensor(name, tensor.shape) for name, tensor in made.state_dict().items()})
    return made


def checkpoint(path, classes=3):
    """Write a checkpoint like the main branch and return its network."""
    made = network(classes)
    tensors = made.state_dict()
    tensors[POOLED_CONV] = reverse_pool_order(tensors[POOLED_CONV])
    named = OrderedDict()
    section = -1
    for name in ordered_tensor_names(made, "main"):
        tensor_name = name.rsplit(".", 1)[-1]
        if name.endswith((".conv.weight", ".z", "predict.weight")):
            section += 1
        module_tensor = "implicit" if tensor_name == "z" else f"BatchNorm2d.{tensor_name}" if ".norm." in name else f"Conv2d.{tensor_name}"
        named[f"module_list.{section}.{module_tensor}"] = tensors[name].view(1, -1, 1, 1) if tensor_name == "z" else tensors[name]
    torch.save({"epoch": -1, "model": named, "best_fitness": np.array([0.4])}, path)
    return made


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    path = tmp_path_factory.mktemp("upstream") / "last.pt"
    return str(path), checkpoint(path)


def test_an_imported_checkpoint_is_a_weights_folder_that_can_be_trained_further(upstream, scenes, tmp_path):
    path, made = upstream
    result = export(ExportConfig(upstream=path, output=str(tmp_path / "out"), data=scenes))
    assert (result["network"], result["layout"], result["classes"]) == (TITLE, "main", 3)
    assert (result["max_error"], result["images"], result["image_px"], result["check_px"]) == (0, 4, 640, 256)
    read, info = load_weights(result["output"])
    assert (info.name, info.classes, info.image_px, info.fused) == (TITLE, ("class0", "class1", "class2"), 640, False)
    assert result["parameters"] == sum(tensor.numel() for tensor in made.parameters())
    kept = read.state_dict()
    for name, tensor in made.state_dict().items():
        if name != "head.anchors":
            assert torch.equal(kept[name], tensor), name
    assert kept["head.anchors"][0].tolist() == [[12, 16], [19, 36], [40, 28]]


def test_an_imported_folder_is_fused_by_a_second_export(upstream, scenes, tmp_path):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    export(ExportConfig(upstream=upstream[0], output=first, data=scenes))
    result = export(ExportConfig(first, second, data=scenes, image_px=64))
    assert load_weights(second)[1].fused
    assert 0 < result["max_error"] <= TOLERANCE


def test_the_graph_is_of_the_fused_network(upstream, scenes, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    output = tmp_path / "onnx"
    result = export(ExportConfig(upstream=upstream[0], output=str(output), format="onnx", data=scenes, image_px=64))
    assert (result["network"], result["image_px"], result["check_px"]) == (TITLE, 64, 64)
    assert result["max_error"] <= TOLERANCE
    assert not {node.op_type for node in onnx.load(output / "model.onnx").graph.node} & {"BatchNormalization"}


def test_class_names_are_read_from_a_given_file(upstream, scenes, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("red\ngreen\nblue\n")
    result = export(ExportConfig(upstream=upstream[0], output=str(tmp_path / "out"), names=str(names), data=scenes))
    assert load_weights(result["output"])[1].classes == ("red", "green", "blue")


def test_a_wrong_number_of_names_is_refused(upstream, scenes, tmp_path):
    names, output = tmp_path / "names.txt", str(tmp_path / "out")
    names.write_text("red\ngreen\n")
    with pytest.raises(ConfigError, match=r"names: found 2 in .*names\.txt, expected 3, as many as the network has classes"):
        export(ExportConfig(upstream=upstream[0], output=output, names=str(names), data=scenes))
    names.write_text("red\nred\nblue\n")
    with pytest.raises(DataError, match="each once"):
        export(ExportConfig(upstream=upstream[0], output=output, names=str(names), data=scenes))
    assert not exists(output)


def test_eighty_classes_are_named_like_coco_and_others_by_number(upstream, scenes, tmp_path, caplog):
    checkpoint(tmp_path / "coco.pt", classes=80)
    result = export(ExportConfig(upstream=str(tmp_path / "coco.pt"), output=str(tmp_path / "out"), data=scenes))
    assert load_weights(result["output"])[1].classes == COCO_CLASSES
    assert (len(set(COCO_CLASSES)), COCO_CLASSES[0], COCO_CLASSES[15], COCO_CLASSES[79]) == (80, "person", "cat", "toothbrush")
    assert "unnamed_classes" not in caplog.text
    export(ExportConfig(upstream=upstream[0], output=str(tmp_path / "three"), data=scenes))
    assert "event=unnamed_classes classes=3" in caplog.text


def test_the_recognised_network_and_the_origin_of_anchors_are_logged(upstream, scenes, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        export(ExportConfig(upstream=upstream[0], output=str(tmp_path / "out"), data=scenes))
    assert f"network='{TITLE}' layout=main classes=3" in caplog.text
    assert "event=default_anchors" in caplog.text
    assert "the upstream ones are used" in caplog.text


def test_exactly_one_source_and_an_output_are_required():
    for given in ({}, {"weights": "a", "upstream": "b"}):
        with pytest.raises(ConfigError, match=r"export: found '(neither|weights and upstream)', expected either weights or upstream"):
            ExportConfig(output="out", **given)
    with pytest.raises(ConfigError, match="output: found '', expected the URL of a folder to write"):
        ExportConfig("weights")
    with pytest.raises(ConfigError, match=r"names: found 'n\.txt', expected upstream beside names"):
        ExportConfig("weights", "out", names="n.txt")


def test_an_unusable_file_is_refused_and_nothing_is_written(upstream, scenes, tmp_path):
    (tmp_path / "empty.pt").touch()
    with pytest.raises(WeightsError, match="found an empty file"):
        export(ExportConfig(upstream=str(tmp_path / "empty.pt"), output=str(tmp_path / "out"), data=scenes))
    assert not exists(str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="output: found the URL of the weights"):
        export(ExportConfig(upstream=upstream[0], output=upstream[0], data=scenes))


@pytest.mark.parametrize("branch", ["main", "paper"])
def test_the_real_file_of_each_branch_is_imported(branch, shared, scenes, tmp_path):
    output = str(tmp_path / branch)
    result = export(ExportConfig(upstream=str(shared / f"parity/{branch}_p6_narrow.pt"), output=output, data=scenes))
    assert (result["layout"], result["classes"], result["output"], result["max_error"]) == (branch, 3, output, 0)
    assert result["network"].startswith("YOLOR-P6 with other widths")
    assert is_published(output)


class Hostile:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_the_job_refuses_a_hostile_file_with_status_2(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "last.pt"
    torch.save({"model": {"module_list.0.Conv2d.weight": torch.zeros(8, 3, 3, 3)}, "names": Hostile(canary)}, path)
    command = [sys.executable, "jobs/export.py", "--upstream", str(path), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the file asks for 'posix.system'; nothing of it was run" in done.stderr
    assert "Traceback" not in done.stderr
    assert not canary.exists()
    pickle.loads(pickle.dumps(Hostile(canary)))
    assert canary.exists()
