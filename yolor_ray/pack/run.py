"""Pack annotated images into shards, one Ray task per shard, and write `dataset.json` when all of them are there.

Records are laid down in the order of their names' hashes: fixed, yet mixed, so that neighbouring frames of a video do not end
in one row group. A pack that dies leaves no `dataset.json`; the same command again goes on.
"""

import hashlib
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
from tqdm import tqdm

from yolor_ray.cluster.connect import as_they_finish, start_ray
from yolor_ray.config import PackCocoConfig, PackConfig, PackCropsConfig, PackScenesConfig, PackVocConfig, PackYoloConfig
from yolor_ray.data.shards.dataset import MANIFEST, Dataset, dataset_digest, open_dataset, write_dataset
from yolor_ray.data.synthetic import scenes
from yolor_ray.errors import DataError
from yolor_ray.io.storage import absolute, delete, exists, join, list_names, write_bytes
from yolor_ray.pack.annotations.coco import read_coco
from yolor_ray.pack.annotations.crops import read_crops
from yolor_ray.pack.annotations.faults import Fault, count_by_code
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.annotations.schema import AnnotatedImage, Annotations, with_labels_of_objects
from yolor_ray.pack.annotations.voc import read_voc
from yolor_ray.pack.annotations.yolo import read_yolo
from yolor_ray.pack.shard_builder import PROGRESS_DIR, AnnotatedImages, Scenes, ShardResult, ShardTask, build_shard

FAULTS = "faults.jsonl"
SHOWN_FAULTS = 5
SCENES_PER_PART = 512

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackPlan:
    """A data set before it is built."""

    output: str
    parts: tuple[ShardTask, ...]
    classes: tuple[str, ...]
    image_classes: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    strict: bool = False
    parallel: bool = True


def pack(config: PackVocConfig | PackCocoConfig | PackYoloConfig | PackCropsConfig | PackScenesConfig) -> dict:
    """Pack what the configuration names and return `images`, `boxes`, `faults` by code and `output`.

    Raises:
        DataError: no usable image, a fault with `strict`, or another finished data set at the output.

    """
    if isinstance(config, PackScenesConfig):
        return _finish(_plan_scenes(config, parallel=True))
    folder = ImageFolder(absolute(config.images))
    found = _read(config, folder)
    if config.image_labels == "present":
        found = with_labels_of_objects(found)
    return _finish(_plan(config, folder, found))


def _read(config: PackVocConfig | PackCocoConfig | PackYoloConfig | PackCropsConfig, folder: ImageFolder) -> Annotations:
    if isinstance(config, PackCropsConfig):
        return read_crops(folder, config.pattern, _split_file(config), _list(config.classes))
    annotations = absolute(config.annotations)
    if isinstance(config, PackVocConfig):
        return read_voc(folder, annotations, _split_file(config), _list(config.classes))
    if isinstance(config, PackCocoConfig):
        return read_coco(folder, annotations, _list(config.image_classes))
    return read_yolo(folder, annotations, absolute(config.names))


def _split_file(config: PackVocConfig | PackCropsConfig) -> str:
    return absolute(config.split_file) if config.split_file else ""


def pack_scenes(url: str, count: int, seed: int, size_px: int = 320, parallel: bool = False) -> dict:
    """Pack `count` built-in scenes and return what `pack` does; without `parallel` no Ray is started."""
    return _finish(_plan_scenes(PackScenesConfig(output=url, count=count, seed=seed, size_px=size_px), parallel))


def _list(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _plan(config: PackConfig, folder: ImageFolder, found: Annotations) -> PackPlan:
    output = absolute(config.output)
    mixed = sorted(found.images, key=lambda image: hashlib.sha256(image.name.encode()).digest())
    groups = _cut(mixed, folder, config.shard_mb * 1e6)
    parts = tuple(
        ShardTask(
            index,
            AnnotatedImages(
                folder.url, group, tuple(folder.files[image.name] for image in group), len(found.keypoint_names), found.has_identities
            ),
            output,
        )
        for index, group in enumerate(groups)
    )
    return PackPlan(output, parts, found.classes, found.image_classes, found.keypoint_names, found.faults, config.strict)


def _cut(images: Sequence[AnnotatedImage], folder: ImageFolder, size: float) -> list[tuple[AnnotatedImage, ...]]:
    """Return runs of images of about so many encoded bytes each."""
    ends = itertools.accumulate(folder.files[image.name].bytes for image in images)
    numbered = [(int((end - 1) // size), image) for end, image in zip(ends, images, strict=True)]
    return [tuple(image for _, image in run) for _, run in itertools.groupby(numbered, key=lambda pair: pair[0])]


def _plan_scenes(config: PackScenesConfig, parallel: bool) -> PackPlan:
    output = absolute(config.output)
    starts = range(0, config.count, SCENES_PER_PART)
    sources = [Scenes(start, min(start + SCENES_PER_PART, config.count), config.seed, config.size_px) for start in starts]
    parts = tuple(ShardTask(index, source, output) for index, source in enumerate(sources))
    return PackPlan(output, parts, scenes.CLASSES, scenes.IMAGE_CLASSES, scenes.KEYPOINT_NAMES, strict=config.strict, parallel=parallel)


def _finish(plan: PackPlan) -> dict:
    """Build the parts of a plan and make them count."""
    if plan.strict and plan.faults:
        raise _refusal(plan.faults)
    finished = open_dataset(plan.output) if exists(join(plan.output, MANIFEST)) else None
    built = sorted(_build(plan, write=finished is None), key=lambda part: part.index)
    faults = [*plan.faults, *(fault for part in built for fault in part.faults), *_repeats(built, plan)]
    dataset = _describe(plan, built, faults)
    if finished is None:
        try:
            _check(plan, dataset, faults)
        except DataError:
            _clear(plan.output, keep=())
            raise
        _clear(plan.output, keep=[shard.name for shard in dataset.shards])
        write_bytes(join(plan.output, FAULTS), "".join(json.dumps(asdict(fault)) + "\n" for fault in faults).encode())
        write_dataset(dataset)
    else:
        _check(plan, dataset, faults)
        if finished.digest != dataset.digest:
            found = f"found a finished data set of {finished.images} images with digest {finished.digest[:12]}"
            raise DataError(f"{plan.output}: {found}, expected {dataset.digest[:12]}, no data set, or another output")
    _report(faults, plan.output)
    return {"images": dataset.images, "boxes": dataset.boxes, "faults": dataset.faults, "output": plan.output}


def _build(plan: PackPlan, write: bool) -> Iterator[ShardResult]:
    """Yield parts as they get ready, with a progress bar; a single one is not worth starting Ray for."""
    with tqdm(total=sum(part.images for part in plan.parts), desc="packing", unit="image", mininterval=1) as bar:
        parallel = plan.parallel and len(plan.parts) > 1
        for part in _by_ray(plan.parts, write) if parallel else (build_shard(part, write) for part in plan.parts):
            bar.update(plan.parts[part.index].images)
            yield part


def _by_ray(parts: Iterable[ShardTask], write: bool) -> Iterator[ShardResult]:
    start_ray(allow_unauthenticated=True)
    build: Any = ray.remote(num_cpus=1, max_retries=3)(build_shard)
    return as_they_finish([build.remote(part, write) for part in parts])


def _repeats(built: Sequence[ShardResult], plan: PackPlan) -> list[Fault]:
    """Return a fault for each image that is in the data set under an earlier name too; all of them stay."""
    first: dict[str, str] = {}
    folders = {part.index: part.source.folder for part in plan.parts if isinstance(part.source, AnnotatedImages)}
    faults = []
    for part in built:
        for name, digest in part.image_hashes.items():
            earlier = first.setdefault(digest, name)
            if earlier != name and part.index in folders:
                message = f"found the very same bytes as in {earlier!r}, expected different images; both kept"
                faults.append(Fault("duplicate_image", message, join(folders[part.index], name)))
    return faults


def _describe(plan: PackPlan, built: Sequence[ShardResult], faults: Sequence[Fault]) -> Dataset:
    shards = tuple(part.shard for part in built if part.shard)
    boxes: Counter[int] = Counter()
    for part in built:
        boxes.update(part.boxes_per_label)
    return Dataset(
        url=plan.output,
        classes=plan.classes,
        image_classes=plan.image_classes,
        keypoint_names=plan.keypoint_names,
        tasks=tuple(sorted({task for part in built for task in part.tasks})),
        images=sum(shard.rows for shard in shards),
        boxes=boxes.total(),
        boxes_per_class={name: boxes[label] for label, name in enumerate(plan.classes)},
        shards=shards,
        digest=dataset_digest(shards, plan.classes, plan.image_classes, plan.keypoint_names),
        faults=count_by_code(faults),
    )


def _check(plan: PackPlan, dataset: Dataset, faults: Sequence[Fault]) -> None:
    if plan.strict and faults:
        raise _refusal(faults)
    if dataset.images == 0:
        shown = "; ".join(map(str, faults[:SHOWN_FAULTS]))
        raise DataError(f"{plan.output}: found no usable image, expected at least one; {len(faults)} faults: {shown}")


def _refusal(faults: Sequence[Fault]) -> DataError:
    shown = "\n".join(f"  {fault}" for fault in faults[:SHOWN_FAULTS])
    more = f"\n  … and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
    return DataError(f"found {len(faults)} faults, expected none with --strict; nothing was packed:\n{shown}{more}")


def _clear(output: str, keep: Sequence[str]) -> None:
    """Remove notes and shards that do not belong to the data set."""
    for name in list_names(output):
        if re.fullmatch(r"part-\d{5}-[0-9a-f]{12}\.parquet", name) and name not in keep:
            delete(join(output, name))
    delete(join(output, PROGRESS_DIR))


def _report(faults: Sequence[Fault], output: str) -> None:
    for fault in faults[:SHOWN_FAULTS]:
        log.warning("event=fault code=%s place=%s message=%s", fault.code, fault.place, fault.message)
    if faults:
        log.warning("event=faults count=%d by_code=%s list=%s", len(faults), count_by_code(faults), join(output, FAULTS))
