"""Peak arithmetic speed of this machine: a large matrix product and a large convolution, for the inference benchmark.

On CPUs the two speeds differ by more than a factor of two, and neither is always the higher one.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
CONVOLUTION_IMAGES = {"cpu": 1, "cuda": 32}
CHANNELS, CELLS = 256, 80


class PeakFunction(NamedTuple):
    """Function to time, and its number of floating point operations: two per multiply-add."""

    function: Callable[[], object]
    operations: float


def peak_functions(device: torch.device) -> Mapping[str, PeakFunction]:
    """Return the functions whose speed is the device's peak, in float32 and bfloat16; names are KIND_PRECISION."""
    functions = {}
    for dtype in (torch.float32, torch.bfloat16):
        precision = str(dtype).removeprefix("torch.")
        functions[f"matmul_{precision}"] = _matrix_product(device, dtype)
        functions[f"conv_{precision}"] = _convolution(device, dtype)
    return functions


def _matrix_product(device: torch.device, dtype: torch.dtype) -> PeakFunction:
    side = MATRIX_SIDE[device.type]
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    return PeakFunction(lambda: torch.mm(a, b), 2 * side**3)


def _convolution(device: torch.device, dtype: torch.dtype) -> PeakFunction:
    """Return a 3x3 convolution in a shape that the networks have."""
    images = CONVOLUTION_IMAGES[device.type]
    pixels = torch.rand(images, CHANNELS, CELLS, CELLS, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False, device=device, dtype=dtype).requires_grad_(False)
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return PeakFunction(lambda: layer(pixels), 2 * images * CELLS**2 * 9 * CHANNELS**2)
