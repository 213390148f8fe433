"""Predict images by weights, in this process or by Ray Data: tasks read parts of the images, actors predict and write them.

Each part is written by itself, so that the same command goes on where a job was killed.
"""

import itertools
import logging
import pickle
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from yolor_ray.cluster.capacity import check_capacity, wait_for_resources, worker_resources
from yolor_ray.cluster.connect import start_ray
from yolor_ray.config import PredictConfig, WorkersConfig
from yolor_ray.data.loading.read_ahead import read_ahead
from yolor_ray.errors import ConfigError, UserError
from yolor_ray.inference.detect import check_classes
from yolor_ray.inference.models import load_model
from yolor_ray.io import manifest
from yolor_ray.io.storage import absolute, delete, is_file, join, write_bytes
from yolor_ray.io.weights_url import absolute_weights
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.pack.annotations.faults import Fault, count_by_code
from yolor_ray.predict import output as outputs
from yolor_ray.predict.coco_json import COCO_FILE, coco_json
from yolor_ray.predict.output import PartResult
from yolor_ray.predict.part_file import to_parquet
from yolor_ray.predict.predictor import PredictedImage, Predictor
from yolor_ray.predict.read_task import read_part
from yolor_ray.predict.sources import EncodedImage, Part, list_parts
from yolor_ray.predict.video import VIDEO_SUFFIXES, video_parts
from yolor_ray.report.provenance import available_cores

READ_CPUS = 0.25
"""Logical CPUs of a read task, which waits for storage more than it computes."""
TASK_RETRIES = 3
"""Times that a part is tried again after the loss of its worker; an image that crashes a decoder must not go on for ever."""
MAX_SHOWN_FAULTS = 5
PROGRESS: dict[str, Any] = {
    "bar_format": "event=predicting images={n_fmt} elapsed={elapsed} images_per_s={rate_fmt}",
    "mininterval": 1,
    "unit": "",
}
"""Settings of tqdm for a line of progress on standard error."""

Task = tuple[int, str, Part]
"""A part to predict: its index, key and images."""

logger = logging.getLogger(__name__)


def predict(config: PredictConfig) -> dict[str, Any]:
    """Predict the images of a configuration and return `images`, `detections`, `faults` by code, and `output`.

    A finished output of the same images, weights and settings is returned as it is, with the files that it lacks.

    Raises:
        ConfigError: the output has predictions by other weights or with other settings, or a setting does not fit this machine or the
            weights.
        DataError: there is no usable image, or the output holds something else.

    """
    config = replace(
        config, weights=absolute_weights(config.weights), images=absolute(config.images), output=absolute(config.output).rstrip("/")
    )
    if f"{config.output}/".startswith(f"{config.images.rstrip('/')}/"):
        raise ConfigError(f"output: found {config.output} inside of the images, expected a folder elsewhere")
    _, info = load_model(config.weights)
    check_classes(config.classes, info)
    is_video = config.images.lower().endswith(VIDEO_SUFFIXES) and is_file(config.images)
    # Tiles are cut from frames of full size.
    fit_px = 0 if config.tile else info.image_px
    parts = video_parts(config.images, config.every_s, fit_px) if is_video else list_parts(config.images)
    settings = outputs.settings_of(config, info)
    keys = outputs.part_keys(settings, parts)
    content = outputs.lock_settings(config.output, settings)
    results = outputs.complete_results(content, config.output, keys)
    if results is None:
        results = _predict_missing(config, list(zip(itertools.count(), keys, parts, strict=False)))
        faults = [fault for result in results for fault in result.faults]
    else:
        faults = outputs.read_faults(config.output)
    _complete_files(config, info, content, parts, results, faults)
    counts = {"images": sum(result.images for result in results), "detections": sum(result.detections for result in results)}
    return {**counts, "faults": count_by_code(faults), "output": config.output}


def _predict_missing(config: PredictConfig, tasks: Sequence[Task]) -> list[PartResult]:
    """Predict the parts without a result, and return the results of all parts in order."""
    results = {result.index: result for result in outputs.read_results(config.output, [key for _, key, _ in tasks])}
    missing = [task for task in tasks if task[0] not in results]
    if results:
        images = sum(result.images for result in results.values())
        logger.info("event=resumed parts=%d of=%d images=%d output=%s", len(results), len(tasks), images, config.output)
    started, predicted = time.perf_counter(), 0
    with tqdm(**PROGRESS) as bar:
        for result in predict_by_ray(config, missing) if config.cluster.worker_range[1] else _predict_here(config, missing):
            results[result.index] = result
            predicted += result.images
            bar.update(result.images)
    seconds = time.perf_counter() - started
    logger.info("event=predicted images=%d seconds=%.1f images_per_s=%.1f", predicted, seconds, predicted / seconds)
    return [results[index] for index in sorted(results)]


def _complete_files(
    config: PredictConfig,
    info: WeightsInfo,
    content: dict[str, Any],
    parts: Sequence[Part],
    results: Sequence[PartResult],
    faults: Sequence[Fault],
) -> None:
    """Write the files that are made of all parts, and publish the output, unless all of them are there."""
    for fault in faults[:MAX_SHOWN_FAULTS]:
        logger.warning("event=fault code=%s location='%s' message='%s'", fault.code, fault.location, fault.message)
    published = manifest.read_manifest(config.output) if manifest.is_published(config.output) else {}
    files = {}
    if config.format == "coco" and COCO_FILE not in published:
        files[COCO_FILE] = coco_json(config.output, [result.name for result in results], info)
    if config.draw:
        # The import of matplotlib takes a second.
        from yolor_ray.predict.pictures import PICTURES_DIR, draw_interesting

        delete(join(config.output, PICTURES_DIR))
        files |= draw_interesting(config.output, results, parts, info, count=config.draw, confidence=config.confidence)
    if files or not published:
        outputs.publish(config.output, content, results, faults, files)
    if faults:
        url = join(config.output, outputs.FAULTS_FILE)
        logger.warning("event=faults count=%d by_code='%s' list=%s", len(faults), count_by_code(faults), url)


def _predict_here(config: PredictConfig, tasks: Sequence[Task]) -> Iterator[PartResult]:
    """Yield the result of each part, predicted in this process; the next part is read beside the network."""
    if not tasks:
        return
    predictor = Predictor(config, config.cluster.compute_threads or available_cores())
    with ThreadPoolExecutor(1, "read") as reader:
        for (index, key, _), images in zip(tasks, read_ahead(reader, lambda task: list(task[2].read()), tasks, 2), strict=True):
            yield _write_part(config.output, index, key, predictor, images)


def _write_part(output: str, index: int, key: str, predictor: Predictor, images: Iterable[EncodedImage]) -> PartResult:
    """Predict the images of a part, write the Parquet file and then the progress file, and return the result."""
    predicted: list[PredictedImage] = []
    faults: list[Fault] = []
    for image in predictor.predict(images):
        if isinstance(image, Fault):
            faults.append(image)
        else:
            predicted.append(image)
    data = to_parquet(predicted, predictor.info)
    detections = sum(len(image.detections.labels) for image in predicted)
    result = PartResult(index, key, len(predicted), detections, *manifest.entry_of(data), tuple(faults))
    write_bytes(join(output, result.name), data)
    outputs.write_result(output, result)
    return result


def predict_by_ray(config: PredictConfig, tasks: Sequence[Task]) -> Iterator[PartResult]:
    """Yield the results of parts as they complete: Ray Data's tasks read, its actors predict and write."""
    if not tasks:
        return
    # The import takes a second, and a prediction in one process does without.
    import ray.data

    cluster = config.cluster
    start_ray(allow_unauthenticated=cluster.allow_unauthenticated)
    check_capacity(cluster, resumes=False, reader_cpus=READ_CPUS)
    wait_for_resources(worker_resources(cluster), "predict")
    wait_for_resources({"CPU": READ_CPUS}, "read images")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    # A row is a part: Ray Data may split or join blocks, but never a row.
    items = ray.data.from_items([{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
    least, most = cluster.worker_range
    resources = worker_resources(cluster)
    reading = ray.data.TaskPoolStrategy(most_readers(cluster, ray.cluster_resources().get("CPU", 0), len(tasks)))
    parts = items.map_batches(read_part, batch_size=1, batch_format="pyarrow", num_cpus=READ_CPUS, compute=reading)
    predicted = parts.map_batches(
        _PredictWorker,
        fn_constructor_args=(config, -(-most // sum(node["Alive"] for node in ray.nodes()))),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=min(least, len(tasks)), max_size=min(most, len(tasks))),
        num_cpus=resources.get("CPU", 0),
        num_gpus=resources.get("GPU", 0),
        ray_remote_args_fn=lambda: {"max_task_retries": TASK_RETRIES},
    )
    # The default, and `iter_rows`, wait for a second part before the first one is passed on.
    for block in predicted.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
        result = pickle.loads(block["result"][0].as_py())
        if isinstance(result, UserError):
            raise result
        yield result


def most_readers(cluster: WorkersConfig, cpus: float, parts: int) -> int | None:
    """Return the most read tasks at a time: one for every two workers or two CPUs of the cluster; with GPUs None, which is no limit.

    Beside workers on CPUs, every reader takes computing time from them, most of all while both start. A GPU needs many readers.
    """
    return None if cluster.gpu else min(max(1, cluster.worker_range[1] // 2, int(cpus) // 2), parts)


class _PredictWorker:
    """Network of one actor."""

    def __init__(self, config: PredictConfig, workers_per_node: int) -> None:
        self._output = config.output
        self._error: UserError | None = None
        threads = config.cluster.compute_threads or max(available_cores() // workers_per_node, 1)
        try:
            self._predictor = Predictor(config, threads)
        except UserError as error:
            # Ray would start an actor whose constructor fails again and again.
            self._error = error

    def __call__(self, block: pa.Table) -> pa.Table:
        """Predict and write one part."""
        index, key, images = pickle.loads(block["part"][0].as_buffer())
        return pa.table({"result": [pickle.dumps(self._write(index, key, images))]})

    def _write(self, index: int, key: str, images: list[EncodedImage] | UserError) -> PartResult | UserError:
        if self._error:
            return self._error
        if isinstance(images, UserError):
            return images
        try:
            return _write_part(self._output, index, key, self._predictor, images)
        except UserError as error:
            return error
