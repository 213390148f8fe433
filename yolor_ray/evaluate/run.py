"""Evaluate weights on a packed data set, in this process or spread over Ray tasks, or score files that are there already.

Workers take whole row groups and their predictions are merged by image id, so the numbers do not depend on their count.
"""

import functools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from tqdm import tqdm

from yolor_ray.cluster.connect import as_they_finish, start_ray
from yolor_ray.config import EvaluateConfig
from yolor_ray.data.shards.dataset import Dataset, RowGroup
from yolor_ray.data.shards.union import open_datasets, relabel_to
from yolor_ray.errors import ConfigError
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.examples import pictures
from yolor_ray.evaluate.metrics import measure
from yolor_ray.evaluate.predict import Detect, merge, predict_groups, shares
from yolor_ray.evaluate.report import report_files
from yolor_ray.inference import detect as predict
from yolor_ray.inference.engine_choice import choose_engine
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.inference.runtimes import Precision
from yolor_ray.io.manifest import publish
from yolor_ray.io.storage import absolute
from yolor_ray.model.fuse import fuse
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights
from yolor_ray.pack.scenes_url import resolve_dataset_urls

BAR: dict[str, Any] = {"desc": "predicting", "unit": "image", "mininterval": 1}

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Return COCO's numbers by name, beside those of further tasks, `images`, `weights` and `data` when a network was run."""
    if config.truth:
        return dict(coco.score_files(config.truth, config.results, config.iou_type))
    with resolve_dataset_urls(config.data) as data_url:
        return _evaluate(config, open_datasets(data_url))


def _evaluate(config: EvaluateConfig, dataset: Dataset) -> dict[str, Any]:
    network, info = _network(config)
    # Weights that were trained on several data sets know more names than each of them.
    dataset = relabel_to(dataset, info)
    started = time.perf_counter()
    if config.workers == 0:
        predictions = _predict(config, network, info, dataset, dataset.row_groups)
        parts = [dict(tqdm(predictions, total=dataset.images, **BAR))]
    else:
        parts = list(_predict_by_ray(config, dataset))
    found = merge(parts, dataset.images)
    predicted = time.perf_counter()
    measured = measure(dataset, found, network.config.tasks)
    took = predicted - started
    log.info("event=predicted images=%d seconds=%.1f images_per_s=%.1f", dataset.images, took, dataset.images / took)
    log.info("event=scored detections=%d seconds=%.1f", len(measured.rows), time.perf_counter() - predicted)
    summary = {"images": dataset.images, "weights": config.weights, "data": config.data}
    if config.output:
        publish(config.output, report_files(measured, pictures(dataset, found, measured.boxes), summary))
    return {**measured.metrics, **summary}


def _network(config: EvaluateConfig) -> tuple[Yolor, WeightsInfo]:
    network, info = load_weights(config.weights)
    return network, replace(info, image_px=config.image_px or info.image_px)


def _predict(
    config: EvaluateConfig, network: Yolor, info: WeightsInfo, dataset: Dataset, groups: Sequence[RowGroup]
) -> Iterator[tuple[int, ImageDetections]]:
    if config.gpu and not torch.cuda.is_available():
        raise ConfigError("gpu: found no CUDA device in this process, expected one; leave --gpu out to use the CPU")
    detect = _detector(network.to("cuda" if config.gpu else "cpu"), info, config.precision)
    return predict_groups(detect, dataset, groups, info.image_px, config.batch, config.decode_threads)


def _detector(network: Yolor, info: WeightsInfo, precision: Precision) -> Detect:
    """Return what finds objects: the network as it is or, in another precision, what a replica would serve."""
    if precision == "float32":
        return functools.partial(predict.predict, network if info.fused else fuse(network))
    form = choose_engine(network, info, precision=precision)
    torch.set_num_threads(form.threads)
    return functools.partial(predict.detect, form.predict, device=network.head.anchors.device)


def _predict_share(config: EvaluateConfig, dataset: Dataset, groups: Sequence[RowGroup]) -> dict[int, ImageDetections]:
    return dict(_predict(config, *_network(config), dataset, groups))


def _predict_by_ray(config: EvaluateConfig, dataset: Dataset) -> Iterator[dict[int, ImageDetections]]:
    start_ray(allow_unauthenticated=True)
    # Workers may run in another folder.
    config = replace(config, weights=absolute(config.weights))
    task: Any = ray.remote(num_cpus=1, num_gpus=int(config.gpu), max_retries=3)(_predict_share)
    tasks = [task.remote(config, dataset, share) for share in shares(dataset.row_groups, config.workers) if share]
    with tqdm(total=dataset.images, **BAR) as bar:
        for part in as_they_finish(tasks):
            bar.update(len(part))
            yield part
