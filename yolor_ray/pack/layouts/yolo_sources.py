"""Divide YOLO images into sources: folders of images, each with the folder of its label files.

The label file of an image has the same path with the last folder `images` replaced by `labels`, or lies beside the image.
"""

import functools
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from yolor_ray.pack.annotations.image_folder import FileIndex, stem
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
    texts = [tree.url_of(name) for name in tree.with_suffix(".txt") if not labels or name.startswith(f"{labels}/")]
    others = FileIndex(below - selected)
    own = FileIndex(selected)
    foreign = [text for text in texts if text in ignored or _is_foreign(text[len(tree.url_of(labels)) :].lstrip("/"), own, others)]
    read = functools.partial(read_yolo, annotations=tree.url_of(labels), names=names, ignored=frozenset(foreign))
    return Source(tree.url_of(root), tree.url_of(labels), read, None if selected == below else selected)


def _is_foreign(path: str, own: FileIndex, others: FileIndex) -> bool:
    """Return True for a text file that is no label file, or belongs to an image of another split."""
    name = PurePosixPath(path).name
    is_text = name in NAMES_FILES or name.lower().startswith("readme")
    return own.find_stem(stem(path)) is None and (is_text or others.find_stem(stem(path)) is not None)
