"""Lay out a dataset that a file at its top describes: `data.yaml` of Ultralytics and Roboflow, or `obj.data` of Darknet and CVAT.

Paths are resolved as Ultralytics does: below `path`, and without the leading `../` that Roboflow writes. Paths of another machine are
searched beside the dataset file. Every path that is not taken as written is noted.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from yolor_ray.errors import DataError
from yolor_ray.io.storage import exists, read_bytes
from yolor_ray.io.yaml_text import read_mapping
from yolor_ray.pack.annotations.yolo.names import read_names
from yolor_ray.pack.layouts.layout import SPLIT_WORDS, SPLITS, Layout, Source, by_split, split_of_file
from yolor_ray.pack.layouts.tree import FolderTree, list_tree, lowest_common_folder
from yolor_ray.pack.layouts.yolo_lists import list_sources
from yolor_ray.pack.layouts.yolo_sources import label_folder, yolo_sources

YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class DatasetFile:
    """Content of a dataset file."""

    url: str
    roots: tuple[str, ...]
    """URLs of folders that paths may be relative to, the first wanted one first."""
    entries: Mapping[str, tuple[str, ...]]
    """Paths by split, as written."""
    names: str
    """URL of the class names."""


def normal_url(base: str, path: str) -> str:
    """Return the URL of a path that may be absolute or relative to a folder, without `.` and `..`."""
    path = path.replace("\\", "/")
    full = path if re.match(r"/|s3://|[A-Za-z]:/", path) else f"{base}/{path}"
    scheme, separator, rest = full.rpartition("://")
    return scheme + separator + posixpath.normpath(rest)


def find_dataset_file(tree: FolderTree) -> str | None:
    """Return the name of the dataset file at the top of a folder, or None.

    Raises:
        DataError: there are several.
    """
    found = [name for name in tree.in_folder("") if name.lower().endswith((*YAML_SUFFIXES, ".data")) and _load(tree.url_of(name))]
    if len(found) > 1:
        raise DataError(f"{tree.url}: found {len(found)} dataset files ({', '.join(found)}), expected one; give the URL of one as FOLDER")
    return next(iter(found), None)


def lay_out_dataset_file(tree: FolderTree) -> Layout:
    """Return the layout that the dataset file at the top of a folder describes.

    Raises:
        DataError: a folder or list of training images is absent or has no image.
    """
    name = str(find_dataset_file(tree))
    dataset_file = _read_dataset_file(tree.url, tree.url_of(name))
    sources: dict[str, list[Source]] = defaultdict(list)
    notes: list[str] = []
    for split, entries in dataset_file.entries.items():
        for entry in entries:
            found, note = _resolve(entry, dataset_file)
            notes += [f"{split}: {note}"] if note else []
            new = _sources_at(tree, found, dataset_file) if found else []
            if split == "train" and not new:
                expected = f"expected images; {tree.url} has {', '.join(tree.entries)}"
                raise DataError(f"{dataset_file.url}: found train: {entry}, {expected}")
            labelled = [source for source in new if split != "test" or _has_labels(source)]
            if found and (not new or len(labelled) < len(new)):
                notes.append(f"{split}: found no {'label file' if new else 'image'} for {found}; left out")
            sources[split] += labelled
    kind = "data.yaml" if name.lower().endswith(YAML_SUFFIXES) else "Darknet"
    return Layout(f"YOLO with {kind}", dataset_file.url, by_split(sources), tuple(notes))


def _load(url: str) -> dict[str, Any] | None:
    """Return the content of a dataset file, or None for any other file."""
    text = read_bytes(url).decode("utf-8-sig", "replace")
    is_yaml = url.lower().endswith(YAML_SUFFIXES)
    if not is_yaml:
        pairs = (line.partition("=") for line in text.splitlines())
        content: Any = {key.strip(): value.strip() for key, separator, value in pairs if separator}
    else:
        try:
            content = {key: _plain_value(node) for key, node in read_mapping(text).items()}
        except ValueError as error:
            if url.rpartition("/")[2].lower() == "data.yaml":
                raise DataError(f"{url}: found {error}, expected YAML") from error
            return None
    if not isinstance(content, dict) or {"train", "val", "valid"}.isdisjoint(content):
        return None
    return content if "names" in content or (is_yaml and "nc" in content) else None


def _plain_value(node: yaml.Node) -> str | list[str] | None:
    """Return a text, a list of texts, or None for a value that is empty, null or a mapping."""
    if isinstance(node, yaml.SequenceNode):
        return [item.value for item in node.value if isinstance(item, yaml.ScalarNode)]
    return node.value if isinstance(node, yaml.ScalarNode) and node.value.lower() not in ("", "~", "null") else None


def _read_dataset_file(folder: str, url: str) -> DatasetFile:
    content = _load(url) or {}
    is_yaml = url.lower().endswith(YAML_SUFFIXES)
    root = normal_url(folder, str(content["path"])) if is_yaml and content.get("path") else folder
    entries: dict[str, tuple[str, ...]] = {}
    for word, split in SPLIT_WORDS.items():
        value = content.get(word)
        if value and split not in entries:
            entries[split] = tuple(map(str, value)) if isinstance(value, list) else (str(value),)
    ordered = {split: entries[split] for split in SPLITS if split in entries}
    dataset_file = DatasetFile(url, tuple(dict.fromkeys((root, folder))), ordered, url)
    if is_yaml:
        return dataset_file
    names, _ = _resolve(str(content["names"]), dataset_file, needs_split=False)
    if names is None:
        raise DataError(f"{url}: found names = {content['names']}, expected a file of class names")
    count, names_count = str(content.get("classes", "")), len(read_names(names).classes)
    if count.isdecimal() and int(count) != names_count:
        raise DataError(f"{url}: found classes = {count} and {names_count} names in {names}, expected as many names as classes says")
    return DatasetFile(url, dataset_file.roots, dataset_file.entries, names)


def _resolve(text: str, dataset_file: DatasetFile, needs_split: bool = True) -> tuple[str | None, str]:
    """Return the URL that a path means, None if nothing is there, and a note if the URL is not the one that is written."""
    literal = normal_url(dataset_file.roots[0], text)
    for url in (literal, *_other_places(text.replace("\\", "/"), dataset_file, needs_split)):
        if exists(url):
            return url, "" if url == literal else f"found nothing at {literal}, took {url}"
    return None, f"found nothing at {literal}; left out"


def _other_places(text: str, dataset_file: DatasetFile, needs_split: bool) -> Iterator[str]:
    stripped = re.sub(r"^(\.\.?/)+", "", text)
    for root in dataset_file.roots:
        yield normal_url(root, text)
        yield normal_url(root, stripped)
    parts = stripped.strip("/").split("/")
    for start in range(1, len(parts)):
        path = "/".join(parts[start:])
        # `/elsewhere/valid/images` must not become the folder `images` of the training set.
        if not needs_split or split_of_file(path) or split_of_file(f"{path}/_"):
            yield normal_url(dataset_file.roots[-1], path)


def _sources_at(tree: FolderTree, url: str, dataset_file: DatasetFile) -> list[Source]:
    """Return the sources of a folder of images, or of a text file that lists images."""
    if url.lower().endswith(".txt"):
        return list_sources(tree, url, dataset_file.names)
    if url != tree.url and not url.startswith(f"{tree.url}/"):
        labels = label_folder(url)
        if labels and not exists(labels):
            labels = None
        # Images and labels lie below the listed folder.
        common = lowest_common_folder([url, labels or url])
        if not common.strip("/"):
            raise DataError(f"{dataset_file.url}: found {url} as a folder of images, expected one below the root of the file system")
        tree = list_tree(common)
    folder = url[len(tree.url) :].strip("/")
    images = [image for image in tree.images if not folder or image.startswith(f"{folder}/")]
    texts = [tree.url_of(name) for name in tree.in_folder("") if name.lower().endswith(".txt")]
    return yolo_sources(tree, images, dataset_file.names, ignored=texts)


def _has_labels(source: Source) -> bool:
    tree = list_tree(source.annotations)
    return bool(tree.with_suffix(".txt"))
