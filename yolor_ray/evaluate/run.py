"""Evaluate weights on a packed dataset, in this process or in Ray tasks, or score existing files.

Workers take whole row groups, and their predictions are merged by image id: metrics do not depend on the number of workers.
"""

import functools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from tqdm import tqdm

from yolor_ray import __version__
from yolor_ray.cluster.capacity import wait_for_resources
from yolor_ray.cluster.connect import as_completed, start_ray
from yolor_ray.config import EvaluateConfig
from yolor_ray.config.network import Precision
from yolor_ray.data.coco_rules import warn_of_limit
from yolor_ray.data.shards.dataset import Dataset, RowGroup
from yolor_ray.data.shards.union import open_datasets, relabel_to
from yolor_ray.errors import ConfigError
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.against.difference import compare_results
from yolor_ray.evaluate.against.page import difference_files
from yolor_ray.evaluate.examples import select_examples
from yolor_ray.evaluate.metrics import EvalResult, measure
from yolor_ray.evaluate.page.page import PAGE_FILE, Subject, report_page
from yolor_ray.evaluate.predict import Detect, merge_detections, predict_row_groups, split_row_groups
from yolor_ray.evaluate.report import report_files
from yolor_ray.inference import detect
from yolor_ray.inference.engine_choice import choose_engine
from yolor_ray.inference.models import Model, load_model
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.io.manifest import publish
from yolor_ray.io.weights_url import absolute_weights
from yolor_ray.model.fuse import fuse
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.pack.scenes_url import temporary_dataset_urls

PROGRESS: dict[str, Any] = {
    "bar_format": "event=predicting images={n_fmt} total={total_fmt} elapsed={elapsed} remaining={remaining}",
    "mininterval": 1,
}
"""Settings of tqdm for a line of progress on standard error."""

logger = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Return the metrics by name; if a network was run, also `images`, `weights` and `data`."""
    if config.truth:
        return dict(coco.score_files(config.truth, config.results, config.iou_type))
    with temporary_dataset_urls(config.data) as urls:
        return _evaluate_weights(config, open_datasets(urls))


@dataclass(frozen=True)
class _Measured:
    """Weights and their result on the dataset."""

    weights: str
    info: WeightsInfo
    dataset: Dataset
    """The dataset with the names of the weights."""
    detections: list[ImageDetections]
    """Detections of each image, by image id."""
    result: EvalResult


def _evaluate_weights(config: EvaluateConfig, dataset: Dataset) -> dict[str, Any]:
    measured = _measure_weights(config, dataset)
    summary: dict[str, Any] = {"images": dataset.images, "weights": config.weights, "data": config.data}
    difference = None
    if config.against:
        other = _measure_weights(replace(config, weights=config.against), dataset)
        names = config.weights, config.against
        difference = compare_results(measured.dataset, measured.result, other.result, other.dataset.classes, names)
        summary |= {"against": config.against, "differences": difference.metrics_json()}
    if config.output:
        files = report_files(measured.result, select_examples(measured.dataset, measured.detections, measured.result.boxes), summary)
        subject = Subject(f"Evaluation of {measured.info.name or config.weights}", _facts(config, measured))
        files[PAGE_FILE] = report_page(measured.dataset, files, subject)
        publish(config.output, files | (difference_files(difference, measured.dataset) if difference else {}))
    return {**measured.result.metrics, **summary}


def _measure_weights(config: EvaluateConfig, dataset: Dataset) -> _Measured:
    network, info = _load_network(config)
    # Weights that were trained on several datasets have more names than each of the datasets.
    dataset = relabel_to(dataset, info)
    started = time.perf_counter()
    if config.workers == 0:
        predictions = _predict(config, network, info, dataset, dataset.row_groups)
        shares = [dict(tqdm(predictions, total=dataset.images, **PROGRESS))]
    else:
        shares = list(_predict_on_workers(config, dataset))
    detections = merge_detections(shares, dataset.images)
    predicted = time.perf_counter()
    result = measure(dataset, detections, info.tasks)
    for task, task_result in {"detect": result.boxes, "segment": result.masks, "pose": result.keypoints}.items():
        warn_of_limit(task, task_result.images_over_limit if task_result else 0)
    seconds = predicted - started
    logger.info("event=predicted images=%d seconds=%.1f images_per_s=%.1f", dataset.images, seconds, dataset.images / seconds)
    logger.info("event=scored detections=%d seconds=%.1f", len(result.rows), time.perf_counter() - predicted)
    return _Measured(config.weights, info, dataset, detections, result)


def _facts(config: EvaluateConfig, measured: _Measured) -> dict[str, str]:
    """Return the facts of the page by name."""
    return {
        "Weights": f"{config.weights}, version {measured.info.version}",
        "Dataset": f"{measured.dataset.url}, content {measured.dataset.digest[:12]}",
        "Input": f"{measured.info.image_px} px, {config.precision}",
        "Software": f"yolor_ray {__version__}, torch {torch.__version__}",
    }


def _load_network(config: EvaluateConfig) -> tuple[Model, WeightsInfo]:
    network, info = load_model(config.weights)
    image_px = config.image_px or info.image_px
    (network.config if isinstance(network, Yolor) else network).check_image_px(image_px, "image_px")
    return network, replace(info, image_px=image_px)


def _predict(
    config: EvaluateConfig, network: Model, info: WeightsInfo, dataset: Dataset, groups: Sequence[RowGroup]
) -> Iterator[tuple[int, ImageDetections]]:
    """Yield (image id, detections) for every image of the row groups, predicted in this process."""
    if config.gpu and not torch.cuda.is_available():
        raise ConfigError("gpu: found no CUDA device in this process, expected one; leave --gpu out to use the CPU")
    device = torch.device("cuda" if config.gpu else "cpu")
    detector = _make_detector(network.to(device), info, config.precision, device)
    return predict_row_groups(detector, dataset, groups, info.image_px, config.batch, config.decode_threads)


def _make_detector(network: Model, info: WeightsInfo, precision: Precision, device: torch.device) -> Detect:
    """Return the detection function: of weights in float32 by torch, else by the engine that a replica would choose."""
    if precision == "float32" and isinstance(network, Yolor):
        return functools.partial(detect.predict, network if info.fused else fuse(network))
    model = choose_engine(network, info, precision=precision)
    torch.set_num_threads(model.threads)
    return functools.partial(detect.detect, model.predict, device=device)


def _predict_share(config: EvaluateConfig, dataset: Dataset, groups: Sequence[RowGroup]) -> dict[int, ImageDetections]:
    """Predict one worker's row groups, in a Ray task."""
    return dict(_predict(config, *_load_network(config), dataset, groups))


def _predict_on_workers(config: EvaluateConfig, dataset: Dataset) -> Iterator[dict[int, ImageDetections]]:
    """Yield the detections of each Ray task by image id, in the order of completion."""
    start_ray(allow_unauthenticated=True)
    wait_for_resources({"CPU": 1, "GPU": int(config.gpu)}, "evaluate")
    # Workers may have another working directory.
    config = replace(config, weights=absolute_weights(config.weights))
    task: Any = ray.remote(num_cpus=1, num_gpus=int(config.gpu), max_retries=3)(_predict_share)
    handle = ray.put(dataset)
    tasks = [task.remote(config, handle, share) for share in split_row_groups(dataset.row_groups, config.workers) if share]
    with tqdm(total=dataset.images, **PROGRESS) as progress:
        for detections in as_completed(tasks):
            progress.update(len(detections))
            yield detections
