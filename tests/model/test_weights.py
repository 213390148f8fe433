"""Weights folders: saved weights are read back unchanged, altered folders are refused."""

import hashlib
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from damages import DAMAGES
from yolor_ray.errors import StorageError, UserError, WeightsError
from yolor_ray.io import manifest, storage
from yolor_ray.io.weights_url import BUILTIN, absolute_weights, weights_folder
from yolor_ray.model.fuse import fuse
from yolor_ray.model.weights import CONFIG_FILE, TENSORS_FILE, WeightsInfo, load_weights, save_weights

INFO = WeightsInfo("run-7", ("cat", "dög", "bird"), 320, {"AP": 0.5, "AP50": 0.75}, thresholds={"dög": 0.4125})


@pytest.fixture
def folder(make_network, tmp_path):
    """Return the URL of a weights folder with a network."""
    url = str(tmp_path / "weights")
    save_weights(url, make_network(), INFO)
    return url


def republish(url: str, config: dict | bytes | None = None, tensors: dict[str, torch.Tensor] | bytes | None = None) -> None:
    """Replace contents of a weights folder, with a manifest that fits the new contents."""
    files = manifest.read_published(url)
    if config is not None:
        files[CONFIG_FILE] = config if isinstance(config, bytes) else json.dumps(json.loads(files[CONFIG_FILE]) | config).encode()
    if tensors is not None:
        files[TENSORS_FILE] = tensors if isinstance(tensors, bytes) else safetensors.torch.save(tensors)
    manifest.publish(url, files)


def tensors_of(url: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(storage.read_bytes(storage.join(url, TENSORS_FILE)))


@pytest.mark.parametrize("settings", [{"stem": "conv"}, {"block": "cspf", "joint_norm": True, "down": "downc"}])
@pytest.mark.parametrize("fused", [False, True])
def test_saved_weights_are_read_back_unchanged(make_network, tmp_path, settings, fused):
    network = fuse(make_network(**settings)) if fused else make_network(**settings)
    save_weights(str(tmp_path), network, INFO)
    loaded, info = load_weights(str(tmp_path))
    assert (info.name, info.classes, info.image_px, info.metrics, info.fused) == ("run-7", INFO.classes, 320, INFO.metrics, fused)
    assert info.thresholds == {"dög": 0.4125}
    assert info.version == hashlib.sha256((tmp_path / TENSORS_FILE).read_bytes()).hexdigest()[:12]
    assert loaded.config == network.config
    assert not loaded.training
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in network.state_dict().items())
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(network(image)["detect"], loaded(image)["detect"], strict=True))


def test_equal_networks_have_equal_versions_and_different_networks_different_ones(make_network, tmp_path):
    versions = []
    for number, seed in enumerate((1, 1, 2)):
        save_weights(str(tmp_path / str(number)), make_network(seed=seed), INFO)
        versions.append(load_weights(str(tmp_path / str(number)))[1].version)
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", [CONFIG_FILE, TENSORS_FILE, manifest.MANIFEST])
def test_every_damage_of_every_file_is_refused_and_the_file_is_named(folder, file, damage):
    damage(Path(folder, file))
    with pytest.raises(UserError, match=f"{folder}/{'' if file == manifest.MANIFEST else file + ': '}"):
        load_weights(folder)


def test_a_file_larger_than_the_memory_is_refused_by_its_size(folder):
    with Path(folder, TENSORS_FILE).open("r+b") as file:
        file.truncate(100 << 30)
    with pytest.raises(StorageError, match=rf"{folder}/{TENSORS_FILE}: found {100 << 30} bytes, expected"):
        load_weights(folder)


def test_a_folder_without_weights_is_refused_and_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/nothing"):
        load_weights(str(tmp_path / "nothing"))


def test_a_missing_tensor_is_named(folder):
    tensors = tensors_of(folder)
    del tensors["head.levels.0.predict.bias"]
    republish(folder, tensors=tensors)
    with pytest.raises(WeightsError, match=f"{folder}/{TENSORS_FILE}: 1 tensors are missing, first 'head.levels.0.predict.bias'"):
        load_weights(folder)


def test_missing_anchors_are_named(folder):
    tensors = tensors_of(folder)
    del tensors["head.anchors"]
    republish(folder, tensors=tensors)
    with pytest.raises(WeightsError, match=f"{folder}/{TENSORS_FILE}: tensor 'head.anchors' is missing"):
        load_weights(folder)


def test_an_unknown_tensor_is_named(folder):
    republish(folder, tensors=tensors_of(folder) | {"head.extra": torch.ones(2)})
    with pytest.raises(WeightsError, match=r"1 tensors are unknown, first 'head\.extra'"):
        load_weights(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder):
    republish(folder, tensors=tensors_of(folder) | {"head.levels.1.align.z": torch.ones(7)})
    with pytest.raises(WeightsError, match=r"'head.levels.1.align.z' has shape \(7,\), expected \(24,\)"):
        load_weights(folder)


def test_classes_that_do_not_fit_the_tensors_are_refused(folder):
    republish(folder, config={"classes": ["one", "two"], "thresholds": {}})
    with pytest.raises(WeightsError, match=r"has shape \(\d+.*\), expected \(\d+.*\)"):
        load_weights(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, r"found format and version \('another', 1\), expected \('yolor_ray.weights', 1\)"),
        ({"version": 2}, r"found format and version \('yolor_ray.weights', 2\), expected \('yolor_ray.weights', 1\)"),
        ({"network": {"stem": "reorg", "colour": "red"}}, r"unknown keys \['colour'\]"),
        ({"network": {"widths": [8, 16]}}, "network.widths: found"),
        ({"network": {"widths": "wide"}}, CONFIG_FILE),
        ({"network": []}, CONFIG_FILE),
        ({"network": None}, CONFIG_FILE),
        ({"classes": 3}, CONFIG_FILE),
        ({"image_px": "large"}, CONFIG_FILE),
        ({"metrics": None}, CONFIG_FILE),
        ({"thresholds": [0.5]}, r"thresholds: found \[0.5\], expected numbers from 0 to 1 by class name"),
        ({"thresholds": {"cat": 1.5}}, "thresholds: found {'cat': 1.5}, expected numbers from 0 to 1"),
        ({"thresholds": {"cat": True}}, "thresholds: found {'cat': True}, expected numbers from 0 to 1"),
        ({"thresholds": {"cow": 0.5}}, "thresholds: found 'cow', expected names among classes"),
        ({"class_keypoints": ["cat"]}, r"class_keypoints: found \['cat'\], expected lists of names by class name"),
        ({"class_keypoints": {"cow": ["head"]}}, "class_keypoints: found the class 'cow', expected names among classes"),
        ({"class_keypoints": {"cat": ["head"]}}, "class_keypoints: found 'head' for 'cat', expected names among keypoint_names"),
    ],
)
def test_an_invalid_configuration_is_refused_and_the_file_is_named(folder, change, message):
    republish(folder, config=change)
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(folder)
    assert f"{folder}/{CONFIG_FILE}: " in str(error.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[1, 2]", b"\xff\xfe"])
def test_a_configuration_that_is_no_json_object_is_refused(folder, text):
    republish(folder, config=text)
    with pytest.raises(WeightsError, match=f"{folder}/{CONFIG_FILE}: "):
        load_weights(folder)


def test_weights_of_an_older_version_have_no_thresholds(folder):
    config = json.loads(storage.read_bytes(storage.join(folder, CONFIG_FILE)))
    del config["thresholds"]
    republish(folder, config=json.dumps(config).encode())
    assert load_weights(folder)[1].thresholds == {}


def test_the_keypoints_of_each_class_are_read_back_and_those_of_an_older_version_are_all(make_network, tmp_path):
    info = replace(INFO, keypoint_names=("head", "tail"), class_keypoints={"bird": ("tail", "head"), "cat": ("tail",)})
    save_weights(str(tmp_path), make_network(), info)
    read = load_weights(str(tmp_path))[1]
    assert read.class_keypoints == info.class_keypoints
    assert read.keypoint_flags.tolist() == [[False, True], [False, False], [True, True]]
    assert [indices.tolist() for indices in read.keypoint_indices] == [[1], [], [1, 0]]
    config = json.loads(Path(tmp_path, CONFIG_FILE).read_text())
    del config["class_keypoints"]
    republish(str(tmp_path), config=json.dumps(config).encode())
    assert load_weights(str(tmp_path))[1].class_keypoints == dict.fromkeys(INFO.classes, ("head", "tail"))


def test_a_missing_key_of_the_configuration_is_named(folder):
    config = json.loads(storage.read_bytes(storage.join(folder, CONFIG_FILE)))
    del config["classes"]
    republish(folder, config=json.dumps(config).encode())
    with pytest.raises(WeightsError, match=r"keys \['classes'\] are missing"):
        load_weights(folder)


class Canary:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("file_format", ["pickle", "torch"])
def test_a_pickle_in_place_of_weights_is_refused_and_not_executed(folder, tmp_path, file_format):
    created = tmp_path / "created"
    if file_format == "pickle":
        data = pickle.dumps(Canary(created))
    else:
        torch.save({"head.anchors": Canary(created)}, tmp_path / "canary.pt")
        data = (tmp_path / "canary.pt").read_bytes()
    republish(folder, tensors=data)
    with pytest.raises(WeightsError, match=f"{folder}/{TENSORS_FILE}: not a safetensors file"):
        load_weights(folder)
    assert not created.exists()


def test_the_canary_of_these_tests_works(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "created")))
    assert (tmp_path / "created").exists()


@pytest.mark.parametrize("name", ["yolor_p6.pt", "yolor_csp.weights"])
def test_the_error_for_an_upstream_file_states_the_import_command(name, tmp_path):
    url = str(tmp_path / name)
    with pytest.raises(WeightsError, match=f"python jobs/export.py --upstream {url} --output FOLDER"):
        load_weights(url)


def test_the_folder_of_a_finished_run_stands_for_its_weights(folder, tmp_path):
    run = tmp_path / "runs" / "photos"
    shutil.copytree(folder, run / "weights")
    (run / "config.json").write_text('{"optim": {}}')
    assert load_weights(str(run))[1] == load_weights(folder)[1]


def test_the_folder_of_a_run_without_weights_is_refused_as_unfinished(tmp_path):
    (tmp_path / "config.json").write_text('{"optim": {}}')
    with pytest.raises(WeightsError, match="found a run that has not finished, expected weights"):
        load_weights(str(tmp_path))


def test_builtin_names_the_weights_of_the_package_whatever_the_working_directory_has(tmp_path: Path, monkeypatch):
    manifest.publish(str(tmp_path / BUILTIN / "weights"), {"config.json": b"{}"})
    monkeypatch.chdir(tmp_path)
    assert weights_folder(absolute_weights(BUILTIN)) == BUILTIN
    assert load_weights(BUILTIN)[0].config.widths == (32, 48, 96, 160)
