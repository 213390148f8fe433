"""Weights of version 0.2 whose implicit knowledge has another form in this version give the same predictions as before.

Oracle: the layers of version 0.2 as hooks of a network of this version.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from yolor_ray.config import ImplicitConfig
from yolor_ray.config.network import TASKS
from yolor_ray.errors import WeightsError
from yolor_ray.model.fuse import fuse
from yolor_ray.model.network import Yolor
from yolor_ray.model.old_weights import convert_old_weights
from yolor_ray.model.weights import WeightsInfo, load_weights, save_weights

INFO = WeightsInfo("old", ("cat", "dog", "bird"), 64, image_classes=("a", "b", "c"), keypoint_names=tuple("vwxyz"))
IMAGE = torch.rand(2, 3, 64, 96)


def save_as_old(url: str, network: Yolor, tensors: dict[str, torch.Tensor], **implicit: str) -> None:
    """Save a network with other tensors, and with other settings of its implicit knowledge."""
    config = network.config
    network.config, network.state_dict = replace(config, implicit=replace(config.implicit, **implicit)), lambda: tensors
    save_weights(url, network, INFO)
    network.config = config
    del network.state_dict


def assert_equal_outputs(network: Yolor, expected: dict[str, list[torch.Tensor]]) -> None:
    for task, tensors in network(IMAGE).items():
        for output, tensor in zip(tensors, expected[task], strict=True):
            assert (output - tensor).abs().max() <= 1e-5 * tensor.abs().max(), task


@pytest.mark.parametrize("align", ["none", "add", "concat", "multiply"])
@pytest.mark.parametrize("per", ["level", "anchor"])
@torch.inference_mode()
def test_a_norm_behind_the_embeddings_becomes_part_of_the_convolution(make_network, tmp_path, align, per):
    implicit = ImplicitConfig(align=align, align_per=per if align != "none" else "level")
    network = make_network(tasks=TASKS, implicit=implicit)
    tensors = {name: tensor for name, tensor in network.state_dict().items() if ".centre." not in name}
    for index, level in enumerate(network.tasks["embed"].levels):
        norm = nn.BatchNorm2d(level.predict.out_channels, eps=network.config.norm_eps).eval()
        for vector in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(vector)
        nn.init.uniform_(norm.running_var, 0.3, 2.0)
        tensors |= {f"tasks.embed.levels.{index}.norm.{name}": tensor for name, tensor in norm.state_dict().items()}
        level.centre = nn.Identity()
        level.predict.register_forward_hook(lambda _, __, output, norm=norm: norm(output))
    save_as_old(str(tmp_path), network, tensors)
    loaded, _ = load_weights(str(tmp_path))
    expected = network(IMAGE)
    assert_equal_outputs(loaded, expected)
    assert_equal_outputs(fuse(loaded), expected)


@pytest.mark.parametrize("place", ["prediction", "pyramid"])
@torch.inference_mode()
def test_a_gate_of_inner_products_becomes_a_factor(make_network, tmp_path, place):
    network = make_network(tasks=TASKS, implicit=ImplicitConfig(align="multiply", align_at=place))
    tensors = dict(network.state_dict())
    for name, prior in network.named_modules():
        if name.endswith(".align" if place == "prediction" else ".pyramid"):
            channels = prior.channels
            z, phi = torch.randn(2 * channels), torch.randn(channels, 2 * channels) / channels
            tensors |= {f"{name}.z": z, f"{name}.phi": phi}
            prior.z.copy_(torch.stack([2 * torch.sigmoid(row @ z) for row in phi]))
    save_as_old(str(tmp_path), network, tensors, align="project")
    loaded, _ = load_weights(str(tmp_path))
    assert loaded.config.implicit == ImplicitConfig(align="multiply", align_at=place)
    assert_equal_outputs(loaded, network(IMAGE))


@pytest.mark.parametrize("align", ["add", "concat"])
@torch.inference_mode()
def test_weights_with_a_constant_on_the_pyramid_are_readable(make_network, tmp_path, align):
    network = make_network(tasks=TASKS, implicit=ImplicitConfig(align=align, align_at="pyramid"))
    save_weights(str(tmp_path), network, INFO)
    loaded, _ = load_weights(str(tmp_path))
    assert_equal_outputs(loaded, network(IMAGE))


@pytest.mark.parametrize("fused", [False, True])
@torch.inference_mode()
def test_weights_with_a_projection_are_read_back_unchanged(make_network, tmp_path, fused):
    network = make_network(tasks=TASKS, implicit=ImplicitConfig(align="project"))
    saved = fuse(network) if fused else network
    save_weights(str(tmp_path), saved, INFO)
    loaded, _ = load_weights(str(tmp_path))
    assert loaded.config.implicit.align == "project"
    for output, expected in zip(loaded(IMAGE)["embed"], saved(IMAGE)["embed"], strict=True):
        assert torch.equal(output, expected)


@pytest.mark.parametrize(
    "damage",
    [
        {"tasks.embed.levels.0.norm.bias": torch.zeros(3)},
        {"tasks.embed.levels.0.norm.running_var": torch.zeros(192, dtype=torch.complex64)},
        {"tasks.embed.levels.0.predict.bias": torch.zeros(192, 1)},
        {"tasks.embed.levels.0.predict.weight": torch.zeros(192)},
        {"head.levels.0.align.phi": torch.zeros(2, 3, 4)},
        {"head.levels.0.align.phi": torch.zeros(16, 9)},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_damaged_tensors_of_old_weights_are_refused(make_network, tmp_path, damage):
    network = make_network(tasks=TASKS, implicit=ImplicitConfig(align="project"))
    tensors = dict(network.state_dict())
    tensors |= {f"tasks.embed.levels.0.norm.{name}": torch.ones(192) for name in ("weight", "bias", "running_mean", "running_var")}
    save_as_old(str(tmp_path), network, tensors | damage)
    with pytest.raises(WeightsError, match="tensors are unknown"):
        load_weights(str(tmp_path))


def test_weights_of_this_version_stay_as_they_are(make_network):
    network = make_network(tasks=TASKS)
    config, tensors = convert_old_weights(network.config, network.state_dict())
    assert config == network.config
    assert all(torch.equal(tensors[name], tensor) for name, tensor in network.state_dict().items())
