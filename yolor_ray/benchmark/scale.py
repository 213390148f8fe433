"""Measure the seconds and the memory of each part of a run up to its first step, over datasets of growing numbers of tiny images.

A part whose exponent is 0 costs the same for any dataset; a part whose exponent is 1 costs in proportion to the number of images. Memory is
the peak of this process during the part, over its memory before. All parts run in this process, without Ray.
"""

import ctypes
import dataclasses
import gc
import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import simplejpeg
import torch

from yolor_ray.config import ClusterConfig, DataConfig, PackCocoConfig, RunConfig, TrainConfig
from yolor_ray.config.benchmark import ScaleConfig
from yolor_ray.config.presets import PRESETS
from yolor_ray.data.loading.epoch_plan import plan_steps
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.data.shards.image_hashes import image_hashes
from yolor_ray.pack.plan import plan_annotated
from yolor_ray.pack.run import build_dataset
from yolor_ray.report.provenance import machine
from yolor_ray.train.context import TrainContext, make_learner, make_loader, make_targets, make_windows
from yolor_ray.train.distributed import make_dist_context
from yolor_ray.train.run import prepare

logger = logging.getLogger(__name__)

IMAGE_PX, INPUT_PX = 32, 64
"""Sides of the images and of the network input."""
BOXES = 4
"""Boxes per image."""
PARTS = ("pack", "open", "hash", "prepare", "plan", "first_step")
STATUS, CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one part for one dataset."""

    seconds: float
    mb: float
    """Peak memory of the process during the part, over its memory before, MB."""


def scale(config: ScaleConfig) -> dict[str, Any]:
    """Measure all parts for each number of images, and return seconds, MB and exponents by part.

    `start_s` is the time of a first start on a packed dataset: all parts but the packing.
    """
    before = machine()
    costs: dict[str, dict[int, Cost]] = {part: {} for part in PARTS}
    for images in config.images:
        with tempfile.TemporaryDirectory(prefix="yolor-scale-") as folder:
            for part, cost in _measure_parts(images, Path(folder)).items():
                logger.info("event=part images=%d part=%s seconds=%.3f mb=%.1f", images, part, cost.seconds, cost.mb)
                costs[part][images] = cost
    starts = {images: sum(costs[part][images].seconds for part in PARTS if part != "pack") for images in config.images}
    return {
        "parts": {part: _summary(by_images) for part, by_images in costs.items()},
        "start_s": {str(images): round(seconds, 3) for images, seconds in starts.items()},
        "settings": {"images": list(config.images), "image_px": IMAGE_PX, "boxes": BOXES, "preset": "nano"},
        "machine": before,
    }


def measure(function: Callable[[], Result]) -> tuple[Result, Cost]:
    """Run a function and return its result and its cost."""
    # Memory that earlier parts have freed would hide that of this part.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pa.default_memory_pool().release_unused()
    CLEAR_PEAK.write_text("5")
    memory = _memory_mb("VmRSS")
    started = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - started
    return result, Cost(seconds, max(_memory_mb("VmHWM") - memory, 0.0))


def exponent(numbers: Sequence[int], costs: Sequence[float]) -> float | None:
    """Return the exponent b of costs = a x numbers^b, fitted in logarithms; None for one number, or where a cost is 0."""
    if len(numbers) < 2 or min(costs) <= 0:
        return None
    return round(float(np.polyfit(np.log(numbers), np.log(costs), 1)[0]), 2)


def _summary(by_images: dict[int, Cost]) -> dict[str, Any]:
    numbers = list(by_images)
    seconds, mb = ([getattr(cost, name) for cost in by_images.values()] for name in ("seconds", "mb"))
    return {
        "seconds": {str(images): round(cost.seconds, 4) for images, cost in by_images.items()},
        "mb": {str(images): round(cost.mb, 1) for images, cost in by_images.items()},
        "seconds_exponent": exponent(numbers, seconds),
        "mb_exponent": exponent(numbers, mb),
    }


def _memory_mb(name: str) -> float:
    """Return a size of this process in MB, of the kernel's kB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / 1e6


def _measure_parts(images: int, folder: Path) -> dict[str, Cost]:
    """Measure the parts of a run on a new dataset, in their order."""
    annotated = _write_images(images, folder)
    url = annotated.output
    costs = {}
    _, costs["pack"] = measure(lambda: build_dataset(plan_annotated(annotated), parallel=False))
    dataset, costs["open"] = measure(lambda: open_dataset(url))
    _, costs["hash"] = measure(lambda: image_hashes(dataset, str(folder / "hashes")))
    context, costs["prepare"] = measure(lambda: prepare(_train_config(url, folder), str(folder / "runs" / "scale")))
    costs |= _measure_step(context)
    return costs


def _measure_step(context: TrainContext) -> dict[str, Cost]:
    """Measure the plan of an epoch, and its first batch and step."""
    dist_context = make_dist_context(torch.device("cpu"))
    learner = make_learner(context, dist_context)
    seen = np.zeros(context.train.images, bool)
    batch_size = context.config.optim.batch

    def plan() -> tuple[Any, Any]:
        windows = make_windows(context, epoch=0)
        return windows, plan_steps(windows, seen, rank=0, world_size=1, batch=batch_size)

    (windows, steps), planned = measure(plan)
    with closing(make_loader(context)) as loader:

        def step() -> None:
            batch = next(iter(loader.epoch(windows, steps)))
            learner.learn(torch.from_numpy(batch.images), make_targets(batch), must_update=True)

        _, stepped = measure(step)
    return {"plan": planned, "first_step": stepped}


def _train_config(url: str, folder: Path) -> TrainConfig:
    preset = PRESETS["nano"]
    return dataclasses.replace(
        preset,
        data=DataConfig(train=url, val=url, image_px=INPUT_PX, allow_shared_images=True),
        optim=dataclasses.replace(preset.optim, pretrained=""),
        cluster=ClusterConfig(compute_threads=1),
        run=RunConfig(storage=str(folder / "runs"), name="scale"),
    )


def _write_images(images: int, folder: Path) -> PackCocoConfig:
    """Write different images of noise with COCO annotations, and return the settings that pack them."""
    rng = np.random.default_rng(0)
    photos = folder / "images"
    photos.mkdir()
    for number in range(images):
        pixels = rng.integers(0, 256, (IMAGE_PX, IMAGE_PX, 3), np.uint8)
        (photos / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, quality=50))
    corners, sides = rng.integers(0, IMAGE_PX // 2, (images * BOXES, 2)), rng.integers(4, IMAGE_PX // 2, (images * BOXES, 2))
    boxes = np.concatenate([corners, sides], axis=1).tolist()
    annotations = folder / "coco.json"
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": IMAGE_PX, "height": IMAGE_PX} for n in range(images)],
        "categories": [{"id": 0, "name": "box"}],
        "annotations": [
            {"id": n, "image_id": n // BOXES, "category_id": 0, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, box in enumerate(boxes)
        ],
    }
    annotations.write_text(json.dumps(content))
    return PackCocoConfig(images=str(photos), annotations=str(annotations), output=str(folder / "packed"))
