"""Pack annotated images into shards, one Ray task per shard, and write `dataset.json` when all shards are there.

A pack that dies leaves no `dataset.json`. The same command again continues with the shards that are missing.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import ray
from tqdm import tqdm

from yolor_ray.class_names import digested_names
from yolor_ray.cluster.capacity import wait_for_resources
from yolor_ray.cluster.connect import as_completed, start_ray
from yolor_ray.config import (
    PackAutoConfig,
    PackCheckConfig,
    PackCocoConfig,
    PackCropsConfig,
    PackScenesConfig,
    PackVocConfig,
    PackYoloConfig,
)
from yolor_ray.data.coco_rules import warn_of_limit
from yolor_ray.data.shards.dataset import MANIFEST, Dataset, RowGroup, dataset_digest, open_dataset, write_dataset
from yolor_ray.data.shards.image_hashes import HASHES_FILE, encode_hashes
from yolor_ray.errors import CheckFailed, DataError
from yolor_ray.io.storage import absolute, delete, exists, join, list_names, write_bytes
from yolor_ray.pack.annotations.faults import Fault, count_by_code
from yolor_ray.pack.health.fault_checks import FAULTS_FILE
from yolor_ray.pack.health.report import PAGE, HealthReport, is_current, make_report, report_files
from yolor_ray.pack.health.scan import Scan, join_scans, scan_row_groups, shares
from yolor_ray.pack.plan import PackPlan, plan_annotated, plan_scenes
from yolor_ray.pack.refusals import MAX_SHOWN_FAULTS, check_dataset, check_plan
from yolor_ray.pack.shard_builder import PROGRESS_DIR, AnnotatedSource, ShardResult, ShardTask, build_shard
from yolor_ray.pack.splits import plan_splits

logger = logging.getLogger(__name__)


def pack(
    config: PackAutoConfig | PackVocConfig | PackCocoConfig | PackYoloConfig | PackCropsConfig | PackScenesConfig | PackCheckConfig,
) -> dict:
    """Pack the images of a configuration, or check a packed dataset.

    Returns `images`, `boxes`, `faults` by code, `output`, `health` (URL of the health report), and `crowds` where there are any.
    Of a check, see `check_health`. The result of a folder with several splits has their sums, and the result of each split in `splits`.

    Raises:
        DataError: no usable image, a fault with `strict`, or another finished dataset at the output.

    """
    if isinstance(config, PackCheckConfig):
        return check_health(config)
    if isinstance(config, PackAutoConfig):
        return _pack_splits(config)
    result = build_dataset(plan_scenes(config) if isinstance(config, PackScenesConfig) else plan_annotated(config))
    return {**result, "health": _ensure_report(open_dataset(result["output"]), others=(), scans={})}


def check_health(config: PackCheckConfig) -> dict:
    """Write the health report of a packed dataset and return `images`, `boxes`, `findings` (count by code) and `health`, its page.

    Raises:
        CheckFailed: the report has a finding of `fail_on`; the report is written all the same.
        DataError: one of the URLs has no packed dataset.

    """
    dataset = open_dataset(absolute(config.url))
    others = [open_dataset(absolute(url.strip())) for url in config.against.split(",") if url.strip()]
    report = _make_report(dataset, others, config.image_px, {})
    page = _write_report(report, absolute(config.output) if config.output else dataset.url)
    result = {"images": dataset.images, "boxes": dataset.boxes, "findings": report.counts, "health": page}
    if failing := [f"{code} ({report.counts[code]})" for code in config.fail_on_codes if code in report.counts]:
        raise CheckFailed(f"{dataset.url}: found {', '.join(failing)}, expected none with --fail_on; see {page}", result)
    return result


def _ensure_report(dataset: Dataset, others: Sequence[Dataset], scans: dict[str, Scan]) -> str:
    """Write the health report of a dataset, compared with others, unless it is there; return the URL of its page; see `_make_report`."""
    if is_current(dataset, others):
        return join(dataset.url, PAGE)
    return _write_report(_make_report(dataset, others, PackCheckConfig.image_px, scans), dataset.url)


def _make_report(dataset: Dataset, others: Sequence[Dataset], image_px: int, scans: dict[str, Scan]) -> HealthReport:
    """Make a health report; `scans` by URL of the dataset are used, and new ones are added, so that no dataset is measured twice."""
    for member in (dataset, *others):
        if member.url not in scans:
            scans[member.url] = _scan(member)
    return make_report(dataset, scans[dataset.url], [(other, scans[other.url]) for other in others], image_px)


def _write_report(report: HealthReport, folder: str) -> str:
    """Write a health report and return the URL of its page."""
    for name, data in report_files(report).items():
        write_bytes(join(folder, name), data)
    page = join(folder, PAGE)
    for finding in report.findings:
        # Packing logged the faults.
        if finding.severity != "info" and finding.code not in report.datasets[0].faults:
            logger.warning("event=finding code=%s severity=%s message='%s'", finding.code, finding.severity, finding.message)
    logger.info("event=health errors=%d warnings=%d notes=%d page=%s", *report.severities.values(), page)
    return page


def _scan(dataset: Dataset) -> Scan:
    """Measure all images of a dataset, by Ray unless a single task suffices."""
    tasks = shares(dataset)
    if len(tasks) == 1:
        return scan_row_groups(dataset, tasks[0])
    start_ray(allow_unauthenticated=True)
    wait_for_resources({"CPU": 1}, "check")
    scan: Any = ray.remote(num_cpus=1, max_retries=3)(_scan_share)
    scans: dict[int, Scan] = {}
    handle = ray.put(dataset)
    with tqdm(total=dataset.images, desc="checking", unit="image", mininterval=1) as bar:
        for index, result in as_completed([scan.remote(handle, index, groups) for index, groups in enumerate(tasks)]):
            scans[index] = result
            bar.update(result.images)
    return join_scans([scans[index] for index in range(len(tasks))])


def _scan_share(dataset: Dataset, index: int, groups: Sequence[RowGroup]) -> tuple[int, Scan]:
    return index, scan_row_groups(dataset, groups)


def pack_scenes(url: str, count: int, seed: int, size_px: int = 320, parallel: bool = False) -> dict:
    """Pack `count` built-in scenes and return the result of `pack` without `health`; without `parallel`, Ray is not started."""
    return build_dataset(plan_scenes(PackScenesConfig(output=url, count=count, seed=seed, size_px=size_px)), parallel)


def _pack_splits(config: PackAutoConfig) -> dict:
    plans = plan_splits(config)
    for plan in plans.values():
        check_plan(plan)
    splits = {split: build_dataset(plan) for split, plan in plans.items()}
    urls = {split: result["output"] for split, result in splits.items()}
    datasets = {split: open_dataset(url) for split, url in urls.items()}
    scans: dict[str, Scan] = {}
    for split, dataset in datasets.items():
        others = [datasets["train"]] if split != "train" and "train" in datasets else []
        splits[split] |= {"health": _ensure_report(dataset, others, scans)}
    if "train" in urls:
        validation = f" --data.val {urls['val']}" if "val" in urls else ""
        logger.info(
            "event=packed_splits splits=%s next='yolor-ray train nano --data.train %s%s'", ",".join(urls), urls["train"], validation
        )
    else:
        logger.warning("event=packed_splits splits=%s reason='found no training split'", ",".join(urls))
    faults: Counter[str] = Counter()
    for result in splits.values():
        faults.update(result["faults"])
    sums = {key: sum(result.get(key, 0) for result in splits.values()) for key in ("images", "boxes", "crowds")}
    crowds = {"crowds": sums["crowds"]} if sums["crowds"] else {}
    counts = {"images": sums["images"], "boxes": sums["boxes"], "faults": dict(sorted(faults.items()))}
    return {**counts, "output": absolute(config.output), **crowds, "splits": splits}


def build_dataset(plan: PackPlan, parallel: bool = True) -> dict:
    """Build the shards of a plan and write `dataset.json`; a finished dataset at the output must have the same content."""
    check_plan(plan)
    finished = _finished_dataset(plan.output)
    results = sorted(_build_shards(plan, parallel, write=finished is None), key=lambda result: result.index)
    faults = [*plan.faults, *(fault for result in results for fault in result.faults), *_duplicate_images(results, plan)]
    dataset = _describe(plan, results, faults)
    if finished is None and (finished := _finished_dataset(plan.output)):
        # Another job has finished a dataset here since.
        _clear(plan.output, keep=[shard.name for shard in finished.shards])
    if finished is None:
        _publish(plan, dataset, faults, encode_hashes(digest for result in results for digest in result.image_hashes.values()))
    else:
        check_dataset(plan, dataset, faults)
        if finished.digest != dataset.digest:
            found = f"found a finished dataset of {finished.images} images with digest {finished.digest[:12]}"
            raise DataError(f"{plan.output}: {found}, expected {dataset.digest[:12]}, no dataset, or another output")
    _log_faults(faults, plan.output)
    _log_counts(dataset, results)
    result = {"images": dataset.images, "boxes": dataset.boxes, "faults": dataset.faults, "output": plan.output}
    return {**result, "crowds": dataset.crowds} if dataset.crowds else result


def _finished_dataset(url: str) -> Dataset | None:
    return open_dataset(url) if exists(join(url, MANIFEST)) else None


def _build_shards(plan: PackPlan, parallel: bool, write: bool) -> Iterator[ShardResult]:
    """Yield the results of shards as they complete, with a progress bar; a single shard is not worth starting Ray for."""
    tasks = plan.shard_tasks
    with tqdm(total=sum(task.images for task in tasks), desc="packing", unit="image", mininterval=1) as bar:
        for result in _by_ray(tasks, write) if parallel and len(tasks) > 1 else (build_shard(task, write) for task in tasks):
            bar.update(tasks[result.index].images)
            yield result


def _by_ray(tasks: Iterable[ShardTask], write: bool) -> Iterator[ShardResult]:
    start_ray(allow_unauthenticated=True)
    wait_for_resources({"CPU": 1}, "pack")
    build: Any = ray.remote(num_cpus=1, max_retries=3)(build_shard)
    return as_completed([build.remote(task, write) for task in tasks])


def _duplicate_images(results: Sequence[ShardResult], plan: PackPlan) -> list[Fault]:
    """Return a fault for each image whose bytes are in the dataset under an earlier name; all images stay."""
    first_names: dict[str, str] = {}
    folders = {task.index: task.source.folder for task in plan.shard_tasks if isinstance(task.source, AnnotatedSource)}
    faults = []
    for result in results:
        for name, digest in result.image_hashes.items():
            first = first_names.setdefault(digest, name)
            if first != name and result.index in folders:
                message = f"found the very same bytes as in {first!r}, expected different images; both kept"
                faults.append(Fault("duplicate_image", message, join(folders[result.index], name)))
    return faults


def _describe(plan: PackPlan, results: Sequence[ShardResult], faults: Sequence[Fault]) -> Dataset:
    shards = tuple(result.shard for result in results if result.shard)
    boxes: Counter[int] = Counter()
    for result in results:
        boxes.update(result.boxes_per_label)
    return Dataset(
        url=plan.output,
        classes=plan.classes,
        image_classes=plan.image_classes,
        keypoint_names=plan.keypoint_names,
        class_keypoints=plan.class_keypoints,
        tasks=tuple(sorted({task for result in results for task in result.tasks})),
        images=sum(shard.rows for shard in shards),
        boxes=boxes.total(),
        boxes_per_class={name: boxes[label] for label, name in enumerate(plan.classes)},
        shards=shards,
        digest=dataset_digest(shards, *digested_names(plan)),
        faults=count_by_code(faults),
        crowds=sum(result.crowds for result in results),
    )


def _publish(plan: PackPlan, dataset: Dataset, faults: Sequence[Fault], hashes: bytes) -> None:
    """Write the faults, the image hashes and `dataset.json`; a refused dataset leaves nothing at the output."""
    try:
        check_dataset(plan, dataset, faults)
    except DataError:
        _clear(plan.output, keep=())
        raise
    _clear(plan.output, keep=[shard.name for shard in dataset.shards])
    write_bytes(join(plan.output, FAULTS_FILE), "".join(json.dumps(asdict(fault)) + "\n" for fault in faults).encode())
    write_bytes(join(plan.output, HASHES_FILE), hashes)
    write_dataset(replace(dataset, hashes_sha256=hashlib.sha256(hashes).hexdigest()))


def _clear(output: str, keep: Sequence[str]) -> None:
    """Delete the progress files, and shards that do not belong to the dataset."""
    for name in list_names(output):
        if re.fullmatch(r"part-\d{5}-[0-9a-f]{12}\.parquet", name) and name not in keep:
            delete(join(output, name))
    delete(join(output, PROGRESS_DIR))


def _log_faults(faults: Sequence[Fault], output: str) -> None:
    for fault in faults[:MAX_SHOWN_FAULTS]:
        logger.warning("event=fault code=%s location='%s' message='%s'", fault.code, fault.location, fault.message)
    if faults:
        logger.warning("event=faults count=%d by_code='%s' list=%s", len(faults), count_by_code(faults), join(output, FAULTS_FILE))


def _log_counts(dataset: Dataset, results: Sequence[ShardResult]) -> None:
    """Log the size of a dataset, and warn of objects that count in no metric, or of too many objects for COCO's metrics."""
    logger.info("event=packed images=%d boxes=%d crowds=%d output=%s", dataset.images, dataset.boxes, dataset.crowds, dataset.url)
    if not dataset.boxes and "detect" in dataset.tasks:
        logger.warning("event=no_boxes images=%d reason='no image has an annotated object: all are background'", dataset.images)
    if dataset.boxes and dataset.boxes == dataset.crowds:
        reason = "all boxes are crowd regions, which training and metrics ignore"
        logger.warning("event=only_crowds boxes=%d reason='%s'", dataset.boxes, reason)
    over_limit: Counter[str] = Counter()
    for result in results:
        over_limit.update(result.images_over_limit)
    for task, images in sorted(over_limit.items()):
        warn_of_limit(task, images)
