"""See several packed data sets as one, so that they are trained together whatever each was annotated for.

Names are united in the order of their first appearance; the members' tables are brought to them as they are read.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from yolor_ray.class_names import ClassNames
from yolor_ray.data.shards.dataset import Dataset, open_dataset
from yolor_ray.errors import DataError
from yolor_ray.io.storage import absolute


def open_datasets(urls: str) -> Dataset:
    """Return the data set in a folder, or of several folders separated by commas their union.

    Raises:
        DataError: a folder is named twice or not at all, or holds no data set that can be read.

    """
    places = [url.strip() for url in urls.split(",")]
    if "" in places:
        raise DataError(f"{urls!r}: found no URL before or after a comma, expected one data set or several separated by commas")
    if len(places) == 1:
        return open_dataset(urls)
    members = [open_dataset(absolute(url).rstrip("/")) for url in places]
    repeated = [url for url, times in Counter(member.url for member in members).items() if times > 1]
    if repeated:
        raise DataError(f"{urls}: found {', '.join(repeated)} more than once, expected each data set once")
    return unite(members)


def unite(members: Sequence[Dataset]) -> Dataset:
    """Return the union of data sets; its records are numbered through in the order of the members."""
    digests = "\n".join(member.digest for member in members)
    classes = _first_seen(member.classes for member in members)
    boxes: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for member in members:
        boxes.update(member.boxes_per_class)
        faults.update(member.faults)
    return Dataset(
        url=",".join(member.url for member in members),
        classes=classes,
        image_classes=_first_seen(member.image_classes for member in members),
        keypoint_names=_first_seen(member.keypoint_names for member in members),
        tasks=tuple(sorted({task for member in members for task in member.tasks})),
        images=sum(member.images for member in members),
        boxes=sum(member.boxes for member in members),
        boxes_per_class={name: boxes[name] for name in classes},
        shards=tuple(shard for member in members for shard in member.shards),
        digest=hashlib.sha256(digests.encode()).hexdigest(),
        faults=dict(sorted(faults.items())),
        members=tuple(members),
    )


def relabel_to(dataset: Dataset, names: ClassNames) -> Dataset:
    """Return a data set in the names of weights, or of another data set, which may know more of them.

    Raises:
        DataError: the data set has object classes, or annotations with image classes or keypoints, that are unknown there.

    """
    told = {"classes": names.classes}
    # Of what is not spoken of there, the data set keeps its own names.
    told |= {kind: theirs for kind in ("image_classes", "keypoint_names") if (theirs := getattr(names, kind))}
    for kind, known in told.items():
        unknown = [name for name in getattr(dataset, kind) if name not in known]
        if unknown:
            raise DataError(f"{dataset.url}: found {kind.replace('_', ' ')} {', '.join(unknown)}, expected some of {', '.join(known)}")
    if all(getattr(dataset, kind) == known for kind, known in told.items()):
        return dataset
    boxes = {name: dataset.boxes_per_class.get(name, 0) for name in names.classes}
    fields: dict[str, Any] = told
    return replace(dataset, **fields, boxes_per_class=boxes, members=dataset.members or (dataset,))


def _first_seen(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in groups for name in names))
