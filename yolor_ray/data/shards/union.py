"""Unite several packed datasets into one, which may be annotated for different tasks and with different names.

Names are united in the order of their first appearance. The tables of the members are relabelled as they are read.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from yolor_ray.class_names import ClassNames, have_all_keypoints
from yolor_ray.data.shards.dataset import Dataset, open_dataset
from yolor_ray.errors import DataError
from yolor_ray.io.storage import absolute


def open_datasets(urls: str) -> Dataset:
    """Open the dataset in a folder, or the union of the datasets in several folders, separated by commas.

    Raises:
        DataError: a folder is named twice or not at all, or holds no readable dataset.

    """
    folders = [url.strip() for url in urls.split(",")]
    if "" in folders:
        raise DataError(f"{urls!r}: found no URL before or after a comma, expected one dataset or several separated by commas")
    if len(folders) == 1:
        return open_dataset(urls)
    members = [open_dataset(absolute(folder).rstrip("/")) for folder in folders]
    repeated = [url for url, count in Counter(member.url for member in members).items() if count > 1]
    if repeated:
        raise DataError(f"{urls}: found {', '.join(repeated)} more than once, expected each dataset once")
    return unite(members)


def unite(members: Sequence[Dataset]) -> Dataset:
    """Unite datasets; the records of the union are numbered consecutively, in the order of the members."""
    digests = "\n".join(member.digest for member in members)
    classes = unite_names(member.classes for member in members)
    boxes: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for member in members:
        boxes.update(member.boxes_per_class)
        faults.update(member.faults)
    return Dataset(
        url=",".join(member.url for member in members),
        classes=classes,
        image_classes=unite_names(member.image_classes for member in members),
        keypoint_names=unite_names(member.keypoint_names for member in members),
        tasks=tuple(sorted({task for member in members for task in member.tasks})),
        images=sum(member.images for member in members),
        boxes=sum(member.boxes for member in members),
        boxes_per_class={name: boxes[name] for name in classes},
        shards=tuple(shard for member in members for shard in member.shards),
        digest=hashlib.sha256(digests.encode()).hexdigest(),
        faults=dict(sorted(faults.items())),
        crowds=None if any(member.crowds is None for member in members) else sum(member.crowds or 0 for member in members),
        members=tuple(members),
        class_keypoints=unite_class_keypoints(classes, [member.class_keypoints for member in members]),
    )


def unite_class_keypoints(classes: Iterable[str], mappings: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    """Return the keypoints of each of `classes` that has some in any of the mappings, in the order of their first appearance."""
    united = {name: unite_names(mapping.get(name, ()) for mapping in mappings) for name in classes}
    return {name: keypoints for name, keypoints in united.items() if keypoints}


def relabel_to(dataset: Dataset, names: ClassNames) -> Dataset:
    """Relabel a dataset to the class, label and keypoint names of `names`; empty name lists leave the dataset's own.

    Raises:
        DataError: the dataset has object classes, image classes or keypoints that are not among `names`.

    """
    targets = {"classes": names.classes}
    targets |= {field: target for field in ("image_classes", "keypoint_names") if (target := getattr(names, field))}
    for field, target in targets.items():
        unknown = [name for name in getattr(dataset, field) if name not in target]
        if unknown:
            expected = f"expected some of {', '.join(target)}"
            raise DataError(f"{dataset.url}: found {field.replace('_', ' ')} {', '.join(unknown)}, {expected}")
    fields: dict[str, Any] = targets
    if names.keypoint_names:
        _check_class_keypoints(dataset, names)
        fields |= {"class_keypoints": dict(names.class_keypoints)}
    if all(getattr(dataset, field) == target for field, target in fields.items()):
        return dataset
    boxes = {name: dataset.boxes_per_class.get(name, 0) for name in names.classes}
    return replace(dataset, **fields, boxes_per_class=boxes, members=dataset.members or (dataset,))


def _check_class_keypoints(dataset: Dataset, names: ClassNames) -> None:
    """Raise DataError for a class with keypoints that the class lacks in `names`.

    Where every class has all keypoints, as in YOLO's datasets and those of older versions, nobody said which class has which.
    """
    for name, keypoints in dataset.class_keypoints.items():
        expected = names.class_keypoints.get(name, ())
        unknown = [keypoint for keypoint in keypoints if keypoint not in expected]
        if unknown and not have_all_keypoints(dataset):
            raise DataError(
                f"{dataset.url}: found keypoints {', '.join(unknown)} of {name}, expected some of {', '.join(expected) or 'none'}"
            )


def unite_names(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Return the names of all lists, each once, in the order of their first appearance."""
    return tuple(dict.fromkeys(name for names in lists for name in names))
