"""Make one shard of a data set out of annotated images or built-in scenes: the unit of work of packing.

A finished part leaves a note beside the shards, so that a pack which was killed goes on where it stopped.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from yolor_ray import __version__
from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.header import read_header
from yolor_ray.data.shards.dataset import VERSION, Shard, shard_bytes
from yolor_ray.data.shards.records import Objects, Record
from yolor_ray.data.shards.shard_file import shard_from_json
from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.errors import ImageError
from yolor_ray.io.storage import exists, join, read_bytes, write_bytes
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.image_folder import ImageFile, read_many
from yolor_ray.pack.annotations.normalize import fit
from yolor_ray.pack.annotations.schema import AnnotatedImage

PROGRESS_DIR = "unfinished"
"""Folder of the notes inside an unfinished data set."""
CHECK_PX = 64


@dataclass(frozen=True)
class AnnotatedImages:
    """Images with their annotations."""

    folder: str
    """URL of the images folder."""
    images: tuple[AnnotatedImage, ...]
    """What to pack."""
    files: tuple[ImageFile, ...]
    """The same images' files as they were listed."""
    joints: int
    """Keypoints per object of the data set."""
    identities: bool
    """The data set knows individuals."""

    def records(self, faults: list[Fault]) -> Iterator[Record]:
        """Yield the records of images that can be used; what is wrong goes to `faults`."""
        names = [image.name for image in self.images]
        for image, data in zip(self.images, read_many(self.folder, names), strict=True):
            url = join(self.folder, image.name)
            try:
                header = read_header(data)
                # All of a JPEG is read also when only an eighth of its pixels is asked for: truncation shows either way.
                decode(data, fit_px=CHECK_PX)
            except ImageError as error:
                faults.append(Fault("broken_image", f"{error.code}: {error}; image left out", url))
                continue
            objects, found = fit(image, header, self.joints, self.identities)
            faults += found
            if objects is not None:
                labels = np.array(image.image_labels, np.int64)
                yield Record(image.name, data, header.width, header.height, objects, labels, _tasks_left(image, objects), image.camera)


def _tasks_left(image: AnnotatedImage, objects: Objects) -> tuple[str, ...]:
    """Return what the image is annotated for, now that some of its objects may have been left out with their masks."""
    unmasked = len(objects.labels) > 0 and objects.masks is None
    return tuple(task for task in image.tasks if not (task == "segment" and unmasked))


@dataclass(frozen=True)
class Scenes:
    """Scenes of the built-in data set, from `start` up to `stop`."""

    start: int
    stop: int
    seed: int
    size_px: int

    def records(self, _: list[Fault]) -> Iterator[Record]:
        """Yield the records."""
        return (scene(index, self.seed, self.size_px) for index in range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class ShardTask:
    """What becomes one shard."""

    index: int
    """Position in the data set, from 0."""
    source: AnnotatedImages | Scenes
    """Where its records come from."""
    output: str
    """URL of the data set."""

    @property
    def images(self) -> int:
        """How many images to look at."""
        return len(self.source) if isinstance(self.source, Scenes) else len(self.source.images)


@dataclass(frozen=True)
class ShardResult:
    """What came of a part."""

    index: int
    """Position in the data set, from 0."""
    shard: Shard | None = None
    """The file; None when no image could be used."""
    boxes_per_label: Mapping[int, int] = field(default_factory=dict)
    """Objects by label."""
    tasks: tuple[str, ...] = ()
    """What some image of it is annotated for."""
    image_hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each encoded image, by record name."""
    faults: tuple[Fault, ...] = ()
    """What was wrong."""


def build_shard(part: ShardTask, write: bool = True) -> ShardResult:
    """Return what comes of a part, from its note when it was finished before.

    Args:
        part: what to build.
        write: write the shard and the note; otherwise only tell what they would be.
    """
    note = join(part.output, PROGRESS_DIR, f"part-{part.index:05d}.json")
    key = hashlib.sha256(repr((__version__, VERSION, part.source)).encode()).hexdigest()
    if write and (known := _noted(note, key, part.output)):
        return known
    faults: list[Fault] = []
    boxes: Counter[int] = Counter()
    tasks: set[str] = set()
    hashes: dict[str, str] = {}

    def counted() -> Iterator[Record]:
        for record in part.source.records(faults):
            boxes.update(record.objects.labels.tolist())
            tasks.update(record.tasks)
            hashes[record.name] = hashlib.sha256(record.image).hexdigest()
            yield record

    data, shard = shard_bytes(counted(), part.index)
    built = ShardResult(part.index, shard if shard.rows else None, dict(boxes), tuple(sorted(tasks)), hashes, tuple(faults))
    if write:
        if shard.rows:
            write_bytes(join(part.output, shard.name), data)
        write_bytes(note, json.dumps({"key": key, **asdict(built)}).encode())
    return built


def _noted(note: str, key: str, output: str) -> ShardResult | None:
    """Return what an earlier run noted about the same work, if its shard is there."""
    content = json.loads(read_bytes(note)) if exists(note) else {}
    if content.pop("key", None) != key:
        return None
    shard = content["shard"] and shard_from_json(content["shard"])
    if shard and not exists(join(output, shard.name)):
        return None
    built = ShardResult(**{**content, "shard": shard})
    return replace(
        built,
        boxes_per_label={int(label): boxes for label, boxes in built.boxes_per_label.items()},
        tasks=tuple(built.tasks),
        faults=tuple(Fault(**fault) for fault in content["faults"]),
    )
