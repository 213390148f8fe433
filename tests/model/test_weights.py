"""Weights folders: what was saved comes back, and what was tampered with does not."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from yolor_ray.errors import UserError, WeightsError
from yolor_ray.io import manifest, storage
from yolor_ray.model.fuse import fuse
from yolor_ray.model.weights import CONFIG_FILE, TENSORS_FILE, WeightsInfo, load_weights, save_weights

INFO = WeightsInfo("run-7", ("cat", "dög", "bird"), 320, {"AP": 0.5, "AP50": 0.75})


@pytest.fixture
def folder(make_network, tmp_path):
    """A saved network; the value is its folder."""
    url = str(tmp_path / "weights")
    save_weights(url, make_network(), INFO)
    return url


def republish(url: str, config: dict | bytes | None = None, tensors: dict[str, torch.Tensor] | bytes | None = None) -> None:
    """Put other contents under a manifest that fits them."""
    files = manifest.read_published(url)
    if config is not None:
        files[CONFIG_FILE] = config if isinstance(config, bytes) else json.dumps(json.loads(files[CONFIG_FILE]) | config).encode()
    if tensors is not None:
        files[TENSORS_FILE] = tensors if isinstance(tensors, bytes) else safetensors.torch.save(tensors)
    manifest.publish(url, files)


def tensors_of(url: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(storage.read_bytes(storage.join(url, TENSORS_FILE)))


@pytest.mark.parametrize("kind", [{"stem": "conv"}, {"block": "cspf", "joint_norm": True, "down": "downc"}])
@pytest.mark.parametrize("fused", [False, True])
def test_what_was_saved_comes_back(make_network, tmp_path, kind, fused):
    network = fuse(make_network(**kind)) if fused else make_network(**kind)
    save_weights(str(tmp_path), network, INFO)
    found, info = load_weights(str(tmp_path))
    assert (info.name, info.classes, info.image_px, info.metrics, info.fused) == ("run-7", INFO.classes, 320, INFO.metrics, fused)
    assert info.version == hashlib.sha256((tmp_path / TENSORS_FILE).read_bytes()).hexdigest()[:12]
    assert found.config == network.config
    assert not found.training
    assert found.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in network.state_dict().items())
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(network(image)["detect"], found(image)["detect"], strict=True))


def test_the_same_network_has_the_same_version_and_another_has_another(make_network, tmp_path):
    versions = []
    for number, seed in enumerate((1, 1, 2)):
        save_weights(str(tmp_path / str(number)), make_network(seed=seed), INFO)
        versions.append(load_weights(str(tmp_path / str(number)))[1].version)
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize("file", [CONFIG_FILE, TENSORS_FILE])
def test_an_altered_byte_is_refused_with_the_name_of_the_file(folder, file):
    path = Path(folder, file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{folder}/{file}: .*SHA-256"):
        load_weights(folder)


def test_a_folder_without_weights_is_refused_with_its_name(tmp_path):
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


def test_a_tensor_too_many_is_named(folder):
    republish(folder, tensors=tensors_of(folder) | {"head.extra": torch.ones(2)})
    with pytest.raises(WeightsError, match=r"1 tensors are unknown, first 'head\.extra'"):
        load_weights(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder):
    republish(folder, tensors=tensors_of(folder) | {"head.levels.1.align.z": torch.ones(7)})
    with pytest.raises(WeightsError, match=r"'head.levels.1.align.z' has shape \(7,\), expected \(24,\)"):
        load_weights(folder)


def test_classes_that_do_not_fit_the_tensors_are_refused(folder):
    republish(folder, config={"classes": ["one", "two"]})
    with pytest.raises(WeightsError, match=r"has shape \(\d+.*\), expected \(\d+.*\)"):
        load_weights(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
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
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_with_its_file(folder, change, complaint):
    republish(folder, config=change)
    with pytest.raises(WeightsError, match=complaint) as refusal:
        load_weights(folder)
    assert f"{folder}/{CONFIG_FILE}: " in str(refusal.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[1, 2]", b"\xff\xfe"])
def test_a_configuration_that_is_no_json_object_is_refused(folder, text):
    republish(folder, config=text)
    with pytest.raises(WeightsError, match=f"{folder}/{CONFIG_FILE}: "):
        load_weights(folder)


def test_a_missing_key_of_the_configuration_is_named(folder):
    config = json.loads(storage.read_bytes(storage.join(folder, CONFIG_FILE)))
    del config["classes"]
    republish(folder, config=json.dumps(config).encode())
    with pytest.raises(WeightsError, match=r"keys \['classes'\] are missing"):
        load_weights(folder)


class Trap:
    """Write a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_under_the_name_of_weights_is_refused_and_nothing_runs(folder, tmp_path, kind):
    sprung = tmp_path / "sprung"
    if kind == "pickle":
        data = pickle.dumps(Trap(sprung))
    else:
        torch.save({"head.anchors": Trap(sprung)}, tmp_path / "trap.pt")
        data = (tmp_path / "trap.pt").read_bytes()
    republish(folder, tensors=data)
    with pytest.raises(WeightsError, match=f"{folder}/{TENSORS_FILE}: not a safetensors file"):
        load_weights(folder)
    assert not sprung.exists()


def test_the_trap_of_these_tests_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["yolor_p6.pt", "yolor_csp.weights"])
def test_a_published_file_in_the_place_of_a_folder_is_told_how_to_import_it(name, tmp_path):
    url = str(tmp_path / name)
    with pytest.raises(WeightsError, match=f"python jobs/export.py --published {url} --output FOLDER"):
        load_weights(url)
