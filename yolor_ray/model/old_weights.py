"""Convert weights of version 0.2 whose implicit knowledge has another form in this version, exactly in eval mode.

- `align project` was a factor 2σ(⟨p, z⟩) of each channel. It becomes `align multiply` with the same factors.
- The head of `embed` had a batch norm behind its prediction convolution. It is folded into that convolution. The batch norm that the
  head has in this version changes nothing at first.
"""

import logging
import math
import re
from dataclasses import replace

import torch
from torch import Tensor

from yolor_ray.config import NetworkConfig

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]

GATE = re.compile(r"(.*\.(?:align|pyramid))\.phi")
"""Name of the projections p of one alignment of version 0.2."""
OLD_NORM = re.compile(r"(tasks\.embed\.levels\.\d+)\.norm\.weight")
NORM_VECTORS, COUNTER = ("weight", "bias", "running_mean", "running_var"), "num_batches_tracked"


def convert_old_weights(config: NetworkConfig, tensors: Tensors) -> tuple[NetworkConfig, Tensors]:
    """Return the configuration and the tensors of this version; tensors of other shapes than those of version 0.2 stay as they are."""
    tensors = dict(tensors)
    levels = [match[1] for match in map(OLD_NORM.fullmatch, list(tensors)) if match]
    if levels:
        logger.info("event=old_weights_converted reason='the batch norm of embed now stands before its prediction convolution'")
    for level in levels:
        _move_norm(level, config, tensors)
    gates = [match[1] for match in map(GATE.fullmatch, list(tensors)) if match]
    if config.implicit.align != "project" or not gates:
        return config, tensors
    logger.info(
        "event=old_weights_converted reason='align project is now a projection; the weights get align multiply, with equal factors'"
    )
    for name in gates:
        _replace_gate(name, tensors)
    return replace(config, implicit=replace(config.implicit, align="multiply")), tensors


def _replace_gate(name: str, tensors: Tensors) -> None:
    z, phi = tensors.get(f"{name}.z"), tensors[f"{name}.phi"]
    if z is not None and phi.dim() == 2 and z.shape == phi.shape[1:] and not (z.is_complex() or phi.is_complex()):
        tensors[f"{name}.z"] = (2 * (phi.double() @ z.double()).sigmoid()).to(z.dtype)
        del tensors[f"{name}.phi"]


def _move_norm(level: str, config: NetworkConfig, tensors: Tensors) -> None:
    """Fold a batch norm y -> s y + t behind a prediction convolution into it, W' = s W and b' = s b + t, and add a neutral norm before."""
    old, weight = [f"{level}.norm.{name}" for name in NORM_VECTORS], tensors.get(f"{level}.predict.weight", torch.empty(0))
    vectors = [tensors.get(name, torch.empty(0)) for name in (f"{level}.predict.bias", *old)]
    if weight.dim() != 4 or any(vector.shape != weight.shape[:1] for vector in vectors) or any(t.is_complex() for t in (weight, *vectors)):
        return
    bias, gamma, beta, mean, variance = (vector.double() for vector in vectors)
    scale = gamma / (variance + config.norm_eps).sqrt()
    is_widened = config.implicit.align == "concat" and config.implicit.align_at == "prediction"
    ones = torch.ones(weight.shape[1] // (2 if is_widened else 1))
    neutral = (ones * math.sqrt(1 + config.norm_eps), torch.zeros_like(ones), torch.zeros_like(ones), ones)
    tensors |= {f"{level}.centre.{name}": vector for name, vector in zip(NORM_VECTORS, neutral, strict=True)}
    tensors[f"{level}.centre.{COUNTER}"] = tensors.pop(f"{level}.norm.{COUNTER}", torch.tensor(0))
    tensors[f"{level}.predict.weight"] = (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype)
    tensors[f"{level}.predict.bias"] = (scale * (bias - mean) + beta).to(weight.dtype)
    for name in old:
        del tensors[name]
