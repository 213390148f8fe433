"""Divide YOLO images into sources: folders of images, each with the folder of its label files.

The label file of an image has the same path with the last folder `images` replaced by `labels`, or lies beside the image.
"""

import functools
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from yolor_ray.pack.annotations.image_folder import FileIndex, ImageFolder, stem
from yolor_ray.pack.annotations.schema import Annotations
from yolor_ray.pack.annotations.yolo.read import read_yolo
from yolor_ray.pack.layouts.layout import Source, split_of_folder
from yolor_ray.pack.layouts.tree import FolderTree, folder_of, lowest_common_folder

NAMES_FILES = ("classes.txt", "names.txt", "obj.names", "_darknet.labels")
"""Files of class names, one per line."""
LABEL_FOLDERS = {"images": "labels", "Images": "Labels", "IMAGES": "LABELS"}
"""Folders of label files by the folders of their images."""


def label_folder(folder: str) -> str | None:
    """Return a folder with its last part `images` replaced by `labels`; None without such a part."""
    parts = folder.split("/")
    last = next((index for index in reversed(range(len(parts))) if parts[index] in LABEL_FOLDERS), None)
    return None if last is None else "/".join([*parts[:last], LABEL_FOLDERS[parts[last]], *parts[last + 1 :]])


def label_file(tree: FolderTree, image: str) -> str | None:
    """Return the path of the label file of an image; None if the image has none."""
    path = label_folder(folder_of(image))
    name = f"{stem(image).rpartition('/')[2]}.txt"
    beside = folder_of(image)
    candidates = [f"{folder}/{name}".lstrip("/") for folder in (path, beside) if folder is not None]
    return next((candidate for candidate in candidates if candidate in tree.file_set), None)


def yolo_sources(tree: FolderTree, images: Iterable[str], names: str, ignored: Collection[str] = ()) -> list[Source]:
    """Return the sources of images of one split.

    Args:
        tree: folder of the images and label files.
        images: paths of the images below the folder.
        names: URL of the class names.
        ignored: URLs of text files that are no label files.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for image in images:
        groups[_root(folder_of(image))].append(image)
    if "" in groups:
        groups[lowest_common_folder(sorted({folder_of(image) for image in groups[""]}))] = groups.pop("")
    return [_source(tree, root, group, names, ignored) for root, group in sorted(groups.items())]


def _root(folder: str) -> str:
    """Return the path up to the last folder called `images`, and up to the last folder of a split if that is deeper."""
    parts = folder.split("/")
    depths = [depth for depth, part in enumerate(parts, start=1) if part in LABEL_FOLDERS or split_of_folder(part)]
    return "/".join(parts[: max(depths, default=0)])


def _source(tree: FolderTree, root: str, images: Collection[str], names: str, ignored: Collection[str]) -> Source:
    labels = label_folder(root)
    beside = any(label_file(tree, image) == f"{stem(image)}.txt" for image in images)
    if labels is None or (beside and labels not in tree.folders):
        labels = root
    start = len(root) + 1 if root else 0
    below = frozenset(image[start:] for image in tree.images if not root or image.startswith(f"{root}/"))
    selected = frozenset(image[start:] for image in images)
    read = functools.partial(_read, annotations=tree.url_of(labels), names=names, images=below, ignored=frozenset(ignored))
    return Source(tree.url_of(root), tree.url_of(labels), read, None if selected == below else selected)


def _read(folder: ImageFolder, annotations: str, names: str, images: Collection[str], ignored: Collection[str]) -> Annotations:
    """Read label files without the faults of files that are no labels, or belong to images of other splits.

    Args:
        folder: images of the split.
        annotations: URL of the folder of label files.
        names: URL of the class names.
        images: all images of the folder.
        ignored: URLs of text files that are no label files.
    """
    result = read_yolo(folder, annotations, names)
    index = FileIndex(images)

    def is_known(file: str) -> bool:
        path = file[len(annotations) :].lstrip("/")
        name = PurePosixPath(path).name
        is_text = file in ignored or name in NAMES_FILES or name.lower().startswith("readme")
        return is_text or index.find_stem(stem(path)) is not None

    return replace(result, faults=tuple(fault for fault in result.faults if fault.code != "missing_image" or not is_known(fault.file)))
