"""Plan the datasets of all splits of a folder at once, with one order of classes.

Without a validation split, a share of the training images becomes one. Their bytes decide, so an image is on the same side for ever.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace

from yolor_ray.config import PackAutoConfig
from yolor_ray.data.shards.image_hashes import content_fraction
from yolor_ray.data.shards.union import unite_class_keypoints, unite_names
from yolor_ray.errors import DataError
from yolor_ray.io.storage import absolute, join
from yolor_ray.pack.annotations.image_folder import ImageFolder, read_files
from yolor_ray.pack.annotations.schema import AnnotatedImage, Annotations, drop_duplicates, spread_keypoints
from yolor_ray.pack.layouts.layout import SPLITS, Source
from yolor_ray.pack.layouts.recognise import recognise
from yolor_ray.pack.layouts.tree import lowest_common_folder
from yolor_ray.pack.plan import PackPlan, check_objects, divide

Split = tuple[ImageFolder, Annotations]
"""Images and annotations of one split."""

logger = logging.getLogger(__name__)


def plan_splits(config: PackAutoConfig) -> dict[str, PackPlan]:
    """Plan a dataset for each split of a folder: train, val, test.

    Raises:
        DataError: the layout is unknown or ambiguous, a split cannot be read, or all training images are equal.
    """
    layout = recognise(absolute(config.folder), config.layout, absolute(config.output))
    parts = {split: [_read(source) for source in sources] for split, sources in layout.splits.items()}
    aligned = iter(_align([annotations for group in parts.values() for _, annotations in group], layout.sorted_classes))
    splits = {split: _unite([(folder, next(aligned)) for folder, _ in group]) for split, group in parts.items()}
    splits = {split: (folder, check_objects(config, annotations)) for split, (folder, annotations) in splits.items()}
    splits = _separate(splits)
    # A training set without a usable image is refused later, with its faults.
    if "train" in splits and splits["train"][1].images and "val" not in splits and config.hold_out > 0:
        splits |= _hold_out(*splits["train"], config.hold_out)
    plans = {split: divide(replace(config, output=join(config.output, split)), *splits[split]) for split in SPLITS if split in splits}
    classes = next(iter(plans.values())).classes
    logger.info("event=classes count=%d names='%s'", len(classes), ", ".join(classes))
    return plans


def _read(source: Source) -> Split:
    folder = ImageFolder(source.images)
    if source.selected is not None:
        folder = ImageFolder(source.images, [file for name, file in folder.files.items() if name in source.selected])
    annotations = source.read(folder)
    return folder, replace(annotations, faults=(*source.faults, *annotations.faults))


def _align(members: list[Annotations], by_name: bool) -> list[Annotations]:
    """Return annotations with the same classes: those of the first in their order, then further ones; or all in alphabetical order.

    Keypoints are united by name, for each class.
    """
    names = dict.fromkeys(name for member in members for name in member.classes)
    classes = tuple(sorted(names) if by_name else names)
    image_classes = tuple(sorted({name for member in members for name in member.image_classes}))
    for missing in {tuple(name for name in classes if name not in member.classes) for member in members} - {()}:
        logger.warning("event=classes_differ missing='%s' reason='annotations of a part of the images lack these classes'", missing)
    keypoint_names = unite_names(member.keypoint_names for member in members)
    for differing in {member.keypoint_names for member in members} - {(), keypoint_names}:
        logger.warning(
            "event=keypoints_differ found='%s' all='%s' reason='annotations of a part of the images lack some of the keypoints'",
            *(", ".join(differing), ", ".join(keypoint_names)),
        )
    class_keypoints = unite_class_keypoints(classes, [member.class_keypoints for member in members])
    united = Annotations(classes, (), (), image_classes, keypoint_names, class_keypoints=class_keypoints)
    return [_relabel(member, united) for member in members]


def _relabel(member: Annotations, united: Annotations) -> Annotations:
    """Return the images and faults of a member in the names of `united`."""
    labels, image_labels, keypoints = (
        [getattr(united, field).index(name) for name in getattr(member, field)] for field in ("classes", "image_classes", "keypoint_names")
    )

    def relabel(image: AnnotatedImage) -> AnnotatedImage:
        objects = tuple(
            replace(obj, label=labels[obj.label], keypoints=spread_keypoints(obj.keypoints, keypoints, len(united.keypoint_names)))
            for obj in image.objects
        )
        return replace(image, objects=objects, image_labels=tuple(sorted(image_labels[label] for label in image.image_labels)))

    fields = "classes", "image_classes", "keypoint_names"
    unchanged = all(getattr(member, field) == getattr(united, field) for field in fields)
    images = member.images if unchanged else tuple(map(relabel, member.images))
    return replace(united, images=images, faults=member.faults, unplaced_objects=member.unplaced_objects)


def _unite(parts: list[Split]) -> Split:
    """Return the parts of a split as one; names of images begin at the folder that holds the folders of all parts."""
    if len(parts) == 1:
        return parts[0]
    root = lowest_common_folder(folder.url for folder, _ in parts)
    files, images, faults = [], [], []
    for folder, annotations in parts:
        prefix = folder.url[len(root) :].strip("/")
        faults += [replace(fault, image=join(prefix, fault.image).lstrip("/")) if fault.image else fault for fault in annotations.faults]
        files += [replace(file, name=join(prefix, file.name).lstrip("/")) for file in folder.files.values()]
        images += [replace(image, name=join(prefix, image.name).lstrip("/")) for image in annotations.images]
    images, duplicates = drop_duplicates(images)
    return ImageFolder(root, files), replace(parts[0][1], images=tuple(images), faults=(*faults, *duplicates))


def _urls(split: Split) -> set[str]:
    folder, annotations = split
    return {join(folder.url, image.name) for image in annotations.images}


def _separate(splits: Mapping[str, Split]) -> dict[str, Split]:
    """Leave out splits without images, and the images of the training set that are in another split, too.

    A shared image stays in the smaller of the two splits. A split with the images of the training set is left out.
    """
    kept = dict(splits)
    for split in ("val", "test"):
        if split in kept and not kept[split][1].images and not kept[split][1].faults:
            logger.warning("event=split_left_out split=%s reason='found no image'", split)
            del kept[split]
        if "train" not in kept or split not in kept:
            continue
        train, other = _urls(kept["train"]), _urls(kept[split])
        if train and train == other:
            logger.warning("event=split_left_out split=%s reason='its images are those of train'", split)
            del kept[split]
        elif train & other:
            larger = "train" if len(train) >= len(other) else split
            logger.warning("event=shared_images split=%s images=%d left_out_of=%s", split, len(train & other), larger)
            kept[larger] = _without(kept[larger], train & other)
    return kept


def _without(split: Split, urls: set[str]) -> Split:
    folder, annotations = split
    return folder, replace(annotations, images=tuple(image for image in annotations.images if join(folder.url, image.name) not in urls))


def _hold_out(folder: ImageFolder, annotations: Annotations, share: float) -> dict[str, Split]:
    """Divide a training set by the bytes of its images; the faults of the annotations stay with the training set.

    Of a small set, the share is held out that just suffices for one image.

    Raises:
        DataError: all images are equal, or the share takes all of them.
    """
    names = [image.name for image in annotations.images]
    fractions = {name: content_fraction(data) for name, data in zip(names, read_files(folder.url, names), strict=True)}
    sufficient = max(share, math.nextafter(min(fractions.values()), 1))
    held = {name for name, fraction in fractions.items() if fraction < sufficient}
    if len(held) == len(names):
        found = f"found {len(names)} images, and a hold_out of {sufficient:.4g} takes all of them"
        raise DataError(f"{folder.url}: {found}; expected different images, and a share that leaves some to train on")
    logger.info("event=held_out split=val images=%d of=%d share=%.4g by='SHA-256 of the image'", len(held), len(names), sufficient)
    train, val = (tuple(image for image in annotations.images if (image.name in held) == side) for side in (False, True))
    return {"train": (folder, replace(annotations, images=train)), "val": (folder, replace(annotations, images=val, faults=()))}
