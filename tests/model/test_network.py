"""Sizes, counts and bias priors of the family (paper table A2 and the released configurations), and decoding."""

import functools
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from yolor_ray.config import NetworkConfig, presets
from yolor_ray.inference.detect import predict, to_input
from yolor_ray.model.implicit import Implicit
from yolor_ray.model.layers import Wavelet
from yolor_ray.model.network import Yolor

CONFIGS = {name: preset.network for name, preset in presets.PRESETS.items()}
PARAMETERS = {
    "csp": 52_923_994,
    "csp-x": 99_754_058,
    "v4-csp": 52_921_437,
    "v4-csp-x": 99_751_053,
    "s4-s2d": 9_216_634,
    "s4-dwt": 9_216_634,
    "v4-p6": 127_585_200,
    "v4-p7": 287_566_300,
    "p6": 37_265_016,
    "w6": 79_873_400,
    "e6": 115_909_400,
    "d6": 151_782_680,
    "p6-paper": 37_270_264,
    "w6-paper": 79_880_952,
}
IMPLICIT = {
    "csp": 2_557,
    "csp-x": 3_005,
    "v4-csp": 0,
    "v4-csp-x": 0,
    "s4-s2d": 1_661,
    "s4-dwt": 1_661,
    "v4-p6": 0,
    "v4-p7": 0,
    "p6": 2_812,
    "w6": 3_580,
    "p6-paper": 2_812,
    "w6-paper": 3_580,
    "e6": 4_220,
    "d6": 4_220,
}
CONVOLUTIONS_AND_NORMS = {
    "csp": (115, 112),
    "csp-x": (137, 134),
    "v4-csp": (115, 112),
    "v4-csp-x": (137, 134),
    "s4-s2d": (67, 61),
    "s4-dwt": (67, 61),
    "v4-p6": (205, 201),
    "v4-p7": (247, 242),
    "p6": (145, 141),
    "w6": (145, 141),
    "p6-paper": (145, 141),
    "w6-paper": (145, 141),
    "e6": (161, 157),
    "d6": (209, 205),
}
GIGAFLOPS = {
    "csp": (640, 120.24),
    "csp-x": (640, 221.88),
    "v4-csp": (640, 120.24),
    "v4-csp-x": (640, 221.88),
    "s4-s2d": (640, 16.04),
    "s4-dwt": (640, 16.04),
    "v4-p6": (1280, 717.0),
    "v4-p7": (1536, 1636.7),
    "p6": (1280, 325.12),
    "w6": (1280, 452.65),
    "p6-paper": (1280, 325.12),
    "w6-paper": (1280, 452.65),
    "e6": (1280, 682.12),
    "d6": (1280, 934.43),
}


@functools.cache
def meta_network(config: NetworkConfig, classes: int = 80) -> Yolor:
    """Return a network on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return Yolor(config, classes, torch.ones(config.levels, config.anchors_per_level, 2)).to("meta").eval()


def count_parameters(modules: list[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_the_parameter_count_is_that_of_the_paper(name, count):
    assert count_parameters([meta_network(CONFIGS[name])]) == count


@pytest.mark.parametrize(("name", "count"), IMPLICIT.items())
def test_implicit_knowledge_has_the_parameter_count_of_the_paper(name, count):
    assert count_parameters([m for m in meta_network(CONFIGS[name]).modules() if isinstance(m, Implicit)]) == count


@pytest.mark.parametrize(("name", "counts"), CONVOLUTIONS_AND_NORMS.items())
def test_the_numbers_of_convolutions_and_norms_are_those_of_the_released_networks(name, counts):
    modules = list(meta_network(CONFIGS[name]).modules())
    assert (sum(isinstance(m, nn.Conv2d) for m in modules), sum(isinstance(m, nn.BatchNorm2d) for m in modules)) == counts


@pytest.mark.parametrize(("name", "size_and_gigaflops"), GIGAFLOPS.items())
def test_a_forward_pass_has_the_flops_of_the_released_network(name, size_and_gigaflops):
    image_px, gigaflops = size_and_gigaflops
    counter = FlopCounterMode(display=False)
    with counter:
        meta_network(CONFIGS[name])(torch.empty(1, 3, image_px, image_px, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gigaflops, rel=5e-4)


@pytest.mark.parametrize(("name", "fewest", "most"), [("nano", 0.9e6, 1.1e6), ("small", 7e6, 9e6)])
def test_nano_and_small_stay_small(name, fewest, most):
    assert fewest < count_parameters([meta_network(CONFIGS[name])]) < most


@pytest.mark.parametrize("name", [name for name in presets.PRESETS if not name.startswith("demo")])
def test_the_description_of_a_preset_states_its_parameter_count(name):
    stated = re.search(r"([\d.]+) M parameters", presets.DESCRIPTIONS[name])
    assert stated is not None
    assert float(stated[1]) == round(count_parameters([meta_network(CONFIGS[name])]) / 1e6, 1)


@pytest.mark.parametrize(("name", "image_px", "rows"), [("csp", 640, 25_200), ("p6", 1280, 102_000)])
def test_the_number_of_predictions_is_that_of_the_released_network(name, image_px, rows):
    network = meta_network(CONFIGS[name])
    raw = network(torch.empty(2, 3, image_px, image_px, device="meta"))["detect"]
    sides = [image_px // stride for stride in network.config.strides]
    assert [tuple(level.shape) for level in raw] == [(2, 3, side, side, 85) for side in sides]
    boxes, scores = network.head.decode(raw)
    assert boxes.shape == (2, rows, 4)
    assert scores.shape == (2, rows, 80)


@pytest.mark.parametrize(("classes", "class_prior"), [(80, -4.880), (3, math.log(0.6 / 2.01)), (1, 0.0)])
def test_initial_biases_expect_rare_objects_and_equal_classes(classes, class_prior):
    config = replace(presets.NANO, head="anchors", levels=4, widths=(8, 16, 24, 32, 40), depths=(1, 1, 1, 1, 1))
    network = Yolor(config, classes, torch.ones(4, 3, 2))
    for level, objectness_prior in zip(network.head.levels, (-6.685, -5.298, -3.912, -2.526), strict=True):
        bias = level.predict.bias.detach().view(3, -1)
        init_bound = 1 / math.sqrt(level.predict.in_channels) + 1e-3
        assert (bias[:, 4] - objectness_prior).abs().max() <= init_bound
        assert (bias[:, 5:] - class_prior).abs().max() <= init_bound
        assert bias[:, :4].abs().max() <= init_bound


def test_a_raw_output_of_zero_decodes_to_the_cell_centre_and_the_anchor(make_network):
    head = make_network(classes=3).head
    boxes, scores = head.decode([torch.zeros(1, 3, 4, 6, 8), torch.zeros(1, 3, 2, 3, 8)])
    fine = boxes[0, :72].view(3, 4, 6, 4)
    assert fine[1, 2, 5].tolist() == [(5 + 0.5) * 8, (2 + 0.5) * 8, *head.anchors[0, 1].tolist()]
    coarse = boxes[0, 72:].view(3, 2, 3, 4)
    assert coarse[2, 1, 0].tolist() == [8.0, 24.0, *head.anchors[1, 2].tolist()]
    assert scores.unique().tolist() == [0.25]


def test_extreme_raw_outputs_reach_half_a_cell_beyond_and_four_anchor_sides(make_network):
    head = make_network().head
    highest, lowest = torch.full((1, 3, 1, 1, 8), 50.0), torch.full((1, 3, 1, 1, 8), -50.0)
    boxes, scores = head.decode([highest, lowest])
    torch.testing.assert_close(boxes[0, :3, :2], torch.full((3, 2), 1.5 * 8))
    torch.testing.assert_close(boxes[0, :3, 2:], 4 * head.anchors[0])
    torch.testing.assert_close(boxes[0, 3:], torch.tensor([-8.0, -8.0, 0.0, 0.0]).expand(3, 4))
    assert (scores[0, :3] == 1).all()
    assert (scores[0, 3:] < 1e-20).all()


def test_a_single_class_is_scored_by_objectness_alone(make_network):
    head = make_network(classes=1).head
    raw = torch.zeros(1, 3, 1, 1, 6)
    raw[..., 5] = -9.0
    _, scores = head.decode([raw, raw])
    assert scores.unique().tolist() == [0.5]


def test_half_precision_predictions_are_decoded_in_float32(make_network):
    head = make_network().head
    raw = [torch.zeros(1, 3, side, side, 8, dtype=torch.bfloat16) for side in (160, 80)]
    boxes, _ = head.decode(raw)
    assert boxes.dtype == torch.float32
    assert boxes[0, 159, :2].tolist() == [159.5 * 8, 0.5 * 8]


def test_anchors_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"anchors: found shape \(3, 3, 2\), expected \(4, 3, 2\)"):
        meta_network(CONFIGS["p6"]).head.__class__(CONFIGS["p6"], 80, torch.ones(3, 3, 2))


@pytest.mark.parametrize("settings", [{"stem": "conv"}, {"block": "cspf", "joint_norm": True, "down": "downc"}])
def test_the_input_may_be_rectangular(make_network, settings):
    with torch.inference_mode():
        raw = make_network(**settings)(torch.rand(2, 3, 64, 96))["detect"]
    assert [tuple(level.shape[2:4]) for level in raw] == [(8, 12), (4, 6)]
    assert all(torch.isfinite(level).all() for level in raw)


def test_a_wavelet_returns_means_and_then_differences_of_each_channel():
    """Haar differences between rows, between columns and of both, halved and centred on 0.5, as in pytorch_wavelets."""
    first, second = torch.tensor([[0.8, 0.8], [0.2, 0.2]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    coefficients = Wavelet()(torch.stack((first, second))[None])
    expected = [0.5, 0.25, 0.5 + 0.3, 0.5, 0.5, 0.5 + 0.25, 0.5 + 0.25, 0.5 + 0.25]
    torch.testing.assert_close(coefficients.flatten(), torch.tensor(expected))


def test_input_bytes_become_channels_first_floats_in_0_to_1():
    images = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    assert to_input(images, torch.device("cpu")).squeeze().tolist() == pytest.approx([0.0, 0.2, 1.0])


def test_predictions_are_sorted_by_confidence_in_pixels_and_limited_in_number(make_network):
    network, images = make_network(), torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    all_detections = predict(network, images, confidence=0.01, iou=0.9, max_detections=1000)
    best_detections = predict(network, images, confidence=0.01, iou=0.9, max_detections=5)
    boxes, scores = network.head.decode(network(images.permute(0, 3, 1, 2) / 255)["detect"])
    for detections, best, image_boxes, image_scores in zip(all_detections, best_detections, boxes, scores, strict=True):
        assert len(detections.labels) > 5
        assert detections.confidences.tolist() == sorted(detections.confidences.tolist(), reverse=True)
        assert torch.equal(best.boxes_xyxy, detections.boxes_xyxy[:5])
        prediction, label = divmod(int(image_scores.argmax()), 3)
        assert int(detections.labels[0]) == label
        centre, half = image_boxes[prediction, :2], image_boxes[prediction, 2:] / 2
        torch.testing.assert_close(detections.boxes_xyxy[0], torch.cat((centre - half, centre + half)), atol=1e-3, rtol=1e-4)
