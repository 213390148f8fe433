"""Optimizer: parameter groups, and the update rule by name."""

import torch
from torch import nn

from yolor_ray.config import OptimConfig
from yolor_ray.model.implicit import Implicit

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
            elif isinstance(module, (*NORMS, Implicit)):
                scales.append(parameter)
            else:
                weights.append(parameter)
    return [
        {"params": scales, "weight_decay": 0.0},
        {"params": weights, "weight_decay": weight_decay},
        {"params": biases, "weight_decay": 0.0, "bias": True},
    ]


def make_optimizer(network: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum over the three parameter groups."""
    groups = parameter_groups(network, config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)
