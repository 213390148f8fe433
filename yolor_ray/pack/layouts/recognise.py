"""Recognise the layout of a folder: the only kind of annotations in it, or the kind that the user names."""

import logging
import re
from collections.abc import Callable
from typing import NamedTuple

from yolor_ray.errors import DataError
from yolor_ray.pack.layouts.coco_files import find_coco, lay_out_coco
from yolor_ray.pack.layouts.dataset_files import YAML_SUFFIXES, find_dataset_file, lay_out_dataset_file, normal_url
from yolor_ray.pack.layouts.layout import Layout, split_of_folder
from yolor_ray.pack.layouts.tree import FolderTree, list_tree
from yolor_ray.pack.layouts.voc_folders import find_voc, lay_out_voc
from yolor_ray.pack.layouts.yolo_folders import find_yolo_folders, lay_out_yolo_folders

MAX_SHOWN_ENTRIES = 20
EXPECTED = (
    "data.yaml with train: and names:, train/_annotations.coco.json, annotations/instances_train.json, "
    "Annotations/*.xml with JPEGImages, or images and labels with classes.txt"
)
CONTENT_FOLDERS = ("annotations", "images", "labels", "jpegimages", "imagesets", "data", "obj_train_data")
"""Folders that belong to a layout, in lower case; a folder of another name may hold the whole dataset."""
HINTS = {
    r"(^|/)annotations\.xml$": "CVAT's own XML; export as COCO 1.0 or Ultralytics YOLO",
    r"(^|/)meta\.json$": "a Supervisely project; export as COCO or YOLO",
    r"(^|/)(_annotations|_classes|labels|annotations)\.csv$": "annotations in CSV; export as COCO or YOLO",
    r"_annotations\.createml\.json$": "CreateML annotations; export as COCO or YOLO",
    r"\.tfrecords?$": "TFRecord files; export as COCO or YOLO",
    r"\.zip$": "a ZIP file; unpack it first",
    r"(^|/)part-\d{5}-[0-9a-f]+\.parquet$": "a dataset that is packed already; train with it",
    r"\.json$": "JSON that is no COCO file; export as COCO or YOLO",
}
"""Names of files of formats that have no reader, and the advice for each."""

logger = logging.getLogger(__name__)


class Family(NamedTuple):
    """A kind of annotations."""

    find: Callable[[FolderTree], str | None]
    """Returns the path of the first file of the kind, or None."""
    lay_out: Callable[[FolderTree], Layout]
    """Returns the layout of a folder that has such a file."""


def _find_yolo(tree: FolderTree) -> str | None:
    return find_dataset_file(tree) or find_yolo_folders(tree)


def _lay_out_yolo(tree: FolderTree) -> Layout:
    return lay_out_dataset_file(tree) if find_dataset_file(tree) else lay_out_yolo_folders(tree)


FAMILIES = {
    "yolo": Family(_find_yolo, _lay_out_yolo),
    "coco": Family(find_coco, lay_out_coco),
    "voc": Family(find_voc, lay_out_voc),
}


def recognise(url: str, choice: str, output: str) -> Layout:
    """Return the layout of a folder.

    Args:
        url: URL of the folder, or of a data.yaml.
        choice: kind of annotations to take, a key of `FAMILIES`; auto takes the only kind.
        output: URL of the packed datasets, which are no part of a layout where they lie in the folder.

    Raises:
        DataError: no layout, or several, or a layout that contradicts itself.
    """
    tree = _enter(_without(_tree_at(url), normal_url("", output)))
    if choice == "auto" and url.lower().endswith(YAML_SUFFIXES):
        choice = "yolo"
    families = FAMILIES if choice == "auto" else {choice: FAMILIES[choice]}
    found = {name: path for name, family in families.items() if (path := family.find(tree))}
    if not found:
        raise DataError(_unknown(tree, choice))
    if len(found) > 1:
        listed = " and ".join(f"{name} ({path})" for name, path in found.items())
        choices = " or ".join(f"--layout {name}" for name in found)
        raise DataError(f"{tree.url}: found annotations of {len(found)} kinds: {listed}, expected one; choose by {choices}")
    layout = FAMILIES[next(iter(found))].lay_out(tree)
    if not layout.splits:
        raise DataError(f"{layout.evidence}: found no images of a split, expected some{''.join(f'; {note}' for note in layout.notes)}")
    _log(layout)
    return layout


def _tree_at(url: str) -> FolderTree:
    """List the folder; the dataset file that the URL names is the only one of its folder."""
    url = normal_url("", url)
    if url.lower().endswith(".zip"):
        raise DataError(f"{url}: found a ZIP file, expected a folder; unpack it first")
    if not url.lower().endswith(YAML_SUFFIXES):
        return list_tree(url)
    folder, _, chosen = url.rpartition("/")
    tree = list_tree(folder)
    if chosen not in tree.file_set:
        raise DataError(f"{url}: found no file, expected a folder, or a data.yaml")
    return FolderTree(
        folder, tuple(name for name in tree.files if name == chosen or "/" in name or not name.lower().endswith(YAML_SUFFIXES))
    )


def _without(tree: FolderTree, url: str) -> FolderTree:
    """Return the tree without the files below a folder."""
    return FolderTree(tree.url, tuple(name for name in tree.files if not tree.url_of(name).startswith(f"{url}/")))


def _enter(tree: FolderTree) -> FolderTree:
    """Return the tree of the only folder inside, as archives have it, where the folder itself has no more than texts."""
    folders = [entry.rstrip("/") for entry in tree.entries if entry.endswith("/")]
    files = [entry for entry in tree.entries if not entry.endswith("/") and not re.match(r"(?i)readme|licen[cs]e", entry)]
    if len(folders) != 1 or files or split_of_folder(folders[0]) or folders[0].lower() in CONTENT_FOLDERS:
        return tree
    return _enter(tree.below(folders[0]))


def _unknown(tree: FolderTree, choice: str) -> str:
    if not tree.files:
        return f"{tree.url}: found no file, expected a folder with annotated images"
    entries = ", ".join(tree.entries[:MAX_SHOWN_ENTRIES]) + (", …" if len(tree.entries) > MAX_SHOWN_ENTRIES else "")
    hints = (f"; {name} looks like {advice}" for pattern, advice in HINTS.items() for name in tree.files if re.search(pattern, name))
    kind = "" if choice == "auto" else f" {choice}"
    found = f"found {entries} with {len(tree.images)} images and no{kind} annotations"
    return f"{tree.url}: {found}, expected one of: {EXPECTED}{next(hints, '')}"


def _log(layout: Layout) -> None:
    logger.info("event=layout_recognised layout='%s' by=%s splits=%s", layout.name, layout.evidence, ",".join(layout.splits))
    for split, sources in layout.splits.items():
        for source in sources:
            taken = source.split_list or ("all" if source.selected is None else len(source.selected))
            logger.info("event=source split=%s images=%s taken=%s annotations=%s", split, source.images, taken, source.annotations)
    for note in layout.notes:
        logger.warning("event=layout_note message='%s'", note)
