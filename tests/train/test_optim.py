"""Parameter groups, schedule and weight average: compared with the numbers of the reference recipe."""

import math

import pytest
import torch
from torch import nn

from yolor_ray.config import OptimConfig, presets
from yolor_ray.config.train import PUBLISHED_RECIPES
from yolor_ray.model.network import Yolor
from yolor_ray.train.optim.average import WeightAverage
from yolor_ray.train.optim.optimizer import make_optimizer, parameter_groups
from yolor_ray.train.optim.schedule import WARMUP_BIAS_LR, WARMUP_MOMENTUM, Schedule


@pytest.mark.parametrize(("config", "sizes"), [(presets.P6, [149, 145, 145]), (presets.CSP, [118, 115, 115])], ids=["p6", "csp"])
def test_parameter_groups_have_the_sizes_of_the_reference(config, sizes):
    with torch.device("meta"):
        network = Yolor(config, 80, torch.ones(config.levels, 3, 2))
    groups = parameter_groups(network, 5e-4)
    assert [len(group["params"]) for group in groups] == sizes
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in network.parameters())


def test_only_convolution_weights_decay(make_learner):
    learner = make_learner(weight_decay=0.25)
    names = {parameter: name for name, parameter in learner.network.named_parameters()}
    decayed = {names[p] for group in learner.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    kernels = {name for name, parameter in learner.network.named_parameters() if parameter.ndim == 4}
    assert decayed == kernels
    assert {group["weight_decay"] for group in learner.optimizer.param_groups} == {0.0, 0.25 * 2 / 64}, (
        "in proportion to the images per update"
    )


def test_the_learning_rate_follows_the_reference_cosine():
    schedule = Schedule(OptimConfig(epochs=450, final_lr_ratio=0.2), steps_per_epoch=1)
    assert schedule.lr_factor(0) == 1.0
    assert schedule.lr_factor(299) == pytest.approx(0.4024, abs=5e-5)
    assert schedule.lr_factor(450) == pytest.approx(0.2)
    assert all(schedule.lr_factor(step) > schedule.lr_factor(step + 1) for step in range(450))


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "warmup_epochs", "steps"),
    [(300, 2000, 3.0, 6000), (300, 100, 3.0, 1000), (10, 10, 3.0, 10), (24, 40, 3.0, 96), (1, 1, 3.0, 0), (300, 100, 0.0, 0)],
)
def test_warm_up_is_three_epochs_or_1000_steps_but_never_over_a_tenth_of_the_run(epochs, steps_per_epoch, warmup_epochs, steps):
    schedule = Schedule(OptimConfig(epochs=epochs, warmup_epochs=warmup_epochs), steps_per_epoch)
    assert schedule.warmup_steps == steps
    assert schedule.warmup_steps <= schedule.total_steps / 10


def test_accumulation_ramps_up_during_warm_up():
    schedule = Schedule(OptimConfig(batch=8, nominal_batch=64, epochs=100), steps_per_epoch=100)
    ramp = [schedule.batches_per_update(step) for step in range(schedule.warmup_steps)]
    assert ramp[0] == 1
    assert ramp == sorted(ramp)
    assert set(ramp) == set(range(1, 9))
    assert {schedule.batches_per_update(step) for step in range(schedule.warmup_steps, 2000)} == {8}


@pytest.mark.parametrize(("batch", "full"), [(1, 64), (16, 4), (24, 3), (64, 1), (500, 1)])
def test_accumulated_batches_add_up_to_about_the_nominal_batch(batch, full):
    schedule = Schedule(OptimConfig(batch=batch, nominal_batch=64, warmup_epochs=0.0), steps_per_epoch=10)
    assert schedule.batches_per_update(0) == full


def test_warm_up_raises_rate_and_momentum_and_lowers_the_rate_of_biases(make_learner):
    optim = OptimConfig(epochs=300, recipe="published", **PUBLISHED_RECIPES["published"])
    schedule, optimizer = Schedule(optim, steps_per_epoch=100), make_optimizer(make_learner().network, optim)
    rates = []
    for step in (0, 500, 1000, 29_999):
        schedule.apply(optimizer, step)
        scales, weights, biases = optimizer.param_groups
        assert scales["lr"] == weights["lr"]
        assert scales["momentum"] == weights["momentum"] == biases["momentum"]
        rates.append((weights["lr"], biases["lr"], biases["momentum"]))
    assert rates[0] == (0.0, WARMUP_BIAS_LR, WARMUP_MOMENTUM)
    half = 0.01 * schedule.lr_factor(500)
    assert rates[1] == pytest.approx((half / 2, (0.1 + half) / 2, (0.8 + 0.937) / 2))
    assert rates[2] == pytest.approx((0.01 * schedule.lr_factor(1000), 0.01 * schedule.lr_factor(1000), 0.937))
    assert rates[3] == pytest.approx((0.002, 0.002, 0.937), rel=1e-3)


def test_without_warm_up_the_first_step_has_the_full_rate(make_learner):
    learner = make_learner(lr=0.02)
    learner.schedule.apply(learner.optimizer, 0)
    assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([0.02] * 3)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))


def test_the_weight_average_follows_the_reference_formula():
    network = small_network()
    average = WeightAverage(network, 0.9999, window=100_000.0)
    expected = {name: tensor.double() for name, tensor in network.state_dict().items()}
    for update in range(1, 6):
        with torch.no_grad():
            network[0].weight.normal_()
            network[1].running_mean.normal_()
            network[1].num_batches_tracked += 1
        average.update()
        decay = 0.9999 * (1 - math.exp(-update / 2000))
        for name, tensor in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    for name, tensor in average.network.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], atol=1e-5, rtol=1e-5)
    assert average.network[1].num_batches_tracked == network[1].num_batches_tracked == 5


def test_the_average_of_a_short_run_forgets_the_initial_weights():
    network = small_network()
    average = WeightAverage(network, 0.9999, window=20.0)
    start, end = network[0].weight.detach().clone(), torch.zeros_like(network[0].weight)
    with torch.no_grad():
        network[0].weight.zero_()
    for _ in range(200):
        average.update()
    assert (average.network[0].weight - end).abs().max() < 0.01 * start.abs().max()


def test_the_average_is_never_trained():
    average = WeightAverage(small_network().train(), 0.999, window=1.0)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
