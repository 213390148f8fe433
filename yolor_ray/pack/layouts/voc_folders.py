"""Lay out PASCAL VOC XML files: a tree with `Annotations`, `JPEGImages` and `ImageSets/Main`, or XML files beside images."""

import functools
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath

from yolor_ray.errors import DataError
from yolor_ray.io.storage import read_bytes
from yolor_ray.pack.annotations.image_folder import ImageFolder, stem
from yolor_ray.pack.annotations.schema import Annotations
from yolor_ray.pack.annotations.voc import read_voc
from yolor_ray.pack.layouts.layout import Layout, Source, by_split, split_of_folder, split_of_folders
from yolor_ray.pack.layouts.tree import FolderTree, folder_of, folder_that_holds, lowest_common_folder, split_lists

LISTS = "ImageSets/Main"
ANNOTATION_FOLDERS = ("annotations", "labels", "xml", "xmls")
"""Names of folders that hold XML files alone, in lower case."""
OPENED = 3
"""XML files to open in search of VOC annotations."""


def find_voc(tree: FolderTree) -> str | None:
    """Return the path of the first VOC XML file, or None; the first few XML files are opened."""
    return next(
        (name for name in tree.with_suffix(".xml")[:OPENED] if re.search(rb"<annotation[\s>]", read_bytes(tree.url_of(name)))), None
    )


def lay_out_voc(tree: FolderTree) -> Layout:
    """Return the layout of a folder with VOC XML files.

    Raises:
        DataError: there are several folders of lists of splits, or images of no XML file.
    """
    lists = _split_lists(tree)
    folders = _annotation_folders(tree)
    if lists:
        folders = [lowest_common_folder(folders)]
    sources: dict[str, list[Source]] = defaultdict(list)
    notes = _unlisted(tree, lists)
    for folder in folders:
        split = None if lists else split_of_folders(folder)
        images = _images_folder(tree, folder, split)
        if images is None:
            notes.append(f"{tree.url_of(folder)}: found no image with the name of one of its XML files; left out")
            continue
        for name, split_list in lists.items() if lists else [(split or "train", "")]:
            url = split_list and tree.url_of(split_list)
            read = functools.partial(_read, annotations=tree.url_of(folder), split_file=url)
            sources[name].append(Source(tree.url_of(images), tree.url_of(folder), read, split_list=url))
    if not sources:
        raise DataError(f"{tree.url}: found VOC XML files, but {'; '.join(notes)}; expected images with the names of the XML files")
    evidence = folder_of(next(iter(lists.values()))) if lists else folders[0]
    return Layout("PASCAL VOC", tree.url_of(evidence), by_split(sources), tuple(notes), sorted_classes=True)


def _images_folder(tree: FolderTree, folder: str, split: str | None) -> str | None:
    """Return the folder of the images of a folder of XML files; the only folder of images where names of files do not match."""
    names = [stem(name)[len(folder) :].lstrip("/") for name in tree.with_suffix(".xml") if _is_in(name, folder)]
    folders = {folder_of(name) for name in tree.images}
    only = next(iter(folders)) if len(folders) == 1 else None
    found = folder_that_holds(tree, names, split)
    return only if found is None else found


def _read(folder: ImageFolder, annotations: str, split_file: str) -> Annotations:
    return read_voc(folder, annotations, split_file)


def _is_in(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder}/")


def _split_lists(tree: FolderTree) -> dict[str, str]:
    """Return the list of images of each split: in `ImageSets/Main`, or else at the top.

    Raises:
        DataError: there are several folders of lists.
    """
    folders = {folder_of(name) for name in tree.with_suffix(".txt") if f"/{folder_of(name)}".endswith(f"/{LISTS}")}
    if len(folders) > 1:
        raise DataError(f"{tree.url}: found {', '.join(sorted(folders))}, expected one; pack each of their folders alone")
    return split_lists(tree, next(iter(folders), ""))


def _annotation_folders(tree: FolderTree) -> list[str]:
    """Return the folders that are read at once: up to the folder of annotations or of a split, or else the common folder."""
    roots = {_root(folder_of(name)) for name in tree.with_suffix(".xml")}
    if "" in roots:
        return [lowest_common_folder(sorted({folder_of(name) for name in tree.with_suffix(".xml")}))]
    return sorted(root for root in roots if not any(root != other and _is_in(root, other) for other in roots))


def _root(folder: str) -> str:
    parts = folder.split("/")
    depths = [depth for depth, part in enumerate(parts, start=1) if part.lower() in ANNOTATION_FOLDERS or split_of_folder(part)]
    return "/".join(parts[: max(depths, default=0)])


def _unlisted(tree: FolderTree, lists: Mapping[str, str]) -> list[str]:
    """Return a note about XML files that no list of a split names."""
    if not lists:
        return []
    lines = [line.strip() for name in lists.values() for line in read_bytes(tree.url_of(name)).decode("utf-8-sig", "replace").splitlines()]
    listed = {text for line in lines for text in (line, stem(line or "."), re.sub(r"\s+(-1|0|1)$", "", line))}
    stems = {PurePosixPath(text).name for text in listed}
    unlisted = [name for name in tree.with_suffix(".xml") if PurePosixPath(name).stem not in stems]
    return [f"found {len(unlisted)} XML files that no list of a split names, such as {unlisted[0]}; left out"] if unlisted else []
