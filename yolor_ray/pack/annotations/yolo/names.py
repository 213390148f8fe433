"""Read class names, and the names of keypoints, from a text file or from the data.yaml of a YOLO dataset."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from yaml import Node

from yolor_ray.data.images.header import read_header
from yolor_ray.errors import DataError, ImageError
from yolor_ray.io import yaml_text
from yolor_ray.io.storage import read_bytes
from yolor_ray.pack.annotations.safe_xml import XmlError, parse_xml
from yolor_ray.pack.annotations.yolo.keypoint_names import KeypointSpec, read_keypoints

EXPECTED = "expected one class name per line, or YAML with names:"
ROW = re.compile(r"[-+.\d]\S*([ \t]+[-+.\d]\S*){4,}")


class SetNames(NamedTuple):
    """Names of a YOLO dataset."""

    classes: tuple[str, ...]
    """Class names by label."""
    keypoints: KeypointSpec | None = None
    """Keypoints of each object; None where the file has no `kpt_shape`."""


def read_names(url: str) -> SetNames:
    """Read class names by label, from a text file or from the `names` of a YAML file, with `kpt_shape` where it is there.

    Names stay as written.

    Raises:
        DataError: the file has no names, a name occurs twice, or the file is of another kind.
    """
    try:
        text = _decode(read_bytes(url))
        if url.lower().endswith((".yaml", ".yml")):
            names = _yaml_names(yaml_text.read_mapping(text))
        else:
            _refuse_other_kinds(text, url)
            names = SetNames(tuple(line.strip() for line in text.rstrip().splitlines()))
    except ValueError as error:
        # Some messages have a closer expectation already.
        expected = "" if "expected" in str(error) else f", {EXPECTED}"
        raise DataError(f"{url}: found {error}{expected}") from error
    classes = names.classes
    if not classes or "" in classes or len(set(classes)) < len(classes):
        raise DataError(f"{url}: found class names {list(classes)}, expected at least one, each once and none empty")
    return names


def _image_format(data: bytes) -> str:
    """Return the format of an encoded image, or an empty text for any other file."""
    try:
        return read_header(data).format
    except ImageError:
        return ""


def _decode(data: bytes) -> str:
    if image_format := _image_format(data):
        raise ValueError(f"an image ({image_format})")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"bytes that are no UTF-8 text ({error.reason})") from error
    if unprintable := re.search(r"[^\s\x20-\x7e\xa0-\U0010ffff]", text):
        raise ValueError(f"the control character {unprintable[0]!r}")
    return text


def _refuse_other_kinds(text: str, url: str) -> None:
    """Refuse JSON, XML, YAML and label files, which would pass as lists of odd names.

    Raises:
        ValueError: the text is of such a kind.
    """
    if url.lower().endswith(".json") or _is_json(text):
        raise ValueError("JSON; COCO annotations, which hold their names, are packed by 'pack coco'")
    if url.lower().endswith(".xml") or _is_xml(text):
        raise ValueError("XML; VOC annotations, which hold their names, are packed by 'pack voc'")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(re.match(r"names\s*:(\s|$)", line) for line in lines):
        raise ValueError("YAML; its name must end in .yaml")
    if len(lines) > 1 and all(re.match(rf"{label}\s*:\s", line) for label, line in enumerate(lines)):
        raise ValueError(f"numbers in lines such as {lines[0]!r}, expected the names alone, or names: in a .yaml file")
    if comment := next((line for line in lines if re.match(r"#\s", line)), None):
        raise ValueError(f"the comment {comment!r}, expected class names alone")
    if lines and all(ROW.fullmatch(line) for line in lines):
        raise ValueError(f"annotations such as {lines[0][:80]!r}")


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _is_xml(text: str) -> bool:
    try:
        return text.lstrip().startswith("<") and bool(parse_xml(text.encode()))
    except XmlError:
        return text.lstrip().startswith("<?xml")


def _yaml_names(nodes: Mapping[str, Node]) -> SetNames:
    if "names" not in nodes:
        raise ValueError(f"no names: among the keys {', '.join(nodes) or 'of the file, which has none'}")
    classes = _class_names(nodes["names"])
    if "nc" in nodes and yaml_text.to_number(nodes["nc"], "nc") != len(classes):
        raise ValueError(f"nc: {yaml_text.to_text(nodes['nc'], 'nc')} and {len(classes)} names, expected as many names as nc says")
    return SetNames(classes, read_keypoints(nodes))


def _class_names(node: Node) -> tuple[str, ...]:
    if node.id == "sequence":
        return tuple(yaml_text.to_text(item, "a class name").strip() for item in yaml_text.to_list(node, "names"))
    if node.id == "scalar":
        found = yaml_text.to_text(node, "names")
        raise ValueError(f"{found!r} as names, expected a list of names, or a mapping of 0, 1, 2, … to names; a path to names is not read")
    mapping = yaml_text.to_mapping(node, "names")
    by_label = {int(key): value for key, value in mapping.items() if key.isdecimal()}
    if sorted(by_label) != list(range(len(mapping))) or len(by_label) != len(mapping):
        raise ValueError(f"names with the keys {', '.join(mapping)}, expected 0 to {len(mapping) - 1}")
    return tuple(yaml_text.to_text(by_label[label], "a class name").strip() for label in range(len(by_label)))
