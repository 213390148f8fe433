"""Settings of the optimizer that follow from the number of updates, and the published recipes."""

import math
from dataclasses import replace

import pytest
import torch

from yolor_ray.config import AugmentConfig, LossConfig, NetworkConfig, OptimConfig, TrainConfig
from yolor_ray.config.presets import PRESETS
from yolor_ray.errors import ConfigError
from yolor_ray.train.optim.optimizer import make_optimizer
from yolor_ray.train.optim.recipe import resolve

ANCHORS, FREE = NetworkConfig(), NetworkConfig(head="free")


def resolved(network: NetworkConfig = FREE, steps: int = 10, augment: AugmentConfig | None = None, **optim: object) -> TrainConfig:
    settings = {"epochs": 20, "batch": 16, "nominal_batch": 16, **optim}
    return resolve(TrainConfig(network=network, augment=augment or AugmentConfig(), optim=OptimConfig(**settings)), steps)


@pytest.mark.parametrize(
    ("network", "steps", "nominal", "optimizer", "lr"),
    [
        (FREE, 10, 16, "adamw", 0.002),
        (FREE, 5000, 16, "adamw", 0.002),
        (ANCHORS, 499, 16, "adamw", 0.002),
        (ANCHORS, 500, 16, "sgd", 0.01),
        (ANCHORS, 1000, 64, "adamw", 0.002),
        (ANCHORS, 2000, 64, "sgd", 0.01),
    ],
)
def test_the_update_rule_follows_from_head_and_updates(network, steps, nominal, optimizer, lr):
    optim = resolved(network, steps, nominal_batch=nominal).optim
    assert (optim.optimizer, optim.lr) == (optimizer, lr)


@pytest.mark.parametrize(
    ("tasks", "settings", "factor"),
    [
        (("detect",), {}, 1),
        (("detect", "pose", "embed"), {}, math.sqrt(3)),
        (("detect", "pose", "embed"), {"pose": 0.0, "embed": 2.0}, math.sqrt(5)),
        (("detect", "pose"), {"optimizer": "sgd"}, 5),
        (("detect", "pose"), {"freeze": "neck", "pretrained": "w"}, 1),
        (("detect", "pose"), {"lr": 0.004}, 2),
    ],
)
def test_the_automatic_rate_keeps_the_step_of_detection_beside_other_tasks(tasks, settings, factor):
    gains = {name: value for name, value in settings.items() if name in ("pose", "embed")}
    optim = {name: value for name, value in settings.items() if name not in gains}
    network = replace(FREE, tasks=tasks)
    config = TrainConfig(network=network, loss=LossConfig(**gains), optim=OptimConfig(epochs=20, batch=16, nominal_batch=16, **optim))
    assert resolve(config, 10).optim.lr == pytest.approx(0.002 * factor)


def test_settings_of_the_user_stay():
    optim = resolved(optimizer="sgd", lr=0.03, final_lr_ratio=0.5).optim
    assert (optim.optimizer, optim.lr, optim.final_lr_ratio) == ("sgd", 0.03, 0.5)
    assert resolved(optimizer="sgd").optim.lr == 0.01


@pytest.mark.parametrize(("epochs", "asked", "closed"), [(300, 10, 10), (36, 10, 5), (8, 10, 1), (1, 10, 1), (300, 0, 0), (300, 26, 26)])
def test_mosaic_is_closed_for_an_eighth_of_the_run_at_most(epochs, asked, closed):
    config = resolved(epochs=epochs, augment=AugmentConfig(close_mosaic_epochs=asked))
    assert config.augment.close_mosaic_epochs == closed


def test_the_published_recipe_is_that_of_yolor_for_any_run():
    config = resolved(FREE, 1, recipe="published", epochs=300)
    optim = config.optim
    assert (optim.optimizer, optim.lr, optim.final_lr_ratio, optim.clip_ratio) == ("sgd", 0.01, 0.2, 0.0)
    assert (optim.momentum, optim.weight_decay, optim.warmup_epochs, optim.ema_decay) == (0.937, 5e-4, 3.0, 0.9999)
    assert config.augment.close_mosaic_epochs == 0


def test_the_second_published_phase_has_its_own_rate_and_augmentation():
    preset = PRESETS["p6"]
    optim = replace(preset.optim, recipe="published-finetune", pretrained="w", epochs=150)
    config = resolve(replace(preset, optim=optim), 100)
    assert config.optim.lr * config.optim.final_lr_ratio == pytest.approx(0.002, rel=1e-3)
    assert (config.augment.scale, config.augment.mixup, config.augment.mosaic) == (0.8, 0.2, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "published", "lr": 0.02}, r"optim\.lr: found 0\.02, expected 0\.01, as optim\.recipe is published"),
        ({"recipe": "published", "optimizer": "adamw"}, r"optim\.optimizer: found 'adamw', expected sgd"),
        ({"recipe": "published-finetune"}, r"optim\.pretrained: found 'none', expected weights"),
    ],
)
def test_a_published_recipe_refuses_other_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**settings)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_update_rule_lowers_a_loss(optimizer):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 8, 3), torch.nn.SiLU(), torch.nn.Conv2d(8, 1, 1))
    x, y = torch.randn(16, 2, 6, 6), torch.randn(16, 1, 4, 4)
    optim = make_optimizer(network, OptimConfig(optimizer=optimizer, lr=0.01))
    losses = []
    for _ in range(60):
        loss = (network(x) - y).square().mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    names = {key for state in optim.state.values() for key in state}
    assert names == {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}[optimizer]
