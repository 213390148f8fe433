"""Define the knobs of evaluation and export."""

from dataclasses import dataclass
from typing import Literal

from yolor_ray.config.check import check


@dataclass(frozen=True)
class Evaluate:
    """Measure weights on a packed data set, every task that both know, or a results file against an annotation file."""

    weights: str = ""
    """URL of a weights folder; goes with data."""
    data: str = ""
    """URL of a packed data set, several separated by commas to see them as one, or `scenes:N`."""
    truth: str = ""
    """URL of a COCO annotation file; goes with results, and no network is run."""
    results: str = ""
    """URL of a COCO results file."""
    kind: Literal["bbox", "segm", "keypoints"] = "bbox"
    """What of truth and results is compared."""
    image_px: int = 0
    """Side of the network input, pixels, a multiple of 32; 0 takes the size it was trained at."""
    batch: int = 16
    """Images per forward pass, 1 or more; the end of a row group ends a batch."""
    workers: int = 0
    """Processes that predict: 0 = in this process, N = that many Ray tasks."""
    threads: int = 2
    """Decode threads beside each worker, 1 or more."""
    gpu: bool = False
    """One GPU per worker."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; `bfloat16` measures what a replica of that precision serves here."""
    output: str = ""
    """URL of a folder for the report and pictures; empty writes none."""

    def __post_init__(self) -> None:
        """Check that one pair is there, and ranges."""
        given = {name for name in ("weights", "data", "truth", "results") if getattr(self, name)}
        pairs = {"weights", "data"}, {"truth", "results"}
        check(given in pairs, "evaluate", " and ".join(sorted(given)) or "neither", "weights and data, or truth and results")
        check(self.image_px >= 0 and self.image_px % 32 == 0, "image_px", self.image_px, "0 or a multiple of 32")
        for name, least in (("batch", 1), ("workers", 0), ("threads", 1)):
            check(getattr(self, name) >= least, name, getattr(self, name), f"{least} or more")


@dataclass(frozen=True)
class Export:
    """Write a network in a format: trained weights with implicit vectors and batch norm folded away, or a published checkpoint."""

    weights: str = ""
    """URL of a weights folder; or give published."""
    output: str = ""
    """URL of the folder to write."""
    format: Literal["safetensors", "onnx", "openvino"] = "safetensors"
    """What to write: our own weights (fused; those of a published file unfused), an ONNX file or an OpenVINO model (both fused)."""
    published: str = ""
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
        given = [name for name in ("weights", "published") if getattr(self, name)]
        check(len(given) == 1, "export", " and ".join(given) or "neither", "either weights or published")
        check(bool(self.output), "output", self.output, "the URL of a folder to write")
        check(not (self.names and self.weights), "names", self.names, "published beside it: a weights folder has its names")
        check(self.check_images >= 0, "check_images", self.check_images, "0 or more")
        for name in ("image_px", "check_px"):
            check(getattr(self, name) >= 0 and getattr(self, name) % 32 == 0, name, getattr(self, name), "0 or a multiple of 32")
