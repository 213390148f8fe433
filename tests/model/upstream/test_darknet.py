"""Darknet's `.weights` of narrowed networks, written by an independent writer, predict what that writer's network does."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from main_branch import Darknet, darknet_bytes, sections
from yolor_ray.config import presets
from yolor_ray.errors import WeightsError
from yolor_ray.model.upstream.darknet import read_darknet
from yolor_ray.model.upstream.family import published_anchors
from yolor_ray.model.upstream.importer import assemble, load_upstream

WIDTHS, DEPTHS = (8, 16, 24, 32, 40), (1, 1, 1, 1, 1)
SMALL = {"stem_width": 8, "widths": WIDTHS, "depths": DEPTHS, "neck_depth": 1}
P6, CSP, PLAIN = (replace(preset, **SMALL) for preset in (presets.P6, presets.CSP, presets.V4_CSP))
NETWORKS = {"P6": P6, "CSP": CSP, "plain": PLAIN}
IMAGE = torch.rand(1, 3, 64, 1024, generator=torch.Generator().manual_seed(0))
HEADER = np.array([0, 2, 5, 0, 0], "<i4").tobytes()


def written(*, conv_stem, vectors=True, classes=4, **kind):
    torch.manual_seed(5)
    network = Darknet(*sections(classes, WIDTHS, DEPTHS, 1, conv_stem=conv_stem, **kind))
    return network, darknet_bytes(network, vectors=vectors)


@torch.inference_mode()
def assert_same_predictions(data, network):
    fit, tensors = read_darknet("last.weights", data, NETWORKS)
    ours = assemble(fit.config, fit.classes, fit.layout, published_anchors(fit.config), tensors)
    for found, expected in zip(ours(IMAGE)["detect"], network(IMAGE), strict=True):
        b, a, h, w, f = found.shape
        expected = expected.view(b, a, f, h, w).permute(0, 1, 3, 4, 2)
        assert (found - expected).abs().max() < 1e-4 * expected.std()
    return fit


@pytest.mark.parametrize(("title", "kind"), [("P6", {"conv_stem": False}), ("CSP", {"conv_stem": True})])
def test_darknets_own_files_hold_implicit_vectors_in_line(title, kind):
    network, data = written(**kind)
    fit = assert_same_predictions(data, network)
    assert (fit.title, fit.classes, fit.whole) == (title, 4, True)


def test_vectors_that_the_file_leaves_out_start_neutral_and_the_log_says_so(caplog):
    network, data = written(conv_stem=False, vectors=False)
    for index, module in enumerate(network.module_list):
        kind, _, options = network.made[index]
        if kind == "implicit":
            torch.nn.init.constant_(module.implicit, options["mean"])
    with caplog.at_level(logging.WARNING):
        fit = assert_same_predictions(data, network)
    assert (fit.title, fit.whole) == ("P6", False)
    assert "holds no implicit vectors; they start at 0 and 1" in caplog.text


def test_a_network_without_vectors_is_the_baseline_whatever_it_was_before(caplog):
    network, data = written(conv_stem=True, implicit=False)
    assert assert_same_predictions(data, network).title == "plain"
    assert "the same numbers may be YOLOR written without its implicit vectors" in caplog.text


def test_darknets_own_baseline_is_another_network():
    _, data = written(conv_stem=True, implicit=False, in_line=True)
    with pytest.raises(WeightsError, match="found plain as darknet's own configuration has it, with Mish activations and heads in line"):
        read_darknet("last.weights", data, NETWORKS)


def test_an_old_header_counts_images_in_four_bytes():
    network, data = written(conv_stem=False)
    old = np.array([0, 1, 0, 12345], "<i4").tobytes() + data[20:]
    assert assert_same_predictions(old, network).classes == 4


def test_a_length_that_fits_no_network_is_told_with_those_that_are_known():
    _, data = written(conv_stem=False)
    count = len(data) // 4 - 5
    message = rf"found {count - 1} numbers, which fit no network of the family; expected P6 \d+ at 80 classes and \d+ for each more; CSP"
    with pytest.raises(WeightsError, match=message):
        read_darknet("last.weights", data[:-4], NETWORKS)
    with pytest.raises(WeightsError, match=rf"found {len(data) - 3} bytes, .* truncated\?"):
        read_darknet("last.weights", data[:-3], NETWORKS)
    with pytest.raises(WeightsError, match=r"found 20 bytes, .* truncated\?"):
        read_darknet("last.weights", HEADER, NETWORKS)


def test_numbers_of_another_network_of_the_same_length_are_refused():
    _, data = written(conv_stem=False)
    noise = np.random.default_rng(0).standard_normal(len(data) // 4 - 5).astype("<f4").tobytes()
    with pytest.raises(WeightsError, match=r"as many as P6 with 4 classes, but then variances are negative or numbers not finite"):
        read_darknet("last.weights", HEADER + noise, NETWORKS)


def test_numbers_that_fit_two_networks_are_not_guessed():
    _, data = written(conv_stem=False)
    with pytest.raises(
        WeightsError, match="that fit one with 4 classes, heads main; other with 4 classes, heads main; expected one network"
    ):
        read_darknet("last.weights", data, {"one": P6, "other": P6})


def test_only_the_published_sizes_are_taken_from_a_file(tmp_path):
    _, data = written(conv_stem=False)
    (tmp_path / "last.weights").write_bytes(data)
    with pytest.raises(WeightsError, match=r"expected YOLOR-CSP 52988762 at 80 classes .*YOLOR-P6 37329400 at 80 classes"):
        load_upstream(str(tmp_path / "last.weights"))
