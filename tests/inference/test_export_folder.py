"""Exports as models: each runs by its own engine and predicts what its weights predict; anything else is refused by name."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from damages import DAMAGES
from exported import ENGINES, change_config, change_onnx, export_weights, republish
from networks import tiny_network
from yolor_ray.config.network import TASKS
from yolor_ray.errors import ConfigError, IntegrityError, UserError, WeightsError
from yolor_ray.export.run import TOLERANCE
from yolor_ray.inference.detect import to_input
from yolor_ray.inference.engine_choice import choose_engine, scene_images
from yolor_ray.inference.models import load_model
from yolor_ray.inference.parity import difference
from yolor_ray.inference.runtimes.torch_runtime import DecodedYolor
from yolor_ray.io import manifest, storage
from yolor_ray.io.weights_url import CONFIG_FILE, ONNX_FILE, OPENVINO_FILES
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights, save_weights

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 64
INFO = WeightsInfo(
    **{"name": "tiny", "classes": ("a", "ü"), "image_px": SIDE, "metrics": {"AP": 0.25}, "thresholds": {"ü": 0.3}},
    **{"image_classes": tuple("efg"), "keypoint_names": tuple("ijklm"), "class_keypoints": {"a": ("j",), "ü": tuple("miklj")}},
)


@pytest.fixture(autouse=True)
def packages():
    for name in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Weights, by the name `weights`, and their exports, by format."""
    folder = tmp_path_factory.mktemp("exports")
    save_weights(str(folder / "weights"), tiny_network(classes=2, tasks=TASKS), INFO)
    return {"weights": str(folder / "weights")} | {
        name: export_weights(str(folder / "weights"), str(folder / name), name) for name in ENGINES
    }


@pytest.fixture
def onnx_folder(folders, tmp_path):
    return shutil.copytree(folders["onnx"], tmp_path / "onnx").as_posix()


@pytest.fixture
def openvino_folder(folders, tmp_path):
    return shutil.copytree(folders["openvino"], tmp_path / "openvino").as_posix()


def pixels(side=SIDE):
    return to_input(torch.from_numpy(scene_images(side, 3)), torch.device("cpu"))


def run(url, **options):
    """Load an export, and make it runnable."""
    return choose_engine(*load_model(url), **options)


def expected_outputs(weights, side=SIDE):
    with torch.inference_mode():
        return DecodedYolor(load_weights(weights)[0])(pixels(side))


@pytest.mark.parametrize("format_name", ENGINES)
def test_an_export_runs_by_its_own_engine_and_predicts_what_its_weights_predict(folders, format_name):
    model = run(folders[format_name])
    assert (model.engine, model.precision, model.threads, model.error) == (ENGINES[format_name], "float32", 1, 0.0)
    assert difference(expected_outputs(folders["weights"]), model.predict(pixels()), SIDE) <= TOLERANCE


@pytest.mark.parametrize("format_name", ENGINES)
def test_an_export_is_described_as_its_weights(folders, format_name):
    described, (_, expected) = load_model(folders[format_name])[1], load_weights(folders["weights"])
    assert described.fused and not expected.fused
    for name in ("name", "version", "classes", "image_px", "metrics", "thresholds", "image_classes", "keypoint_names", "class_keypoints"):
        assert getattr(described, name) == getattr(expected, name), name
    assert described.tasks == expected.tasks == TASKS


@pytest.mark.parametrize("format_name", ENGINES)
def test_an_export_is_read_from_a_bucket(folders, format_name, s3):
    url = storage.join(s3(), "export")
    manifest.publish(url, manifest.read_published(folders[format_name]))
    assert difference(expected_outputs(folders["weights"]), run(url).predict(pixels()), SIDE) <= TOLERANCE


def test_weights_and_the_folder_of_a_run_are_loaded_as_before(folders, tmp_path):
    shutil.copytree(folders["weights"], tmp_path / "run" / "weights")
    for url in (folders["weights"], str(tmp_path / "run")):
        network, info = load_model(url)
        assert isinstance(network, Yolor) and info == load_weights(folders["weights"])[1]


def test_an_export_runs_at_another_side_that_fits_its_stride(folders):
    export, info = load_model(folders["onnx"])
    other = choose_engine(export, WeightsInfo(**{**vars(INFO), "image_px": 96, "tasks": info.tasks}))
    assert difference(expected_outputs(folders["weights"], 96), other.predict(pixels(96)), 96) <= TOLERANCE
    with pytest.raises(ConfigError, match="image_px: found 72, expected a multiple of the coarsest stride, 16"):
        choose_engine(export, WeightsInfo("tiny", ("a", "ü"), 72))


def test_bfloat16_is_compared_with_the_float32_of_the_export(folders):
    model = run(folders["openvino"], precision="bfloat16")
    assert model.precision == "bfloat16" and 0 <= model.error < 0.05
    assert run(folders["onnx"], precision="bfloat16").precision == "float32"


@pytest.mark.parametrize(("format_name", "engine"), [("onnx", "torch"), ("onnx", "openvino"), ("openvino", "torch")])
def test_another_engine_is_refused_because_an_export_has_its_own(folders, format_name, engine):
    own = ENGINES[format_name]
    with pytest.raises(ConfigError, match=f"engine: found '{engine}', expected {own} or fastest: .* has its own engine"):
        run(folders[format_name], engine=engine)
    assert run(folders[format_name], engine=own).engine == own


def test_a_gpu_is_refused(folders):
    with pytest.raises(ConfigError, match=r"device: found 'cuda', expected cpu: .* computes on the CPU"):
        load_model(folders["onnx"])[0].to(torch.device("cuda"))


@pytest.mark.parametrize(("format_name", "package"), [("onnx", "onnx"), ("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_an_absent_package_is_named_with_the_extra(folders, format_name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"found no {package}; install with: pip install .*the extra `export`"):
        run(folders[format_name])


# Exports of older versions.


def drop_metadata(url, format_name):
    """Drop the metadata in the graph file."""
    if format_name == "onnx":
        change_onnx(url, without_metadata)
    else:
        republish(
            url, {"model.xml": re.sub(rb"<model_info>.*</model_info>", b"", manifest.read_published(url)["model.xml"], flags=re.DOTALL)}
        )


def without_metadata(model):
    del model.metadata_props[:]


@pytest.mark.parametrize("format_name", ENGINES)
def test_an_export_of_an_older_version_has_the_tasks_of_its_outputs_and_no_thresholds(folders, format_name, tmp_path):
    url = shutil.copytree(folders[format_name], tmp_path / "old").as_posix()
    change_config(url, tasks=None, thresholds=None, class_keypoints=None)
    drop_metadata(url, format_name)
    info = load_model(url)[1]
    assert (info.tasks, info.thresholds) == (TASKS, {})
    assert info.class_keypoints == {"a": tuple("ijklm"), "ü": tuple("ijklm")}
    assert difference(expected_outputs(folders["weights"]), run(url).predict(pixels()), SIDE) <= TOLERANCE


def test_an_export_without_a_version_has_the_hash_of_its_graph(onnx_folder):
    change_config(onnx_folder, version="")
    change_onnx(onnx_folder, lambda model: next(item for item in model.metadata_props if item.key == "version").ClearField("value"))
    entry = manifest.read_manifest(onnx_folder)[ONNX_FILE]
    assert load_model(onnx_folder)[1].version == entry.sha256[:12]
    assert run(onnx_folder).engine == "onnxruntime"


# Damaged exports.


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", [CONFIG_FILE, ONNX_FILE, manifest.MANIFEST])
def test_every_damage_of_every_file_is_refused_and_the_folder_is_named(onnx_folder, file, damage):
    damage(Path(onnx_folder, file))
    with pytest.raises(UserError, match=onnx_folder):
        load_model(onnx_folder)


@pytest.mark.parametrize("part", [slice(0), slice(1000), slice(-20)], ids=["empty", "start", "without_the_end"])
@pytest.mark.parametrize("file", [ONNX_FILE, *OPENVINO_FILES])
def test_a_cut_graph_whose_manifest_fits_is_refused(folders, tmp_path, file, part):
    url = shutil.copytree(folders["onnx" if file == ONNX_FILE else "openvino"], tmp_path / "cut").as_posix()
    republish(url, {file: manifest.read_published(url)[file][part]})
    with pytest.raises(
        WeightsError,
        match=rf"{url}: (found a graph that \w+ cannot (open|compile|run) .*expected a whole export|found no input|model\.xml:)",
    ):
        run(url)


def test_a_graph_without_its_second_file_is_refused(openvino_folder):
    republish(openvino_folder, {"model.bin": None})
    with pytest.raises(IntegrityError, match=r"found config\.json, model\.xml in manifest\.json, expected also model\.bin"):
        load_model(openvino_folder)


def test_an_export_without_a_manifest_is_incomplete_and_not_an_unfinished_run(onnx_folder):
    Path(onnx_folder, manifest.MANIFEST).unlink()
    with pytest.raises(UserError, match=r"manifest\.json: not found"):
        load_model(onnx_folder)


def test_a_folder_with_two_graphs_is_refused(onnx_folder, folders):
    republish(onnx_folder, {name: manifest.read_published(folders["openvino"])[name] for name in OPENVINO_FILES})
    with pytest.raises(IntegrityError, match=r"found graphs as onnx and openvino .*expected one export per folder"):
        load_model(onnx_folder)


@pytest.mark.parametrize("name", [ONNX_FILE, "model.xml", "model.bin"])
def test_a_file_of_an_export_is_refused_with_the_folder_that_is_expected(folders, name):
    folder = folders["onnx" if name == ONNX_FILE else "openvino"]
    with pytest.raises(WeightsError, match="found a file of an export, expected the folder that `yolor-ray export` wrote"):
        load_model(storage.join(folder, name))


def test_training_refuses_an_export_by_name(folders):
    with pytest.raises(WeightsError, match="found an export as onnx, which can only predict, expected weights with tensors"):
        load_weights(folders["onnx"])


# Graphs that do not fit their metadata.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "other"}, r"found format and version \('other', 1\), expected \('yolor_ray.graph', 1\)"),
        ({"format_version": 2}, "found format and version"),
        ({"classes": []}, r"classes: found \[\], expected a list of at least one name"),
        ({"classes": ["a", "\x1b[31m"]}, "classes: found"),
        ({"image_px": 63}, "image_px: found 63, expected a positive multiple of 32"),
        ({"image_px": 10**9}, "image_px: found 1000000000"),
        ({"stride": 48}, "image_px: found 64 beside stride 48, expected a multiple of the stride"),
        ({"stride": 0}, "stride: found 0, expected a positive number"),
        ({"stride": None}, r"keys \['stride'\] are missing"),
        ({"thresholds": {"a": 2}}, "thresholds: found"),
        ({"thresholds": {"b": 0.5}}, "thresholds: found 'b', expected names among classes"),
        ({"class_keypoints": {"a": ["k"]}}, "class_keypoints: found"),
        ({"outputs": 3}, "outputs: found 3, expected text"),
        ({"tasks": ["classify"]}, r"tasks: found \['classify'\], expected detect"),
        ({"tasks": ["detect", "fly"]}, "tasks: found"),
        ({"tasks": [["detect"]]}, "tasks: found"),
        ({"tasks": 3}, "tasks: found 3"),
        ({"version": 3}, "version: found 3"),
    ],
    ids=str,
)
def test_metadata_out_of_range_is_refused(onnx_folder, values, message):
    change_config(onnx_folder, **values)
    with pytest.raises(WeightsError, match=f"{onnx_folder}/config.json: {message}"):
        load_model(onnx_folder)


@pytest.mark.parametrize("text", [b"", b"[]", b"[" * 100_000, b"\xff\xfe"], ids=["empty", "list", "nested", "binary"])
def test_metadata_that_is_no_json_object_is_refused(onnx_folder, text):
    republish(onnx_folder, {CONFIG_FILE: text})
    with pytest.raises(WeightsError, match=f"{onnx_folder}/config.json: "):
        load_model(onnx_folder)


@pytest.mark.parametrize("format_name", ENGINES)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"classes": ["ü", "a"]},
            r'found classes \["\\u00fc", "a"\] in config.json and \["a", "\\u00fc"\] in the graph, expected the same',
        ),
        ({"image_px": 96}, "found image_px 96 in config.json and 64 in the graph"),
        ({"version": "0123456789ab"}, "found version 0123456789ab in config.json and"),
        ({"tasks": ["detect"]}, "found the outputs .*image_labels.* in the graph, expected boxes_xyxy, scores, as config.json says"),
    ],
    ids=["classes", "image_px", "version", "tasks"],
)
def test_metadata_of_another_graph_is_refused(folders, tmp_path, format_name, values, message):
    url = shutil.copytree(folders[format_name], tmp_path / "other").as_posix()
    change_config(url, **values)
    with pytest.raises(WeightsError, match=message):
        run(url)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": ["a", "ü", "o"], "class_keypoints": None}, r"output scores: found the shape \(2, \d+, 2\), expected \(2, \d+, 3\)"),
        ({"image_classes": ["e"]}, r"output image_labels: found the shape \(2, 3\), expected \(2, 1\)"),
        ({"keypoint_names": ["i", "j"], "class_keypoints": None}, r"output keypoints: found the shape \(2, \d+, 5, 3\), expected"),
    ],
    ids=["classes", "image_classes", "keypoints"],
)
def test_outputs_of_another_number_than_the_names_are_refused(onnx_folder, values, message):
    change_onnx(onnx_folder, without_metadata)
    change_config(onnx_folder, **values)
    with pytest.raises(WeightsError, match=message):
        run(onnx_folder)


def set_side(model, side):
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_value = side


def rename_input(model):
    [first] = [node for node in model.graph.node if "image" in node.input][:1]
    model.graph.input[0].name = "picture"
    for node in model.graph.node:
        node.input[:] = ["picture" if name == "image" else name for name in node.input]
    assert first


def rename_output(model):
    model.graph.node.add(op_type="Identity", input=["scores"], output=["points"])
    model.graph.output[1].name = "points"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: set_side(model, 32), r"found image \(any, 3, 32, 32\) in the graph, expected the input image \(any, 3, 64, 64\)"),
        (rename_input, r"found picture \(any, 3, any, any\) in the graph, expected the input image"),
        (rename_output, "found the outputs .*points.* in the graph, expected .*scores"),
        (lambda model: model.graph.output.pop(), "found the outputs"),
    ],
    ids=["side", "input", "output", "fewer_outputs"],
)
def test_a_graph_with_other_inputs_or_outputs_is_refused(onnx_folder, change, message):
    change_onnx(onnx_folder, change)
    with pytest.raises(WeightsError, match=message):
        run(onnx_folder)


def test_a_graph_of_the_fixed_side_of_its_metadata_runs(onnx_folder, folders):
    change_onnx(onnx_folder, lambda model: set_side(model, SIDE))
    assert difference(expected_outputs(folders["weights"]), run(onnx_folder).predict(pixels()), SIDE) <= TOLERANCE


def test_outputs_that_are_no_numbers_are_refused(onnx_folder):
    def poison(model):
        for tensor in model.graph.initializer:
            if tensor.data_type == tensor.FLOAT and len(tensor.dims) == 4:
                tensor.raw_data = b"\xff\xff\xff\x7f" * (len(tensor.raw_data) // 4)

    change_onnx(onnx_folder, poison)
    with pytest.raises(WeightsError, match=r"values of torch\.float32 that are not finite, expected none"):
        run(onnx_folder)


# External data of ONNX.


def move_out(model, location, **fields):
    """Name another file as the place of the largest tensor, and return the bytes of the tensor."""
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=str(value))
    return data


def test_external_data_in_a_listed_file_of_the_folder_are_read(onnx_folder, folders):
    moved = []
    change_onnx(onnx_folder, lambda model: moved.append(move_out(model, "numbers.bin", offset=8)))
    republish(onnx_folder, {"numbers.bin": b"skipped!" + moved[0]})
    assert difference(expected_outputs(folders["weights"]), run(onnx_folder).predict(pixels()), SIDE) <= TOLERANCE


@pytest.mark.parametrize(
    "location", ["../secret.bin", "ABSOLUTE", "sub/../../secret.bin", "missing.bin", "", "*/_ORT_MEM_ADDR_/*", "beside.bin"]
)
def test_external_data_outside_of_the_folder_are_refused_before_the_engine_opens_the_graph(onnx_folder, location, monkeypatch):
    secret = Path(onnx_folder).parent / "secret.bin"
    moved = []
    change_onnx(onnx_folder, lambda model: moved.append(move_out(model, str(secret) if location == "ABSOLUTE" else location)))
    for path in (secret, Path(onnx_folder, "beside.bin")):
        # `beside.bin` is in the folder, but not in the manifest.
        path.write_bytes(moved[0])
    monkeypatch.chdir(onnx_folder)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("the engine opened the graph"))
    with pytest.raises(
        WeightsError, match=rf"{onnx_folder}: found external data in .* expected a file inside of the folder .*nothing was read"
    ):
        run(onnx_folder)


def test_external_data_behind_a_link_that_leaves_the_folder_are_refused(onnx_folder):
    moved, secret = [], Path(onnx_folder).parent / "secret.bin"
    change_onnx(onnx_folder, lambda model: moved.append(move_out(model, "numbers.bin")))
    secret.write_bytes(moved[0])
    republish(onnx_folder, {"numbers.bin": moved[0]})
    Path(onnx_folder, "numbers.bin").unlink()
    Path(onnx_folder, "numbers.bin").symlink_to(secret)
    with pytest.raises(WeightsError, match=r"found external data in 'numbers\.bin', expected a file inside of the folder"):
        run(onnx_folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"offset": 8}, r"cannot (compile|run)"),
        ({"length": 10**9}, r"found external data from byte 0 to 1000000000 of 'numbers.bin', expected a part of its \d+ bytes"),
        ({"offset": -8}, "found external data from byte -8"),
        ({"offset": "x"}, "expected offset and length in bytes"),
    ],
    ids=str,
)
def test_external_data_that_are_too_short_are_refused(onnx_folder, fields, message):
    moved = []
    change_onnx(onnx_folder, lambda model: moved.append(move_out(model, "numbers.bin", **fields)))
    republish(onnx_folder, {"numbers.bin": moved[0]})
    with pytest.raises(WeightsError, match=message):
        run(onnx_folder)


def test_external_data_of_attributes_and_subgraphs_are_found(onnx_folder):
    def hide(model):
        import onnx

        constant = model.graph.node.add(op_type="Constant", output=["unused"]).attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
        constant.t.name, constant.t.data_location = "hidden", onnx.TensorProto.EXTERNAL
        constant.t.external_data.add(key="location", value="/etc/passwd")

    change_onnx(onnx_folder, hide)
    with pytest.raises(WeightsError, match="found external data in '/etc/passwd'"):
        run(onnx_folder)


def test_an_onnx_file_under_the_name_of_an_openvino_file_is_refused(openvino_folder, folders):
    # OpenVINO would read it, and open the files that it names.
    republish(openvino_folder, {"model.xml": manifest.read_published(folders["onnx"])[ONNX_FILE]})
    with pytest.raises(WeightsError, match=rf"{openvino_folder}: model\.xml: found b'.*' at its start, expected b'<\?xml'"):
        run(openvino_folder)


def test_the_engine_opens_no_file_of_the_working_directory(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert json.loads(manifest.read_published(folders["onnx"])[CONFIG_FILE])["tasks"] == list(TASKS)
    run(folders["onnx"])
    assert os.listdir(tmp_path) == []  # noqa: PTH208
