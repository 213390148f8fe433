"""Lay out YOLO label files without a dataset file: `images` and `labels`, or label files beside images, with a file of class names."""

from collections import Counter, defaultdict

from yolor_ray.errors import DataError
from yolor_ray.io.storage import read_bytes
from yolor_ray.pack.annotations.yolo.names import read_names
from yolor_ray.pack.layouts.layout import Layout, by_split, split_of_folders
from yolor_ray.pack.layouts.tree import FolderTree, folder_of, split_lists
from yolor_ray.pack.layouts.yolo_lists import list_sources
from yolor_ray.pack.layouts.yolo_sources import NAMES_FILES, label_file, yolo_sources


def find_yolo_folders(tree: FolderTree) -> str | None:
    """Return the path of the first label file of an image, or None."""
    return next((file for image in tree.images if (file := label_file(tree, image))), None)


def lay_out_yolo_folders(tree: FolderTree) -> Layout:
    """Return the layout of a folder with YOLO label files: splits by lists such as `train.txt` at the top, or else by folders.

    Images in no folder of a split are left out where there are such folders.

    Raises:
        DataError: there is no file of class names, or several files differ.
    """
    names = _names_file(tree)
    lists = split_lists(tree, "")
    if lists:
        splits = {split: list_sources(tree, tree.url_of(path), names) for split, path in lists.items()}
        return Layout("YOLO folders", names, by_split(splits))
    images: dict[str | None, list[str]] = defaultdict(list)
    for image in tree.images:
        images[split_of_folders(folder_of(image))].append(image)
    unsplit = images.pop(None, [])
    notes = []
    if not images:
        images["train"] = unsplit
    elif unsplit:
        notes.append(f"found {len(unsplit)} images in no folder of a split, such as {unsplit[0]}; left out")
    splits = {str(split): yolo_sources(tree, group, names) for split, group in images.items()}
    return Layout("YOLO folders", names, by_split(splits), tuple(notes))


def _names_file(tree: FolderTree) -> str:
    files = [name for name in tree.files if _is_names_file(name.rpartition("/")[2].lower())]
    files += [name for name in tree.with_suffix(".yaml", ".yml") if b"names:" in read_bytes(tree.url_of(name))]
    if not files:
        expected = f"expected {', '.join(NAMES_FILES)} or data.yaml with names: and train:"
        raise DataError(f"{tree.url}: found YOLO label files without class names, {expected}")
    contents = Counter(read_names(tree.url_of(name)) for name in files)
    if len(contents) > 1:
        raise DataError(f"{tree.url}: found different class names in {', '.join(files)}, expected the same names in the same order")
    return tree.url_of(files[0])


def _is_names_file(name: str) -> bool:
    return name in NAMES_FILES or name.endswith(".names")
