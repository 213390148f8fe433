"""Every form of implicit knowledge that training accepts acts: in training mode it changes the outputs of its task and gets a gradient.

A batch norm takes out every constant before it, except at the border of a padded convolution. The 3x3 convolutions of the tested heads
have circular padding, so that no map has a border.
"""

import dataclasses
import itertools
import typing

import pytest
import torch
from torch import Tensor, nn

from yolor_ray.config import DataConfig, ImplicitConfig, NetworkConfig, TrainConfig
from yolor_ray.config.network import TASKS
from yolor_ray.errors import ConfigError
from yolor_ray.model.implicit import IMPLICIT_MODULES
from yolor_ray.model.network import Yolor

HEADS = ("anchors", "free")
ANCHORS = torch.tensor([[[8.0, 10.0], [16.0, 12.0], [12.0, 24.0]], [[30.0, 30.0], [60.0, 32.0], [40.0, 80.0]]])
MIN_EFFECT = 1e-3
"""Least change of an output, in its standard deviations, when a prior moves by 0.3. Measured: 7e-3 to 0.9, and 1e-15 for dead priors."""
MIN_GRADIENT = 1e-5
"""Least largest gradient of a parameter of a prior, in float64. Measured: 1e-3 to 1, and 1e-15 for dead priors."""


def network_config(head: str, implicit: ImplicitConfig) -> NetworkConfig:
    sizes = {"stem": "reorg", "stem_width": 8, "widths": (8, 16, 24), "depths": (0, 0, 0), "levels": 2, "neck_depth": 0}
    return NetworkConfig(**sizes, head=head, tasks=TASKS, implicit=implicit)


def settings_of(role: str) -> list[dict[str, str]]:
    """Return every combination of the values of the settings of a role, `align` or `refine`; the other role is absent."""
    types = {name: kind for name, kind in typing.get_type_hints(ImplicitConfig).items() if name.startswith(role)}
    others = {"align": "none"} if role == "refine" else {"refine": "none"}
    combinations = itertools.product(*(typing.get_args(kind) for kind in types.values()))
    return [dict(zip(types, values, strict=True)) | others for values in combinations if values[0] != "none"]


def is_accepted(head: str, form: dict[str, str]) -> bool:
    try:
        TrainConfig(network=network_config(head, ImplicitConfig(**form)), data=DataConfig(image_px=64))
    except ConfigError:
        return False
    return True


FORMS = [(head, form) for head in HEADS for form in settings_of("align") + settings_of("refine") if is_accepted(head, form)]


def standard_deviations(change: Tensor, output: Tensor) -> float:
    return (change.square().mean().sqrt() / output.std()).item()


def measure(head: nn.Module, features: list[Tensor]) -> tuple[float, float]:
    """Return the least effect of a prior of a head on the output that it changes most, and the least gradient of its parameters."""
    outputs = head(features)
    torch.manual_seed(1)
    sum((output * torch.randn_like(output)).sum() / output.numel() ** 0.5 for output in outputs).backward()
    effects, gradients = [], []
    for prior in [module for module in head.modules() if isinstance(module, IMPLICIT_MODULES)]:
        gradients += [0.0 if p.grad is None else p.grad.abs().max().item() for p in prior.parameters()]
        with torch.no_grad():
            move = 0.3 * torch.randn_like(prior.z)
            prior.z += move
            effects.append(max(standard_deviations(a - b, a) for a, b in zip(outputs, head(features), strict=True)))
            prior.z -= move
    return min(effects), min(gradients)


def least_numbers(config: NetworkConfig) -> tuple[Yolor, dict[str, tuple[float, float]]]:
    """Return a network of the configuration, and the least effect and gradient of its priors by task."""
    torch.manual_seed(0)
    network = Yolor(config, 3, ANCHORS, image_classes=3, keypoints=2).double().train()
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and any(module.padding):
            module.padding_mode = "circular"
    features = [torch.randn(4, channels, side, side, dtype=torch.float64) for channels, side in ((8, 6), (12, 4))]
    return network, {task: measure(network.head if task == "detect" else network.tasks[task], features) for task in TASKS}


@pytest.mark.parametrize(("head", "form"), FORMS, ids=["-".join((head, *form.values())) for head, form in FORMS])
def test_every_prior_of_every_task_acts_in_training(head, form):
    _, measured = least_numbers(network_config(head, ImplicitConfig(**form)))
    dead = {task: numbers for task, numbers in measured.items() if numbers[0] < MIN_EFFECT or numbers[1] < MIN_GRADIENT}
    assert not dead


@pytest.mark.parametrize("head", HEADS)
def test_each_task_can_have_operators_of_its_own_and_all_of_them_act(head):
    operators = {"pose": "multiply/add", "embed": "concat/none", "detect": "none/multiply", "segment": "project/none"}
    implicit = ImplicitConfig(align="add", refine="none", of_tasks=tuple(f"{task}={pair}" for task, pair in operators.items()))
    network, measured = least_numbers(network_config(head, implicit))
    for task, pair in {**operators, "classify": "add/none"}.items():
        modules = (network.head if task == "detect" else network.tasks[task]).modules()
        found = {getattr(module, "operator", "project") for module in modules if isinstance(module, IMPLICIT_MODULES)}
        assert found == set(pair.split("/")) - {"none"}, task
    assert all(effect > MIN_EFFECT and gradient > MIN_GRADIENT for effect, gradient in measured.values())


def test_all_operators_and_places_are_among_the_tested_forms():
    assert len(FORMS) > 60
    for head in HEADS:
        forms = [form for tested, form in FORMS if tested == head]
        assert {form["align"] for form in forms} == {"none", "add", "multiply", "concat", "project"}
        assert {form["align"] for form in forms if form.get("align_at") == "pyramid"} == {"multiply", "project"}
        assert {form["refine"] for form in forms} >= {"none", "add", "multiply"}


@pytest.mark.parametrize("align", ["add", "concat"])
@pytest.mark.parametrize("head", HEADS)
def test_training_refuses_a_constant_that_a_batch_norm_takes_out(head, align):
    network = network_config(head, ImplicitConfig(align=align, align_at="pyramid"))
    message = (
        rf"network\.implicit\.align_at: found 'pyramid', expected prediction, as the batch norm .* takes out the constant of align {align}"
    )
    with pytest.raises(ConfigError, match=message):
        TrainConfig(network=network)
    assert dataclasses.replace(network).implicit.align_at == "pyramid", "weights of version 0.2 with such a prior are readable"
