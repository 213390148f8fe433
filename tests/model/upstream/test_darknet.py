"""Darknet `.weights` of narrow networks, written by an independent writer, give the predictions of the writer's network."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from main_branch import Darknet, darknet_bytes, make_sections
from yolor_ray.config import presets
from yolor_ray.errors import WeightsError
from yolor_ray.model.upstream.darknet import read_darknet
from yolor_ray.model.upstream.family import upstream_anchors
from yolor_ray.model.upstream.importer import build_network, load_upstream

WIDTHS, DEPTHS = (8, 16, 24, 32, 40), (1, 1, 1, 1, 1)
SMALL = {"stem_width": 8, "widths": WIDTHS, "depths": DEPTHS, "neck_depth": 1}
P6, CSP, PLAIN = (replace(preset, **SMALL) for preset in (presets.P6, presets.CSP, presets.V4_CSP))
NETWORKS = {"P6": P6, "CSP": CSP, "plain": PLAIN}
IMAGE = torch.rand(1, 3, 64, 1024, generator=torch.Generator().manual_seed(0))
HEADER = np.array([0, 2, 5, 0, 0], "<i4").tobytes()


def write_network(*, conv_stem, vectors=True, classes=4, **options):
    torch.manual_seed(5)
    network = Darknet(*make_sections(classes, WIDTHS, DEPTHS, 1, conv_stem=conv_stem, **options))
    return network, darknet_bytes(network, vectors=vectors)


@torch.inference_mode()
def assert_same_predictions(data, network):
    candidate, tensors = read_darknet("last.weights", data, NETWORKS)
    imported = build_network(candidate.config, candidate.classes, candidate.layout, upstream_anchors(candidate.config), tensors)
    for output, expected in zip(imported(IMAGE)["detect"], network(IMAGE), strict=True):
        b, a, h, w, f = output.shape
        expected = expected.view(b, a, f, h, w).permute(0, 1, 3, 4, 2)
        assert (output - expected).abs().max() < 1e-4 * expected.std()
    return candidate


@pytest.mark.parametrize(("name", "options"), [("P6", {"conv_stem": False}), ("CSP", {"conv_stem": True})])
def test_files_of_darknet_hold_implicit_vectors(name, options):
    network, data = write_network(**options)
    candidate = assert_same_predictions(data, network)
    assert (candidate.name, candidate.classes, candidate.complete) == (name, 4, True)


def test_absent_implicit_vectors_start_neutral_and_are_logged(caplog):
    network, data = write_network(conv_stem=False, vectors=False)
    for index, module in enumerate(network.module_list):
        section_type, _, options = network.sections[index]
        if section_type == "implicit":
            torch.nn.init.constant_(module.implicit, options["mean"])
    with caplog.at_level(logging.WARNING):
        candidate = assert_same_predictions(data, network)
    assert (candidate.name, candidate.complete) == ("P6", False)
    assert "holds no implicit vectors; they start at 0 and 1" in caplog.text


def test_a_file_that_fits_the_baseline_is_the_baseline(caplog):
    network, data = write_network(conv_stem=True, implicit=False)
    assert assert_same_predictions(data, network).name == "plain"
    assert "the same numbers may be YOLOR written without its implicit vectors" in caplog.text


def test_the_interleaved_baseline_of_darknet_is_refused():
    _, data = write_network(conv_stem=True, implicit=False, interleaved=True)
    with pytest.raises(WeightsError, match="found plain of darknet's own configuration, with Mish activations and heads between"):
        read_darknet("last.weights", data, NETWORKS)


def test_an_old_header_has_an_image_counter_of_four_bytes():
    network, data = write_network(conv_stem=False)
    old_file = np.array([0, 1, 0, 12345], "<i4").tobytes() + data[20:]
    assert assert_same_predictions(old_file, network).classes == 4


def test_a_length_that_fits_no_network_is_refused_and_the_known_lengths_are_listed():
    _, data = write_network(conv_stem=False)
    count = len(data) // 4 - 5
    message = rf"found {count - 1} numbers, which fit no network of the family; expected P6 \d+ at 80 classes and \d+ for each more; CSP"
    with pytest.raises(WeightsError, match=message):
        read_darknet("last.weights", data[:-4], NETWORKS)
    with pytest.raises(WeightsError, match=rf"found {len(data) - 3} bytes, .* truncated\?"):
        read_darknet("last.weights", data[:-3], NETWORKS)
    with pytest.raises(WeightsError, match=r"found 20 bytes, .* truncated\?"):
        read_darknet("last.weights", HEADER, NETWORKS)


def test_numbers_of_another_network_of_the_same_length_are_refused():
    _, data = write_network(conv_stem=False)
    noise = np.random.default_rng(0).standard_normal(len(data) // 4 - 5).astype("<f4").tobytes()
    with pytest.raises(WeightsError, match=r"as many as P6 with 4 classes, but then variances are negative or numbers not finite"):
        read_darknet("last.weights", HEADER + noise, NETWORKS)


def test_numbers_that_fit_two_networks_are_refused():
    _, data = write_network(conv_stem=False)
    with pytest.raises(
        WeightsError, match="that fit one with 4 classes, layout main; other with 4 classes, layout main; expected one network"
    ):
        read_darknet("last.weights", data, {"one": P6, "other": P6})


def test_a_file_of_other_widths_is_refused(tmp_path):
    _, data = write_network(conv_stem=False)
    (tmp_path / "last.weights").write_bytes(data)
    with pytest.raises(WeightsError, match=r"expected YOLOR-CSP 52988762 at 80 classes .*YOLOR-P6 37329400 at 80 classes"):
        load_upstream(str(tmp_path / "last.weights"))
