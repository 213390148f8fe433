"""Read a folder of YOLO text files: one file per image, one object per line.

A line is `class cx cy w h`, a polygon, an oriented box or a pose, as fractions of the image's sides. An image with an empty text file is
a background. An image without one is a background, too, if every text file belongs to an image.
"""

import logging
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from yolor_ray.errors import DataError
from yolor_ray.io.storage import join
from yolor_ray.pack.annotations.coco_tasks import assign_tasks
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.image_folder import FileIndex, ImageFolder, list_annotation_files, read_files, stem
from yolor_ray.pack.annotations.schema import AnnotatedImage, AnnotatedObject, Annotations
from yolor_ray.pack.annotations.yolo.layout import Layout, find_layout, pose_layout
from yolor_ray.pack.annotations.yolo.names import read_names
from yolor_ray.pack.annotations.yolo.objects import make_objects
from yolor_ray.pack.annotations.yolo.rows import Row, read_rows

logger = logging.getLogger(__name__)

_Rows = list[Row | Fault]


def read_yolo(folder: ImageFolder, annotations: str, names: str, ignored: Collection[str] = ()) -> Annotations:
    """Read the annotations of a folder of YOLO text files.

    Args:
        folder: the images; a text file lies at the same relative path in `annotations`.
        annotations: URL of the folder of text files.
        names: URL of the class names: one per line, or a .yaml file with `names:`.
        ignored: URLs of text files that annotate no image of the folder.

    Raises:
        DataError: there is no text file, or the names cannot be read.
    """
    classes, keypoints = read_names(names)
    files_by_image, faults = _match(folder, annotations, names, ignored)
    rows_by_image = _read_rows(annotations, files_by_image, len(classes))
    layout = pose_layout(len(keypoints.names), keypoints.dims) if keypoints else find_layout(_readable_rows(rows_by_image.values()))
    images = []
    for name, rows in rows_by_image.items():
        file = files_by_image[name]
        image = AnnotatedImage(name, (), join(annotations, file) if file else join(folder.url, name), fractions=True)
        items = list(_objects(rows, image, layout, len(keypoints.names) if keypoints else 0))
        faults += [item for item in items if isinstance(item, Fault)]
        if not any(isinstance(item, Fault) and item.code == "bad_encoding" for item in items):
            images.append(replace(image, objects=tuple(item for item in items if isinstance(item, AnnotatedObject))))
    if not keypoints:
        faults += _layout_faults([(image, rows_by_image[image.name]) for image in images], layout)
    pairs: list[tuple[dict, AnnotatedImage]] = [({}, image) for image in _leave_out_partial_masks(images, annotations)]
    annotated, _ = assign_tasks(pairs, classify=False, pose_labels=range(len(classes)) if keypoints else ())
    return Annotations(classes, tuple(annotated), tuple(faults), keypoint_names=keypoints.names if keypoints else ())


def _leave_out_partial_masks(images: Sequence[AnnotatedImage], annotations: str) -> list[AnnotatedImage]:
    """Return the images without the masks of those that have objects without mask: the extent of such an object is unknown, not its box."""
    partial = {image.name for image in images if 0 < sum(obj.mask is None for obj in image.objects) < len(image.objects)}
    if partial:
        reason = "some objects are boxes and others polygons, so the images are not annotated for segment"
        logger.warning("event=partial_masks images=%d example='%s' reason='%s' url=%s", len(partial), min(partial), reason, annotations)
    return [
        replace(image, objects=tuple(replace(obj, mask=None) for obj in image.objects)) if image.name in partial else image
        for image in images
    ]


def _read_rows(annotations: str, files_by_image: Mapping[str, str | None], classes: int) -> dict[str, _Rows]:
    """Return the rows of each image, and the faults of unreadable lines, by image name; an image without a text file has none."""
    read: dict[str, _Rows] = {name: [] for name in files_by_image}
    files = {name: file for name, file in files_by_image.items() if file}
    for (name, file), data in zip(files.items(), read_files(annotations, list(files.values())), strict=True):
        read[name] = list(read_rows(data, join(annotations, file), name, classes))
    return read


def _readable_rows(lists: Iterable[_Rows]) -> list[Row]:
    return [row for rows in lists for row in rows if isinstance(row, Row)]


def _match(folder: ImageFolder, annotations: str, names: str, ignored: Collection[str]) -> tuple[dict[str, str | None], list[Fault]]:
    """Return the text file of each image by image name, None for a background, and the faults of files that do not match one to one.

    The text file of `a.jpg` is `a.txt` or `a.jpg.txt`.
    """
    images = FileIndex(folder.files)
    texts = list_annotation_files(annotations, ".txt")
    files = [file for file in texts if join(annotations, file) not in {names, *ignored} and not _is_list(file, images)]
    if not files and not ignored:
        raise DataError(f"{annotations}: found no text file with annotations, expected one per image")
    index = FileIndex(files)
    matches = {name: index.stem_matches(stem(name)) or index.stem_matches(name) for name in folder.files}
    files_by_image = {name: index.find_stem(stem(name)) or index.find_stem(name) for name in folder.files}
    used = {file for files_of_image in matches.values() for file in files_of_image}
    unused = [file for file in files if file not in used]
    message = f"found no image of the same name in {folder.url}, expected one; labels left out"
    faults = [Fault("missing_image", message, join(annotations, file)) for file in unused]
    alone = [name for name, file in files_by_image.items() if file is None]
    labels = [file for file, data in zip(unused, read_files(annotations, unused), strict=True) if _has_rows(data)] if alone else []
    for name in alone:
        code, found = "ambiguous_image", f"found text files {', '.join(matches[name])}"
        if not matches[name] and labels:
            code, found = "missing_annotation", f"found no text file, and {len(labels)} text files without image, such as {labels[0]}"
        if matches[name] or labels:
            del files_by_image[name]
            faults.append(Fault(code, f"{found}; expected one; image left out", join(folder.url, name)))
    _warn_of_shared_files(files_by_image, annotations)
    return files_by_image, faults


def _has_rows(data: bytes) -> bool:
    return any(isinstance(item, Row) for item in read_rows(data, "", "", classes=sys.maxsize))


def _warn_of_shared_files(files_by_image: Mapping[str, str | None], annotations: str) -> None:
    """Log the number of text files that annotate several images, such as a.jpg and a.png beside a.txt: the images may differ."""
    images_by_file: dict[str, list[str]] = defaultdict(list)
    for name, file in files_by_image.items():
        images_by_file[file or ""].append(name)
    shared = {file: sorted(names) for file, names in images_by_file.items() if file and len(names) > 1}
    if shared:
        example = f"{min(shared)} of {', '.join(shared[min(shared)])}"
        reason = "each is read for all images of its stem, so the images must be copies"
        logger.warning("event=shared_text_files files=%d example='%s' reason='%s' url=%s", len(shared), example, reason, annotations)


def _is_list(file: str, images: FileIndex) -> bool:
    """Return True for the list of class names that labelling tools write among the text files."""
    return PurePosixPath(file).name == "classes.txt" and not images.stem_matches(stem(file))


def _objects(items: Sequence[Row | Fault], image: AnnotatedImage, layout: Layout, keypoint_count: int) -> Iterator[AnnotatedObject | Fault]:
    for item in items:
        if isinstance(item, Fault):
            yield item
        else:
            yield from make_objects(item, layout, image, keypoint_count)


def _layout_faults(images: Sequence[tuple[AnnotatedImage, _Rows]], layout: Layout) -> list[Fault]:
    """Return a fault for a dataset of oriented boxes, or of poses without names for their keypoints, at the first such row."""
    long_rows = [(image, row) for image, rows in images for row in _readable_rows([rows]) if len(row.numbers) > 4]
    if not long_rows or layout.kind == "polygon":
        return []
    image, row = long_rows[0]
    if layout.kind == "oriented":
        found = f"found {len(long_rows)} oriented boxes in the dataset (class and 4 corners of a turned rectangle)"
        return [Fault("oriented_box", f"{found}, expected upright boxes; their enclosing boxes are kept", image.file, row.line)]
    keypoints = (layout.numbers - 4) // layout.dims
    found = f"found {len(long_rows)} lines in the dataset with a box and {keypoints} keypoints of {layout.dims} numbers"
    message = f"{found}, expected kpt_shape: [{keypoints}, {layout.dims}] in a data.yaml given as names; keypoints left out"
    return [Fault("missing_kpt_shape", message, image.file, row.line)]
