"""Read the lists of images that YOLO datasets use as splits."""

from dataclasses import replace
from posixpath import normpath

from yolor_ray.errors import DataError
from yolor_ray.pack.annotations.split_file import read_split_file
from yolor_ray.pack.layouts.layout import Source
from yolor_ray.pack.layouts.tree import FolderTree
from yolor_ray.pack.layouts.yolo_sources import yolo_sources


def list_sources(tree: FolderTree, url: str, names: str) -> list[Source]:
    """Return the sources of the images that a text file lists, one path per line; lines without an image become faults.

    A path is relative to the list or to the dataset's folder. Leading folders that are not in the dataset, such as those of another
    machine, are ignored.

    Args:
        tree: folder of the dataset.
        url: URL of the list.
        names: URL of the class names.

    Raises:
        DataError: there are lines, but no line names an image.
    """
    beside = url.rpartition("/")[0][len(tree.url) :].strip("/")
    missing = "missing_image", f"the path of an image below {tree.url}"
    images, faults = read_split_file(url, lambda text: _find(tree, beside, text), missing)
    if not images and faults:
        raise DataError(f"{url}: found no image in {len(faults)} lines, expected {missing[1]} in each line")
    sources = yolo_sources(tree, images, names, ignored=[tree.url_of(name) for name in tree.with_suffix(".txt") if "/" not in name])
    return [replace(source, split_list=url, faults=tuple(faults) if index == 0 else ()) for index, source in enumerate(sources)]


def _find(tree: FolderTree, beside: str, text: str) -> list[str]:
    """Return the path of the image that a line of a list names; an empty list without such an image."""
    path = normpath(text.replace("\\", "/")).lstrip("/")
    parts = path.split("/")
    candidates = [normpath(f"{beside}/{path}").lstrip("/"), *("/".join(parts[start:]) for start in range(len(parts)))]
    return [candidate for candidate in candidates if candidate in tree.image_set][:1]
