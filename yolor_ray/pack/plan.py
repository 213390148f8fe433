"""Plan a dataset before it is built: read the annotations, order the images, divide them among shards.

Images are ordered by the hashes of their names. The order is fixed, yet mixed, so that neighbouring frames of a video do not end in
one row group.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from yolor_ray.class_names import keypoint_flags, unusable_name
from yolor_ray.config import PackCocoConfig, PackConfig, PackCropsConfig, PackScenesConfig, PackVocConfig, PackYoloConfig
from yolor_ray.config.pack import PackLabelsConfig
from yolor_ray.data.synthetic import scenes
from yolor_ray.errors import ConfigError, DataError
from yolor_ray.io.storage import absolute
from yolor_ray.pack.annotations.coco import read_coco
from yolor_ray.pack.annotations.crops import read_crops
from yolor_ray.pack.annotations.faults import LOST_OBJECT_CODES, UNREADABLE_OBJECT_CODES, Fault
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.annotations.schema import AnnotatedImage, Annotations, add_labels_of_objects
from yolor_ray.pack.annotations.voc import read_voc
from yolor_ray.pack.annotations.yolo.read import read_yolo
from yolor_ray.pack.incomplete_images import withdraw_tasks
from yolor_ray.pack.object_faults import leave_out_fractions, merge_equal_objects
from yolor_ray.pack.shard_builder import AnnotatedSource, SceneSource, ShardTask

SCENES_PER_SHARD = 512


@dataclass(frozen=True)
class PackPlan:
    """A dataset before it is built."""

    output: str
    """URL of the dataset."""
    shard_tasks: tuple[ShardTask, ...]
    classes: tuple[str, ...]
    image_classes: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()
    class_keypoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    """Faults of the annotations; faults of images are found while building."""
    strict: bool = False
    """Refuse the whole dataset for any fault."""

    @property
    def annotated_images(self) -> list[AnnotatedImage]:
        """Return the images of the shards; none for built-in scenes."""
        return [image for task in self.shard_tasks if isinstance(task.source, AnnotatedSource) for image in task.source.images]

    @property
    def lost_objects(self) -> bool:
        """Return True if faults of the annotations took objects away."""
        return any(fault.code in LOST_OBJECT_CODES for fault in self.faults)


def plan_annotated(config: PackVocConfig | PackCocoConfig | PackYoloConfig | PackCropsConfig) -> PackPlan:
    """Plan a dataset of annotated images.

    Raises:
        DataError: the images folder has no image, or the annotations cannot be read.
    """
    folder = ImageFolder(absolute(config.images))
    return divide(config, folder, check_objects(config, _read_annotations(config, folder)))


def check_objects(config: PackLabelsConfig, annotations: Annotations) -> Annotations:
    """Mend faults that show only when objects are compared, withdraw tasks of lost objects, and label images by their objects."""
    annotations = merge_equal_objects(leave_out_fractions(annotations))
    annotations = withdraw_tasks(annotations, UNREADABLE_OBJECT_CODES - _deliberate_codes(config))
    return add_labels_of_objects(annotations) if config.image_labels == "present" else annotations


def plan_scenes(config: PackScenesConfig) -> PackPlan:
    """Plan a dataset of built-in scenes."""
    output = absolute(config.output)
    starts = range(0, config.count, SCENES_PER_SHARD)
    sources = [SceneSource(start, min(start + SCENES_PER_SHARD, config.count), config.seed, config.size_px) for start in starts]
    tasks = tuple(ShardTask(index, source, output) for index, source in enumerate(sources))
    names = scenes.CLASSES, scenes.IMAGE_CLASSES, scenes.KEYPOINT_NAMES, scenes.CLASS_KEYPOINTS
    return PackPlan(output, tasks, *names, strict=False)


def _read_annotations(config: PackVocConfig | PackCocoConfig | PackYoloConfig | PackCropsConfig, folder: ImageFolder) -> Annotations:
    if isinstance(config, PackCropsConfig):
        return read_crops(folder, config.pattern, _split_file(config), _names(config.classes))
    annotations = absolute(config.annotations)
    if isinstance(config, PackVocConfig):
        return read_voc(folder, annotations, _split_file(config), _names(config.classes))
    if isinstance(config, PackCocoConfig):
        return read_coco(folder, annotations, _names(config.image_classes))
    return read_yolo(folder, annotations, absolute(config.names))


def _deliberate_codes(config: PackConfig) -> set[str]:
    """Return the codes of objects that the caller leaves out on purpose: those of other classes than the flag `classes` names in VOC."""
    return {"unknown_class"} if isinstance(config, PackVocConfig) and _names(config.classes) else set()


def _split_file(config: PackVocConfig | PackCropsConfig) -> str:
    return absolute(config.split_file) if config.split_file else ""


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(set(names)) < len(names):
        raise ConfigError(f"classes: found {text!r}, expected each name once")
    return names


def divide(config: PackConfig, folder: ImageFolder, annotations: Annotations) -> PackPlan:
    """Plan the shards of a dataset: images in the order of the hashes of their names, cut by the size of their files.

    Raises:
        DataError: a name has a control character.
    """
    output = absolute(config.output)
    for kind in ("classes", "image_classes", "keypoint_names"):
        if (name := unusable_name(getattr(annotations, kind))) is not None:
            raise DataError(f"{folder.url}: found {name!r} among {kind.replace('_', ' ')}, expected names without control characters")
    ordered = sorted(annotations.images, key=lambda image: hashlib.sha256(image.name.encode()).digest())
    flags = tuple(map(tuple, keypoint_flags(annotations).tolist()))
    tasks = []
    for index, images in enumerate(_groups_of_size(ordered, folder, config.shard_mb * 1e6)):
        files = tuple(folder.files[image.name] for image in images)
        source = AnnotatedSource(folder.url, images, files, flags, annotations.has_identities)
        tasks.append(ShardTask(index, source, output))
    names = annotations.classes, annotations.image_classes, annotations.keypoint_names, annotations.class_keypoints
    return PackPlan(output, tuple(tasks), *names, annotations.faults, config.strict)


def _groups_of_size(images: Sequence[AnnotatedImage], folder: ImageFolder, size: float) -> list[tuple[AnnotatedImage, ...]]:
    """Return consecutive groups of images with about `size` encoded bytes each."""
    ends = itertools.accumulate(folder.files[image.name].bytes for image in images)
    numbered = [(int((end - 1) // size), image) for end, image in zip(ends, images, strict=True)]
    return [tuple(image for _, image in group) for _, group in itertools.groupby(numbered, key=lambda pair: pair[0])]
