"""Execute a network with torch, and the predictor interface that all engines share.

Legend: B images, H W sides of the network input in pixels.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.config.network import Precision
from yolor_ray.model.network import Yolor

Predictor = Callable[[Tensor], dict[str, Tensor]]
"""Maps images (B, 3, H, W) in 0..1 to the outputs that `graph.OUTPUTS` describes, before non-maximum suppression."""


class DecodedYolor(nn.Module):
    """A network followed by its decoding."""

    def __init__(self, network: Yolor) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> dict[str, Tensor]:
        """Return the decoded outputs by name."""
        return self.network.decode(self.network(image))


def torch_predictor(network: Yolor, precision: Precision = "float32") -> Predictor:
    """Make a predictor that runs on the network's device; the weights become channels last, in place."""
    decoded = DecodedYolor(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    device_type = next(network.parameters()).device.type

    @torch.inference_mode()
    def predict(images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(device_type, torch.bfloat16, enabled=precision == "bfloat16"):
            return decoded(images.contiguous(memory_format=torch.channels_last))

    return predict
