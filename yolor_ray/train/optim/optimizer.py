"""Optimizer: parameter groups, and the update rule by name."""

import torch
from torch import nn

from yolor_ray.config import OptimConfig
from yolor_ray.model.implicit import IMPLICIT_MODULES

REFERENCE_IMAGES = 64
"""Images per update of the published learning rates and decay: an update counts as so many, for any batch."""
BETA2 = 0.99
"""Decay of the squared gradients in AdamW: torch's 0.999 remembers the large gradients of the start for a whole short run."""
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Return three groups: norm scales and implicit vectors, convolution weights (the only ones with decay), biases.

    Frozen parameters are in no group.
    """
    scales, weights, biases = [], [], []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name == "bias":
                biases.append(parameter)
            elif isinstance(module, (*NORMS, *IMPLICIT_MODULES)):
                scales.append(parameter)
            else:
                weights.append(parameter)
    return [
        {"params": scales, "weight_decay": 0.0},
        {"params": weights, "weight_decay": weight_decay},
        {"params": biases, "weight_decay": 0.0, "bias": True},
    ]


def make_optimizer(network: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimizer over the three parameter groups."""
    groups = parameter_groups(network, config.weight_decay * config.nominal_batch / REFERENCE_IMAGES)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, BETA2), fused=True)
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True, fused=True)
    # If the first update is skipped on the device, SGD would keep a momentum that torch has not initialised.
    for parameter in (parameter for group in groups for parameter in group["params"]):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
