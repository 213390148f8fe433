"""Find out how much arithmetic this machine can do: a large matrix product and a large convolution.

On CPUs the two differ by more than a factor of two, and neither is always the larger.
"""

from collections.abc import Callable, Mapping

import torch

Peaks = Mapping[str, tuple[Callable[[], object], float]]
"""Work and its floating point operations (two per multiply-add), by name: kind and precision."""

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
CONVOLUTION_IMAGES = {"cpu": 1, "cuda": 32}
CHANNELS, CELLS = 256, 80


def peak_works(device: torch.device) -> Peaks:
    """Return what to time in order to know the device's peaks, in float32 and bfloat16."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        precision = str(dtype).removeprefix("torch.")
        found[f"matmul_{precision}"] = _matrix_product(device, dtype)
        found[f"conv_{precision}"] = _convolution(device, dtype)
    return found


def _matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    side = MATRIX_SIDE[device.type]
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    return lambda: torch.mm(a, b), 2 * side**3


def _convolution(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """Return a 3x3 convolution of a shape that the networks have."""
    images = CONVOLUTION_IMAGES[device.type]
    pixels = torch.rand(images, CHANNELS, CELLS, CELLS, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False, device=device, dtype=dtype).requires_grad_(False)
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda: layer(pixels), 2 * images * CELLS**2 * 9 * CHANNELS**2
