"""Upstream checkpoints of both branches become networks with the predictions of the upstream modules.

Oracle: `main_branch` and `paper_branch`, independent implementations of the upstream networks, run on the same image.
"""

import sys
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch

from main_branch import Darknet, make_sections
from paper_branch import DWT, Model, ReOrg, upstream_class_names
from yolor_ray.config import presets
from yolor_ray.errors import WeightsError
from yolor_ray.io.storage import join, write_bytes
from yolor_ray.model.upstream.checkpoint import find_network
from yolor_ray.model.upstream.family import NETWORKS, make_meta_network
from yolor_ray.model.upstream.importer import load_upstream
from yolor_ray.model.upstream.layouts import ordered_tensor_names
from yolor_ray.model.upstream.pickles import TENSOR, GlobalName, ObjectRecord, PersistentId

WIDTHS = (8, 16, 24, 32, 40)
IMAGE = torch.rand(1, 3, 64, 1024, generator=torch.Generator().manual_seed(0))
"""Wide enough that all pools of the coarsest level, 16 cells, differ."""
ANCHORS = torch.arange(10.0, 34).view(4, 3, 2)
PRESETS = {
    "csp": (presets.CSP, {"conv_stem": True}),
    "v4-csp": (presets.V4_CSP, {"conv_stem": True, "implicit": False}),
    "p6": (presets.P6, {"conv_stem": False}),
    "v4-p6": (presets.V4_P6, {"conv_stem": True, "implicit": False, "large": True, "anchors": 4}),
    "v4-p7": (presets.V4_P7, {"conv_stem": True, "implicit": False, "large": True, "anchors": 4}),
}


def main_network(preset="p6", classes=3):
    config, options = PRESETS[preset]
    torch.manual_seed(1)
    return Darknet(*make_sections(classes, widths_of(config), config.depths, config.neck_depth, **options))


def widths_of(config):
    return (*WIDTHS, 40, 40)[: len(config.widths)]


def paper_network(classes=3, anchors=ANCHORS):
    torch.manual_seed(2)
    return Model(classes, WIDTHS, presets.P6_PAPER.depths, anchors)


def save(path, content):
    with upstream_class_names():
        torch.save(content, path)
    return str(path)


@pytest.fixture(scope="module")
def p6():
    return main_network()


@pytest.fixture(scope="module")
def paper_p6():
    return paper_network()


@torch.inference_mode()
def assert_same_predictions(network, upstream):
    image = IMAGE.repeat(1, 1, network.config.strides[-1] // 64 or 1, 1)
    expected_levels, levels = upstream(image), network(image)["detect"]
    assert len(levels) == len(expected_levels)
    for level, expected in zip(levels, expected_levels, strict=True):
        b, _, h, w = expected.shape
        expected = expected.view(b, level.shape[1], -1, h, w).permute(0, 1, 3, 4, 2)
        assert (level - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_state_dict_of_the_main_branch_predicts_the_same(preset, tmp_path):
    upstream = main_network(preset)
    model = load_upstream(save(tmp_path / "last.pt", {"epoch": -1, "model": upstream.state_dict()}))
    assert_same_predictions(model.network, upstream)
    config = PRESETS[preset][0]
    assert model.network.config == replace(config, stem_width=8, widths=widths_of(config))
    assert (model.layout, model.network.classes, model.image_px) == ("main", 3, {3: 640, 4: 1280, 5: 1536}[config.levels])


def test_a_pickled_module_of_the_paper_branch_predicts_the_same(paper_p6, tmp_path):
    model = load_upstream(save(tmp_path / "last.pt", {"epoch": -1, "model": paper_p6}))
    assert not {"models", "models.yolo", "models.common"} & sys.modules.keys()
    assert_same_predictions(model.network, paper_p6)
    assert model.network.config == replace(presets.P6_PAPER, stem_width=8, widths=WIDTHS)
    assert (model.layout, model.classes) == ("paper", ())


@pytest.mark.parametrize(("stem", "config"), [(DWT, presets.S4_DWT), (ReOrg, presets.S4_S2D)], ids=["dwt", "s2d"])
def test_the_stem_without_convolutions_is_recognised_by_its_module_class(stem, config, tmp_path):
    torch.manual_seed(3)
    upstream = Model(3, (16, 24, 32), config.depths, ANCHORS[:3], config.neck_depth, stem)
    model = load_upstream(save(tmp_path / "last.pt", {"model": upstream}))
    assert_same_predictions(model.network, upstream)
    assert model.network.config == replace(config, widths=(16, 24, 32))


def test_a_state_dict_without_stem_tensors_is_assumed_to_start_with_wavelets_and_is_logged(tmp_path, caplog):
    upstream = Model(3, (16, 24, 32), presets.S4_DWT.depths, ANCHORS[:3], presets.S4_DWT.neck_depth, DWT)
    model = load_upstream(save(tmp_path / "last.pt", {"model": upstream.state_dict()}))
    assert model.network.config.stem == "dwt"
    assert "no tensor tells wavelets from space to depth; wavelets are assumed" in caplog.text


def test_the_p6_networks_of_the_two_branches_differ(p6, paper_p6, tmp_path):
    main = load_upstream(save(tmp_path / "main.pt", p6.state_dict()))
    paper = load_upstream(save(tmp_path / "paper.pt", paper_p6.state_dict()))
    assert main.name == paper.name == "YOLOR-P6 with other widths: stem 8, stages 8, 16, 24, 32, 40"
    assert (main.network.config.norm_eps, main.network.config.joint_norm) == (1e-4, False)
    assert (paper.network.config.norm_eps, paper.network.config.joint_norm) == (1e-3, True)


def test_anchors_come_from_the_file_if_it_has_anchors(p6, paper_p6, tmp_path):
    model = load_upstream(save(tmp_path / "paper.pt", paper_p6.state_dict()))
    assert torch.equal(model.network.head.anchors, ANCHORS)
    default_anchors = load_upstream(save(tmp_path / "main.pt", p6.state_dict())).network.head.anchors
    assert default_anchors[0].tolist() == [[19, 27], [44, 40], [38, 94]]
    assert default_anchors[3].tolist() == [[436, 615], [739, 380], [925, 792]]


def test_half_precision_weights_are_read_exactly(paper_p6, tmp_path):
    full = load_upstream(save(tmp_path / "full.pt", paper_p6.state_dict())).network.state_dict()
    halves = OrderedDict((name, tensor.half() if tensor.is_floating_point() else tensor) for name, tensor in paper_p6.state_dict().items())
    loaded = load_upstream(save(tmp_path / "half.pt", {"model": halves})).network.state_dict()
    for name, tensor in full.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor.to(torch.float16).to(tensor.dtype)), name


def test_bfloat16_and_float64_weights_are_read(paper_p6, tmp_path):
    for dtype in (torch.bfloat16, torch.float64):
        tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in paper_p6.state_dict().items()}
        network = load_upstream(save(tmp_path / "last.pt", tensors)).network
        stem = paper_p6.model[1].conv.weight
        assert torch.equal(network.backbone.stem[1].conv.weight, stem.to(dtype).float())


def test_the_prefix_of_parallel_training_is_removed(p6, paper_p6, tmp_path):
    prefixed = OrderedDict((f"module.{name}", tensor) for name, tensor in p6.state_dict().items())
    assert_same_predictions(load_upstream(save(tmp_path / "last.pt", {"model": prefixed})).network, p6)
    wrapped = torch.nn.Module()
    wrapped.module = paper_p6
    assert_same_predictions(load_upstream(save(tmp_path / "whole.pt", {"model": wrapped})).network, paper_p6)


def test_the_weight_average_is_preferred(p6, tmp_path):
    zeros = OrderedDict((name, torch.zeros_like(tensor)) for name, tensor in p6.state_dict().items())
    content = {
        "model": zeros,
        "ema": p6.state_dict(),
        "optimizer": {"state": {0: {"momentum": torch.ones(3)}}},
        "best_fitness": np.array([0.5]),
    }
    assert_same_predictions(load_upstream(save(tmp_path / "last.pt", content)).network, p6)


@pytest.mark.parametrize("names", [["cat", "dog", "cow"], {0: "cat", 1: "dog", 2: "cow"}], ids=["list", "dict"])
def test_class_names_of_a_module_are_read(names, paper_p6, tmp_path):
    paper_p6.names = names
    assert load_upstream(save(tmp_path / "last.pt", {"model": paper_p6})).classes == ("cat", "dog", "cow")


def test_a_wrong_number_of_class_names_is_ignored(paper_p6, tmp_path):
    paper_p6.names = ["cat"]
    assert load_upstream(save(tmp_path / "last.pt", {"model": paper_p6})).classes == ()


@pytest.mark.parametrize("names", ["cat", {"a": "cat"}, {1: "cat"}, [1, 2, 3], None, {}, [None]])
def test_class_names_that_are_no_list_of_text_are_ignored(names):
    tensor = ObjectRecord(TENSOR, (PersistentId(("storage", GlobalName("torch.FloatStorage"), "0", "cpu", 1)), 0, (1,), (1,)))
    checkpoint = find_network("last.pt", {"model": {"weight": tensor}, "names": names})
    assert (list(checkpoint.tensors), checkpoint.classes) == (["weight"], ())


KEYS = {
    "main": {
        "YOLOR-CSP": 684,
        "YOLOR-CSP-X": 816,
        "YOLOv4-CSP": 678,
        "YOLOv4-CSP-X": 810,
        "YOLOR-P6": 862,
        "YOLOR-W6": 862,
        "YOLOv4-P6": 1214,
        "YOLOv4-P7": 1462,
    },
    "paper": {"YOLOR-S4-DWT": 383, "YOLOR-S4-S2D": 383, "YOLOR-P6": 864, "YOLOR-W6": 864, "YOLOR-E6": 960, "YOLOR-D6": 1248},
}
"""Keys in the state dicts of the upstream networks, counted by building the networks."""


@pytest.mark.parametrize("layout", KEYS)
def test_each_layout_has_as_many_tensors_as_the_upstream_networks(layout):
    for name, config in NETWORKS[layout].items():
        names = list(ordered_tensor_names(make_meta_network(config), layout))
        counters = sum(name.endswith("running_mean") for name in names)
        anchors = 2 if layout == "paper" else 0
        assert len(set(names)) + counters + anchors == KEYS[layout][name], name


def test_a_tensor_of_another_shape_is_named(p6, tmp_path):
    tensors = p6.state_dict()
    tensors["module_list.20.Conv2d.weight"] = torch.zeros(9, 16, 1, 1)
    message = r"'module_list\.20\.Conv2d\.weight' has shape \(9, 16, 1, 1\), expected \(8, 16, 1, 1\) in YOLOR-P6 with other widths"
    with pytest.raises(WeightsError, match=message):
        load_upstream(save(tmp_path / "last.pt", tensors))


def test_a_missing_or_additional_tensor_is_refused(p6, tmp_path):
    fewer = p6.state_dict()
    fewer.popitem()
    more = p6.state_dict() | {"module_list.300.Conv2d.weight": torch.zeros(8, 8, 1, 1)}
    for tensors, convolutions in ((fewer, 145), (more, 146)):
        with pytest.raises(
            WeightsError, match=rf"names like YOLOR's in the main layout, but with {convolutions} convolutions .* YOLOR-P6 \(145\)"
        ):
            load_upstream(save(tmp_path / "last.pt", tensors))


def test_tensors_in_another_order_are_refused(p6, tmp_path):
    with pytest.raises(WeightsError, match=r"expected a .*; tensors must be in the order in which the network was saved"):
        load_upstream(save(tmp_path / "last.pt", dict(sorted(p6.state_dict().items()))))


def test_other_networks_are_refused_and_their_tensors_are_named(tmp_path):
    resnet = {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64), "fc.bias": torch.zeros(10)}
    with pytest.raises(WeightsError, match=r"found 3 tensors, first conv1\.weight, bn1\.weight, fc\.bias, expected names of a YOLOR"):
        load_upstream(save(tmp_path / "resnet.pt", resnet))
    v5 = {"model.0.conv.weight": torch.zeros(32, 3, 6, 6), "model.0.bn.weight": torch.zeros(32)}
    with pytest.raises(
        WeightsError, match=r"with 1 convolutions in 2 tensors, .*expected YOLOR-S4-DWT \(67\).*YOLOR-E6 \(161\), YOLOR-D6 \(209\)"
    ):
        load_upstream(save(tmp_path / "v5.pt", {"model": v5}))


def test_a_checkpoint_without_a_network_is_refused_and_its_keys_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"found no tensors in a pickle of epoch, optimizer, expected a state dict or a module"):
        load_upstream(save(tmp_path / "last.pt", {"epoch": 3, "optimizer": {}}))


def test_non_finite_weights_and_negative_variances_are_refused(p6, tmp_path):
    name = "module_list.20.Conv2d.weight"
    tensors = {key: tensor.clone() for key, tensor in p6.state_dict().items()}
    tensors[name][0, 0] = float("nan")
    with pytest.raises(WeightsError, match=rf"'{name}': found NaN or infinite numbers"):
        load_upstream(save(tmp_path / "last.pt", tensors))
    variances = "module_list.20.BatchNorm2d.running_var"
    with pytest.raises(WeightsError, match=rf"'{variances}': found a negative variance"):
        load_upstream(save(tmp_path / "last.pt", p6.state_dict() | {variances: -torch.ones(8)}))


def test_anchors_that_do_not_fit_are_refused(paper_p6, tmp_path):
    with pytest.raises(WeightsError, match=r"'model.41.anchor_grid': found anchors \[1.0, 1.0.*expected 4 · 3 positive sizes"):
        load_upstream(save(tmp_path / "last.pt", paper_p6.state_dict() | {"model.41.anchor_grid": torch.ones(4, 1, 2, 1, 1, 2)}))


def test_the_name_of_the_file_is_ignored(p6, tmp_path):
    assert load_upstream(save(tmp_path / "photo.jpg", p6.state_dict())).layout == "main"


def test_a_checkpoint_is_read_from_a_bucket(p6, tmp_path, s3):
    url, path = join(s3(), "last.pt"), tmp_path / "last.pt"
    save(path, p6.state_dict())
    write_bytes(url, path.read_bytes())
    assert load_upstream(url).network.classes == 3
