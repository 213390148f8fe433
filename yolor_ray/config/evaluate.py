"""Define the knobs of evaluation and export."""

from dataclasses import dataclass
from typing import Literal

from yolor_ray.errors import check


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure weights on a packed data set, every task that both know, or a results file against an annotation file."""

    weights: str = ""
    """URL of a weights folder; goes with data."""
    data: str = ""
    """URL of a packed data set, several separated by commas to see them as one, or `scenes:N`."""
    truth: str = ""
    """URL of a COCO annotation file; goes with results, and no network is run."""
    results: str = ""
    """URL of a COCO results file."""
    iou_type: Literal["bbox", "segm", "keypoints"] = "bbox"
    """What of truth and results is compared."""
    image_px: int = 0
    """Side of the network input, pixels, a multiple of 32; 0 takes the size it was trained at."""
    batch: int = 16
    """Images per forward pass, 1 or more; the end of a row group ends a batch."""
    workers: int = 0
    """Processes that predict: 0 = in this process, N = that many Ray tasks."""
    decode_threads: int = 2
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
        for name, least in (("batch", 1), ("workers", 0), ("decode_threads", 1)):
            check(getattr(self, name) >= least, name, getattr(self, name), f"{least} or more")
