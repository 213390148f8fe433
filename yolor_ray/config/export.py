"""Define the settings of export."""

from dataclasses import dataclass
from typing import Literal

from yolor_ray.errors import check

EXPORT_ENGINES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""Engine that runs the graph of an export, by format; weights run by any engine."""


@dataclass(frozen=True)
class ExportConfig:
    """Export of trained weights, with implicit vectors and batch norm folded away, or of an upstream checkpoint."""

    weights: str = ""
    """URL of a weights folder, or of the folder of a finished run; or give upstream."""
    output: str = ""
    """URL of the folder to write."""
    format: Literal["safetensors", "onnx", "openvino"] = "safetensors"
    """Format of the output: safetensors (fused; unfused from an upstream checkpoint), an ONNX file or an OpenVINO model (both fused)."""
    upstream: str = ""
    """URL of an upstream checkpoint: .pt of either branch, or darknet .weights. No code in the file is executed. Its safetensors are
    not fused, so that they can be trained further."""
    names: str = ""
    """URL of an upstream checkpoint's class names, one per line; empty takes those in the file, or COCO's for 80 classes."""
    data: str = "scenes:16"
    """URL of a packed dataset whose images check the result."""
    check_images: int = 0
    """Images of `data` for the comparison of predictions before and after; 0 takes 16, or 4 for an upstream checkpoint."""
    check_px: int = 0
    """Side of the input for that comparison, pixels, a multiple of 32. 0 takes image_px, but at most 256 for an upstream
    checkpoint: 16 images at 1280 px would take minutes on a CPU. The result of the comparison does not depend on the side."""
    image_px: int = 0
    """Side of the network input, pixels, a multiple of 32; 0 takes the size of the training."""

    def __post_init__(self) -> None:
        """Check for one source and an output, and check ranges."""
        given = [name for name in ("weights", "upstream") if getattr(self, name)]
        check(len(given) == 1, "export", " and ".join(given) or "neither", "either weights or upstream")
        check(bool(self.output), "output", self.output, "the URL of a folder to write")
        check(not (self.names and self.weights), "names", self.names, "upstream beside names: a weights folder has its own names")
        check(self.check_images >= 0, "check_images", self.check_images, "0 or more")
        for name in ("image_px", "check_px"):
            check(getattr(self, name) >= 0 and getattr(self, name) % 32 == 0, name, getattr(self, name), "0 or a multiple of 32")
