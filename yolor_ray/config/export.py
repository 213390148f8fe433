"""TODO module docstring."""

from dataclasses import dataclass
from typing import Literal

from yolor_ray.errors import check


@dataclass(frozen=True)
class ExportConfig:
    """Write a network in a format: trained weights with implicit vectors and batch norm folded away, or a published checkpoint."""

    weights: str = ""
    """URL of a weights folder; or give upstream."""
    output: str = ""
    """URL of the folder to write."""
    format: Literal["safetensors", "onnx", "openvino"] = "safetensors"
    """What to write: our own weights (fused; those of a published file unfused), an ONNX file or an OpenVINO model (both fused)."""
    upstream: str = ""
    """URL of a published checkpoint, .pt of either branch or darknet .weights; nothing of it is executed, and safetensors made
    of it are not fused, so that they can be trained further."""
    names: str = ""
    """URL of a published checkpoint's class names, one per line; empty takes those in the file, or COCO's where it has 80 classes."""
    data: str = "scenes:16"
    """URL of a packed data set whose images check the result."""
    check_images: int = 0
    """Images of `data` on which predictions before and after are compared; 0 takes 16, or 4 for a published checkpoint."""
    check_px: int = 0
    """Side of the input for that comparison, pixels, a multiple of 32; 0 takes image_px, but at most 256 for a published
    checkpoint: 16 images at 1280 px would take minutes on a CPU, and what is compared does not depend on the side."""
    image_px: int = 0
    """Side of the network input, pixels, a multiple of 32; 0 takes the size it was trained at."""

    def __post_init__(self) -> None:
        """Check that there is one source and an output, and ranges."""
        given = [name for name in ("weights", "upstream") if getattr(self, name)]
        check(len(given) == 1, "export", " and ".join(given) or "neither", "either weights or upstream")
        check(bool(self.output), "output", self.output, "the URL of a folder to write")
        check(not (self.names and self.weights), "names", self.names, "upstream beside it: a weights folder has its names")
        check(self.check_images >= 0, "check_images", self.check_images, "0 or more")
        for name in ("image_px", "check_px"):
            check(getattr(self, name) >= 0 and getattr(self, name) % 32 == 0, name, getattr(self, name), "0 or a multiple of 32")
