"""Choose and draw the pictures of a health report: the labels of each class and task, and the examples of findings.

The choice is random but seeded. Pictures of one row group are drawn together, so each row group is read once.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from yolor_ray.data.shards.dataset import Dataset, read_row_group, to_records
from yolor_ray.pack.health.findings import Example
from yolor_ray.pack.health.pictures import Picture, draw
from yolor_ray.pack.health.scan import Scan

SEED = 0
PICTURES_PER_CLASS = 8
MAX_CLASS_PICTURES = 480
"""Most pictures of objects; sets of many classes have fewer pictures per class."""
MIN_PER_CLASS = 2
WHOLE_IMAGES = 9
INDIVIDUALS = 6
"""Most individuals that are shown."""
PICTURES_PER_INDIVIDUAL = 4


class Chooser:
    """A seeded choice of records that prefers few row groups, as a picture costs the reading of its row group."""

    def __init__(self, dataset: Dataset, scan: Scan) -> None:
        self._scan = scan
        random = np.random.default_rng(SEED)
        groups = dataset.row_groups
        ranks = np.repeat(random.permutation(len(groups)), groups.rows)
        self._image_ranks = ranks + random.random(scan.images)
        self._object_ranks = ranks[scan.image_of_object] + random.random(len(scan.labels))

    def images(self, chosen: np.ndarray, most: int) -> list[int]:
        """Return up to `most` of the images for which `chosen`, (I,) bool, is true."""
        numbers = np.flatnonzero(chosen)
        return numbers[np.argsort(self._image_ranks[numbers])][:most].tolist()

    def objects(self, chosen: np.ndarray, most: int) -> list[int]:
        """Return up to `most` of the objects for which `chosen`, (N,) bool, is true; of different images where possible."""
        numbers = np.flatnonzero(chosen)
        numbers = numbers[np.argsort(self._object_ranks[numbers])]
        images = self._scan.image_of_object[numbers]
        _, firsts = np.unique(images, return_index=True)
        repeated = np.ones(len(numbers), bool)
        repeated[firsts] = False
        return numbers[np.lexsort((np.arange(len(numbers)), repeated))][:most].tolist()


def label_pictures(dataset: Dataset, scan: Scan) -> dict[str, dict[str, list[Picture]]]:
    """Choose the pictures of labels: by section, then by class, label or individual."""
    chooser = Chooser(dataset, scan)
    single = ~scan.crowd
    per_class = min(PICTURES_PER_CLASS, max(MIN_PER_CLASS, MAX_CLASS_PICTURES // max(len(dataset.classes), 1)))
    shown = np.argsort(-np.bincount(scan.labels[single], minlength=len(dataset.classes)), kind="stable")
    shown = np.sort(shown[: MAX_CLASS_PICTURES // per_class])
    objects = {dataset.classes[label]: chooser.objects(single & (scan.labels == label), per_class) for label in shown}
    by_label = {}
    for label, name in enumerate(dataset.image_classes):
        labelled = np.bincount(scan.image_of_label[scan.image_labels == label], minlength=scan.images) > 0
        by_label[name] = chooser.images(labelled, PICTURES_PER_CLASS)
    sections = {
        "classes": {name: [_object_picture(scan, number) for number in numbers] for name, numbers in objects.items()},
        "individuals": _individuals(chooser, scan),
        "labels": {name: [Picture(0, number) for number in numbers] for name, numbers in by_label.items()},
        "images": {"": [Picture(0, number) for number in chooser.images(np.ones(scan.images, bool), WHOLE_IMAGES)]},
    }
    return {section: {name: pictures for name, pictures in rows.items() if pictures} for section, rows in sections.items()}


def _individuals(chooser: Chooser, scan: Scan) -> dict[str, list[Picture]]:
    """Choose pictures of individuals that have several."""
    numbers, counts = np.unique(scan.identities[scan.identities >= 0], return_counts=True)
    several = np.random.default_rng(SEED).permutation(numbers[counts > 1])[:INDIVIDUALS]
    chosen = {identity: chooser.objects(scan.identities == identity, PICTURES_PER_INDIVIDUAL) for identity in several}
    return {f"individual {identity}": [_object_picture(scan, number) for number in objects] for identity, objects in chosen.items()}


def _object_picture(scan: Scan, number: int) -> Picture:
    x1, y1, x2, y2 = scan.boxes_xyxy[number].tolist()
    return Picture(0, int(scan.image_of_object[number]), (x1, y1, x2, y2))


def example_pictures(example: Example) -> list[Picture]:
    """Return the pictures of an example: of its image, and of the second image where there is one."""
    pictures = []
    if example.record >= 0:
        left, top, right, bottom = zip(*example.boxes_xyxy, strict=True) if example.boxes_xyxy else ((0.0,),) * 4
        view = None if example.whole else (min(left), min(top), max(right), max(bottom))
        pictures.append(Picture(0, example.record, view, example.boxes_xyxy, annotated=example.other_member < 0))
    if example.other_member >= 0:
        pictures.append(Picture(example.other_member, example.other_record, annotated=False))
    return pictures


def draw_all(datasets: Sequence[Dataset], pictures: Iterable[Picture]) -> Mapping[Picture, bytes]:
    """Draw pictures as JPEG; `datasets` are the checked one and then the others."""
    by_group = defaultdict(set)
    for picture in pictures:
        by_group[picture.member, datasets[picture.member].row_groups.number_of(picture.record)].add(picture)
    drawn = {}
    for (member, number), wanted in by_group.items():
        group = datasets[member].row_groups[number]
        records = to_records(read_row_group(datasets[member], group))
        drawn.update({picture: draw(picture, records[picture.record - group.first_record]) for picture in wanted})
    return drawn
