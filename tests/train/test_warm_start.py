"""Initial weights of a run: built-in ones where they fit the network, and random ones otherwise."""

import logging
from dataclasses import replace

import pytest
import torch

from yolor_ray.api import Detector
from yolor_ray.boxes import pairwise_iou
from yolor_ray.config import ImplicitConfig, OptimConfig
from yolor_ray.config.presets import NANO, PRESETS, SMALL
from yolor_ray.config.variants import PLAIN
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.errors import ConfigError
from yolor_ray.io.weights_url import BUILTIN
from yolor_ray.model.weights import load_weights
from yolor_ray.train.warm_start import resolve_pretrained


def test_the_preset_nano_starts_from_the_built_in_weights():
    assert resolve_pretrained(PRESETS["nano"].optim, PRESETS["nano"].network) == BUILTIN


def test_the_built_in_weights_have_no_implicit_knowledge_so_that_all_variants_start_alike():
    network, info = load_weights(BUILTIN)
    assert network.config.implicit == PLAIN
    assert not info.fused
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


@pytest.mark.parametrize(
    "network",
    [NANO, replace(NANO, head="anchors"), replace(NANO, tasks=("detect", "pose")), replace(NANO, implicit=ImplicitConfig(align="mul"))],
)
def test_the_built_in_weights_serve_any_head_task_and_implicit_knowledge(network):
    assert resolve_pretrained(OptimConfig(pretrained=BUILTIN), network) == BUILTIN


def test_a_network_of_another_shape_starts_from_random_weights_and_says_so(caplog):
    with caplog.at_level(logging.INFO):
        assert resolve_pretrained(OptimConfig(pretrained=BUILTIN), SMALL) == ""
    assert "event=random_weights" in caplog.text
    assert "network.widths: found (32, 48, 96, 160), expected (64, 128, 256, 448)" in caplog.text


def test_random_weights_in_place_of_the_built_in_ones_are_never_frozen():
    with pytest.raises(ConfigError, match=r"optim.pretrained: found 'builtin', which does not fit the network"):
        resolve_pretrained(OptimConfig(pretrained=BUILTIN, freeze="backbone"), SMALL)


def test_the_built_in_weights_find_the_objects_of_scenes_that_they_never_saw():
    detector = Detector(BUILTIN)
    found = []
    for index in range(4):
        drawn = scene(index, seed=1000)
        boxes = torch.tensor(detector(drawn.image, confidence=0.3).boxes_xyxy).reshape(-1, 4)
        overlaps = pairwise_iou(torch.tensor(drawn.objects.boxes_xyxy).double(), boxes)
        found += (overlaps.amax(dim=1) > 0.5).tolist() if len(boxes) else [False] * len(overlaps)
    assert sum(found) > 0.6 * len(found)
