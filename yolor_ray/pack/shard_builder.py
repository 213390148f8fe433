"""Build one shard of a dataset from annotated images or built-in scenes.

A finished shard leaves a progress file beside the shards. A pack that was killed thus continues with the shards that are missing.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from yolor_ray import __version__
from yolor_ray.data.coco_rules import exceeded_limits
from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.header import read_header
from yolor_ray.data.shards.dataset import VERSION, Shard, encode_shard
from yolor_ray.data.shards.records import Objects, Record
from yolor_ray.data.shards.shard_file import shard_from_json
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.errors import ImageError
from yolor_ray.io.storage import exists, join, read_bytes, write_bytes
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.image_folder import ImageFile, read_files
from yolor_ray.pack.annotations.normalize import normalize_objects
from yolor_ray.pack.annotations.schema import AnnotatedImage

logger = logging.getLogger(__name__)

PROGRESS_DIR = "unfinished"
"""Folder of the progress files inside an unfinished dataset."""
CHECK_PX = 64


@dataclass(frozen=True)
class AnnotatedSource:
    """Records of a shard from annotated images."""

    folder: str
    """URL of the images folder."""
    images: tuple[AnnotatedImage, ...]
    files: tuple[ImageFile, ...]
    """Image files as they were listed, in the order of `images`."""
    keypoint_flags: tuple[tuple[bool, ...], ...]
    """The keypoints of the dataset that each of its classes has."""
    has_identities: bool
    """The dataset has identities."""

    def __len__(self) -> int:
        return len(self.images)

    def records(self, faults: list[Fault]) -> Iterator[Record]:
        """Yield the records of usable images, and append the faults of images to `faults`."""
        names = [image.name for image in self.images]
        for image, data in zip(self.images, read_files(self.folder, names), strict=True):
            url = join(self.folder, image.name)
            try:
                header = read_header(data)
                # A reduced JPEG is still read to its end, so that decoding at an eighth of the size detects truncation.
                decode(data, fit_px=CHECK_PX)
            except ImageError as error:
                faults.append(Fault("broken_image", f"{error.code}: {error}; image left out", url))
                continue
            objects, image_faults = normalize_objects(image, header, self.keypoint_flags, self.has_identities)
            faults += image_faults
            if objects is not None:
                labels = np.array(image.image_labels, np.int64)
                yield Record(image.name, data, header.width, header.height, objects, labels, _remaining_tasks(image, objects), image.camera)


def _remaining_tasks(image: AnnotatedImage, objects: Objects) -> tuple[str, ...]:
    """Return the tasks of an image without `segment` if all objects with masks were left out."""
    unmasked = len(objects.labels) > 0 and objects.masks is None
    return tuple(task for task in image.tasks if not (task == "segment" and unmasked))


@dataclass(frozen=True)
class SceneSource:
    """Records of a shard from built-in scenes `start` to `stop` - 1."""

    start: int
    stop: int
    seed: int
    size_px: int

    def __len__(self) -> int:
        return self.stop - self.start

    def records(self, _: list[Fault]) -> Iterator[Record]:
        """Yield the records."""
        return (scene(index, self.seed, self.size_px) for index in range(self.start, self.stop))


@dataclass(frozen=True)
class ShardTask:
    """A shard to build."""

    index: int
    """Position in the dataset, from 0."""
    source: AnnotatedSource | SceneSource
    """Source of the records."""
    output: str
    """URL of the dataset."""

    @property
    def images(self) -> int:
        """Number of images of the source."""
        return len(self.source)


@dataclass(frozen=True)
class ShardResult:
    """Result of a shard task."""

    index: int
    """Position in the dataset, from 0."""
    shard: Shard | None = None
    """The file; None without any usable image."""
    boxes_per_label: Mapping[int, int] = field(default_factory=dict)
    """Objects by label."""
    crowds: int = 0
    """Objects that are crowd regions."""
    images_over_limit: Mapping[str, int] = field(default_factory=dict)
    """Images with more objects of one class than COCO compares detections, by task."""
    tasks: tuple[str, ...] = ()
    """Tasks that an image of the shard is annotated for."""
    image_hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each encoded image, by record name."""
    faults: tuple[Fault, ...] = ()


def build_shard(task: ShardTask, write: bool = True) -> ShardResult:
    """Build a shard, or return the result of an earlier run from its progress file.

    Args:
        task: shard to build.
        write: write the shard and its progress file; False only computes the result.
    """
    progress_url = join(task.output, PROGRESS_DIR, f"part-{task.index:05d}.json")
    key = hashlib.sha256(repr((__version__, VERSION, task.source)).encode()).hexdigest()
    if write and (finished := _read_progress(progress_url, key, task.output)):
        return finished
    faults: list[Fault] = []
    boxes: Counter[int] = Counter()
    crowds = Counter[bool]()
    over_limit: Counter[str] = Counter()
    tasks: set[str] = set()
    hashes: dict[str, str] = {}

    def counted_records() -> Iterator[Record]:
        for record in task.source.records(faults):
            boxes.update(record.objects.labels.tolist())
            crowds.update(record.objects.crowd.tolist())
            over_limit.update(exceeded_limits(record.objects, record.tasks))
            tasks.update(record.tasks)
            hashes[record.name] = hashlib.sha256(record.image).hexdigest()
            yield record

    data, shard = encode_shard(counted_records(), task.index)
    counts = dict(boxes), crowds[True], dict(over_limit)
    result = ShardResult(task.index, shard if shard.rows else None, *counts, tuple(sorted(tasks)), hashes, tuple(faults))
    if write:
        if shard.rows:
            write_bytes(join(task.output, shard.name), data)
        write_bytes(progress_url, json.dumps({"key": key, **asdict(result)}).encode())
    return result


def _read_progress(url: str, key: str, output: str) -> ShardResult | None:
    """Return the result of an earlier run of the same task; None if there is none, it is damaged, or its shard is absent."""
    try:
        content = json.loads(read_bytes(url)) if exists(url) else {}
    except ValueError as error:
        logger.warning("event=progress_damaged url=%s error='%s' next='the shard is built again'", url, error)
        return None
    if content.pop("key", None) != key:
        return None
    shard = content["shard"] and shard_from_json(content["shard"])
    if shard and not exists(join(output, shard.name)):
        return None
    result = ShardResult(**{**content, "shard": shard})
    return replace(
        result,
        boxes_per_label={int(label): boxes for label, boxes in result.boxes_per_label.items()},
        tasks=tuple(result.tasks),
        faults=tuple(Fault(**fault) for fault in content["faults"]),
    )
