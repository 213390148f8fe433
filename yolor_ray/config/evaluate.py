"""Define the settings of evaluation and of prediction."""

from dataclasses import dataclass, field
from typing import Literal

from yolor_ray.config.network import Precision
from yolor_ray.config.serve import Confidence, ServeConfig, check_limits
from yolor_ray.config.train import WorkersConfig
from yolor_ray.errors import check


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation of weights on a packed dataset, for every task of both, or of a COCO results file with an annotation file."""

    weights: str = ""
    """URL of a weights folder, of an export, or of the folder of a finished run; needs data."""
    data: str = ""
    """URL of a packed dataset, several separated by commas that count as one dataset, or `scenes:N`."""
    against: str = ""
    """URL of weights of the same classes to compare with: differences with 95 % intervals over the images of `data`."""
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
        check(not self.against or given == pairs[0], "against", self.against, "none without weights and data")
        check(given in pairs, "evaluate", " and ".join(sorted(given)) or "neither", "weights and data, or truth and results")
        check(self.image_px >= 0 and self.image_px % 32 == 0, "image_px", self.image_px, "0 or a multiple of 32")
        for name, minimum in (("batch", 1), ("workers", 0), ("decode_threads", 1)):
            check(getattr(self, name) >= minimum, name, getattr(self, name), f"{minimum} or more")


@dataclass(frozen=True)
class PredictConfig:
    """Detections of every image of a folder, a list, a packed dataset or a video, as Parquet files and COCO JSON."""

    weights: str
    """URL of a weights folder, of an export, or of the folder of a finished run; unfused weights are fused when they are loaded."""
    images: str
    """URL of a folder or bucket prefix of images, a text file with one image per line, a packed dataset, a video, or an image."""
    output: str
    """URL of the folder to write. The folder must be empty, or hold predictions of the same images by the same weights and settings, which
    the job then finishes."""
    format: Literal["parquet", "coco"] = "parquet"
    """`coco` also writes the detections as COCO JSON, for labelling tools."""
    draw: int = 0
    """Images to draw with their detections: those with the most detections whose confidence is less than 0.2 over `confidence`."""
    confidence: Confidence = ServeConfig.confidence
    """Lowest confidence of a detection, 0 to 1; `best` takes that of the weights for each class, or else 0.25."""
    iou: float = ServeConfig.iou
    """IoU from which boxes of one class are one object, over 0, up to 1."""
    max_detections: int = ServeConfig.max_detections
    """Most detections per image, 1 to 1000; with tiles, per tile and per image."""
    classes: tuple[str, ...] = ()
    """Names of the only classes to detect; empty for all."""
    tile: int = 0
    """Side of the square tiles that larger images are cut into, pixels, 64 or more; 0 fits each image as a whole into the network's
    input."""
    overlap: float = 0.2
    """Share of a tile that its neighbour covers too, 0 to 0.5."""
    every_s: float = 1.0
    """Seconds of a video from one predicted frame to the next; 0 predicts every frame."""
    batch: int = 16
    """Images or tiles per forward pass, 1 or more."""
    decode_threads: int = 2
    """Decode threads beside each worker, 1 or more."""
    engine: Literal["fastest", "torch", "onnxruntime", "openvino"] = "fastest"
    """Engine that executes the network. `fastest` compares the predictions of each installed engine with the weights', and measures its
    speed, as serving does. A named engine saves most of that time. On a GPU there is only torch. An export has its own engine."""
    precision: Precision = "float32"
    """Number format of the network's computation. Scores in `bfloat16` differ by about 0.01. ONNX Runtime always computes in float32."""
    cluster: WorkersConfig = field(default_factory=WorkersConfig)
    """Processes that predict."""

    def __post_init__(self) -> None:
        """Check the URLs and ranges."""
        for name in ("weights", "images", "output"):
            check(bool(getattr(self, name)), name, getattr(self, name), "a URL")
        check_limits(self.confidence, self.iou, self.max_detections)
        check(self.tile == 0 or self.tile >= 64, "tile", self.tile, "0, or 64 or more")
        check(0 <= self.overlap <= 0.5, "overlap", self.overlap, "0 to 0.5")
        for name, minimum in (("draw", 0), ("every_s", 0), ("batch", 1), ("decode_threads", 1)):
            check(getattr(self, name) >= minimum, name, getattr(self, name), f"{minimum} or more")
