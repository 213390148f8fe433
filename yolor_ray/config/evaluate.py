"""Define the settings of evaluation."""

from dataclasses import dataclass
from typing import Literal

from yolor_ray.config.network import Precision
from yolor_ray.errors import check


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation of weights on a packed dataset, for every task of both, or of a COCO results file with an annotation file."""

    weights: str = ""
    """URL of a weights folder, or of the folder of a finished run; needs data."""
    data: str = ""
    """URL of a packed dataset, several separated by commas that count as one dataset, or `scenes:N`."""
    truth: str = ""
    """URL of a COCO annotation file; needs results, and no network runs."""
    results: str = ""
    """URL of a COCO results file."""
    iou_type: Literal["bbox", "segm", "keypoints"] = "bbox"
    """Annotations of truth and results to compare."""
    image_px: int = 0
    """Side of the network input, pixels, a multiple of 32; 0 takes the size of the training."""
    batch: int = 16
    """Images per forward pass, 1 or more; the end of a row group ends a batch."""
    workers: int = 0
    """Processes that predict: 0 = in this process, N = that many Ray tasks."""
    decode_threads: int = 2
    """Decode threads beside each worker, 1 or more."""
    gpu: bool = False
    """One GPU per worker."""
    precision: Precision = "float32"
    """Number format of the network's computation; `bfloat16` measures the accuracy of a replica with that precision."""
    output: str = ""
    """URL of a folder for the report and plots; empty writes none."""

    def __post_init__(self) -> None:
        """Check the pair of sources, and ranges."""
        given = {name for name in ("weights", "data", "truth", "results") if getattr(self, name)}
        pairs = {"weights", "data"}, {"truth", "results"}
        check(given in pairs, "evaluate", " and ".join(sorted(given)) or "neither", "weights and data, or truth and results")
        check(self.image_px >= 0 and self.image_px % 32 == 0, "image_px", self.image_px, "0 or a multiple of 32")
        for name, minimum in (("batch", 1), ("workers", 0), ("decode_threads", 1)):
            check(getattr(self, name) >= minimum, name, getattr(self, name), f"{minimum} or more")
