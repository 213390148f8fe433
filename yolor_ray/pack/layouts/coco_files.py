"""Lay out COCO JSON files: `train/_annotations.coco.json` of Roboflow, `annotations/instances_*.json`, `train.json` and the like.

The content decides: a file counts if it has images, annotations and categories, and its images folder is the one that holds the images
that the file names.
"""

import functools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from yolor_ray.errors import DataError
from yolor_ray.io.storage import read_bytes
from yolor_ray.pack.annotations.coco import read_coco
from yolor_ray.pack.annotations.image_folder import ImageFolder, stem
from yolor_ray.pack.annotations.schema import Annotations
from yolor_ray.pack.layouts.layout import Layout, Source, by_split, split_of_file
from yolor_ray.pack.layouts.tree import FolderTree, folder_of, folder_that_holds

MAX_JSON_FILES = 20
"""JSON files of one folder above which the folder is one of annotations per image, which are not COCO."""
PREFIXES = ("instances_", "person_keypoints_", "")
"""Beginnings of file names, the most wanted first: COCO has several files per split."""


@dataclass(frozen=True)
class CocoFile:
    """A COCO JSON file."""

    path: str
    """Path below the folder."""
    split: str | None
    """Split that the path says."""
    images: tuple[str, ...]
    """Names of its images with forward slashes."""
    annotations: int
    """Number of annotations."""


def find_coco(tree: FolderTree) -> str | None:
    """Return the path of the first COCO JSON file, or None."""
    return next((file.path for file in _coco_files(tree)), None)


def lay_out_coco(tree: FolderTree) -> Layout:
    """Return the layout of a folder with COCO JSON files.

    Raises:
        DataError: several files are of one split, or no file's images are in the folder.
    """
    files = list(_coco_files(tree))
    chosen, notes = _choose(tree, files)
    sources: dict[str, list[Source]] = defaultdict(list)
    for split, file in chosen.items():
        if split == "test" and not file.annotations and len(chosen) > 1:
            notes.append(f"{tree.url_of(file.path)}: found no annotation, so the split test is left out")
            continue
        images = folder_that_holds(tree, (stem(name) for name in file.images), split if file.split else None)
        if images is None:
            example = f", such as {file.images[0]!r}" if file.images else ""
            raise DataError(f"{tree.url_of(file.path)}: found none of its {len(file.images)} images in {tree.url}{example}, expected them")
        url = tree.url_of(file.path)
        sources[split].append(Source(tree.url_of(images), url, functools.partial(_read, file=url)))
    is_roboflow = any(file.path.endswith("_annotations.coco.json") for file in files)
    return Layout("Roboflow COCO" if is_roboflow else "COCO", tree.url_of(files[0].path), by_split(sources), tuple(notes))


def _read(folder: ImageFolder, file: str) -> Annotations:
    return read_coco(folder, file)


def _coco_files(tree: FolderTree) -> Iterator[CocoFile]:
    paths = tree.with_suffix(".json")
    per_folder = Counter(map(folder_of, paths))
    files = (_open(tree, path) for path in paths if per_folder[folder_of(path)] <= MAX_JSON_FILES)
    return (file for file in files if file)


def _open(tree: FolderTree, path: str) -> CocoFile | None:
    """Return a COCO JSON file, or None for any other JSON."""
    try:
        content = json.loads(read_bytes(tree.url_of(path)).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if path.rpartition("/")[2].startswith(("_annotations.coco", "instances_")):
            raise DataError(f"{tree.url_of(path)}: found no JSON ({error or 'nested too deep'}), expected COCO annotations") from error
        return None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("images", "annotations", "categories")):
        return None
    if any(isinstance(entry, dict) and "segments_info" in entry for entry in content["annotations"][:1]):
        # Panoptic annotations have the same keys, but no boxes of objects.
        return None
    names = (entry.get("file_name") for entry in content["images"] if isinstance(entry, dict))
    images = tuple(name.replace("\\", "/").removeprefix("./") for name in names if isinstance(name, str))
    return CocoFile(path, split_of_file(path), images, len(content["annotations"]))


def _choose(tree: FolderTree, files: Sequence[CocoFile]) -> tuple[dict[str, CocoFile], list[str]]:
    """Return one file per split, and notes about the files that are left out.

    Raises:
        DataError: several files are of one split.
    """
    groups: dict[str | None, list[CocoFile]] = defaultdict(list)
    for file in files:
        groups[file.split].append(file)
    unsplit = groups.pop(None, [])
    notes = []
    if not groups:
        groups["train"] = unsplit
    elif unsplit:
        listed = ", ".join(file.path for file in unsplit)
        notes.append(f"found {listed} beside files of splits, expected names with train, val or test; left out")
    chosen = {}
    for split, group in groups.items():
        preferred = _preferred(group)
        if len(preferred) > 1:
            listed = ", ".join(file.path for file in preferred)
            expected = "expected one; move the others away, or name them by train, val and test"
            raise DataError(f"{tree.url}: found {len(preferred)} COCO files for {split} ({listed}), {expected}")
        chosen[str(split)] = preferred[0]
        others = ", ".join(file.path for file in group if file is not preferred[0])
        notes += [f"took {preferred[0].path} for {split}, and left out {others}"] if others else []
    return chosen, notes


def _preferred(group: list[CocoFile]) -> list[CocoFile]:
    """Return the files with the most wanted beginning of their names."""
    by_prefix = ([file for file in group if file.path.rpartition("/")[2].startswith(prefix)] for prefix in PREFIXES)
    return next(files for files in by_prefix if files)
