"""Read the objects of a VOC file: corners of a box, a rotated box, or a polygon.

Coordinates of <bndbox> are 1-based and inclusive, as the VOC devkit defines them: x1 = xmin - 1, x2 = xmax. Points of polygons and
rotated boxes are positions, and stay as they are.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.masks import segmentation_bounds
from yolor_ray.pack.annotations.safe_xml import Node
from yolor_ray.pack.annotations.schema import AnnotatedImage, AnnotatedObject
from yolor_ray.pack.annotations.values import parse_number

EDGES = ("xmin", "ymin", "xmax", "ymax")
ROTATED = ("cx", "cy", "w", "h", "angle")
"""Centre, sides and angle in radians of a rotated box, as roLabelImg writes them."""
POLYGONS = ("polygon", "points", "segmentation", "segm")
"""Elements of an object that hold the points of its outline."""
SHAPES = ("bndbox", "robndbox", *POLYGONS)
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE | re.ASCII)

Box = tuple[float, float, float, float]
Error = tuple[str, str]
"""Code and message of a fault."""


def text_of(node: Node, tag: str) -> str:
    """Return the text of the first child with this tag, or an empty text."""
    child = node.find(tag)
    return child.text if child else ""


def object_nodes(root: Node) -> list[Node]:
    """Return the <object> elements at any depth, also inside of one another, but not those that LabelMe marks as deleted."""
    found = [item for node in root.find_nested("object") for item in (node, *object_nodes(node))]
    return [node for node in found if text_of(node, "deleted") != "1"]


def stray_shapes(node: Node) -> Iterator[Node]:
    """Yield the boxes and polygons outside of any <object>, as of objects under another tag; boxes of parts are none."""
    for child in node.children:
        if child.tag in ("bndbox", "robndbox", "polygon"):
            yield child
        elif child.tag not in ("object", "part"):
            yield from stray_shapes(child)


def read_objects(image: AnnotatedImage, root: Node, classes: Sequence[str]) -> Iterator[AnnotatedObject | Fault]:
    """Yield the objects of a file and their faults; a shape that belongs to no object is an object without class."""
    for node in object_nodes(root):
        yield from _read_object(image, node, classes)
    for shape in stray_shapes(root):
        message = f"found <{shape.tag}> outside of any <object>, expected it in an <object> with a <name>; object left out"
        yield image.fault("missing_class", message, AnnotatedObject((0, 0, 0, 0), 0, shape.line))


def _read_object(image: AnnotatedImage, node: Node, classes: Sequence[str]) -> Iterator[AnnotatedObject | Fault]:
    """Yield the faults of an <object>, and the object unless it cannot be used."""
    located = AnnotatedObject(_corners(node.find("bndbox")), 0, node.line)
    name = text_of(node, "name")
    if not name:
        yield image.fault("missing_class", "found an object without <name>, expected one; object left out", located)
        return
    if name not in classes:
        yield image.fault("unknown_class", f"found class {name!r}, expected one of {', '.join(classes)}; object left out", located)
        return
    polygons = _polygons(node)
    box, error = _box(node, polygons)
    if error:
        code, message = error
        consequence = "left out" if box is None else "kept"
        yield image.fault(code, f"found a {name!r} with {message}; object {consequence}", located)
    if box is not None:
        yield replace(located, box=box, label=classes.index(name), mask=polygons or None)


def _corners(bndbox: Node | None) -> Box:
    """Return xmin, ymin, xmax, ymax as annotated; NaN for what is absent or no number."""
    xmin, ymin, xmax, ymax = (parse_number(text_of(bndbox, tag)) if bndbox else math.nan for tag in EDGES)
    return xmin, ymin, xmax, ymax


def _box(node: Node, polygons: list[list[float]]) -> tuple[Box | None, Error | None]:
    """Return the box of an <object>, by its edges or else by its other shapes, and the error of the edges or shapes."""
    bndbox, rotated = node.find("bndbox"), node.find("robndbox")
    if (count := sum(child.tag == "bndbox" for child in node.children)) > 1:
        return None, ("missing_box", f"{count} <bndbox>, expected one")
    box: Box | None = None
    error: Error | None = None
    if bndbox and any(map(bndbox.find, EDGES)):
        box, error = _box_of_edges(bndbox)
    elif rotated and any(map(rotated.find, ROTATED)):
        box, error = _box_of_rotated(rotated)
    if box:
        return box, error
    pieces = polygons or [points for shape in (bndbox, rotated) if shape and (points := _polygon(shape))][:1]
    if pieces:
        return segmentation_bounds(pieces, None), error and ("box_from_mask", f"{error[1]}; the extent of its polygon serves as box")
    shapes = ", ".join(f"<{child.tag}>" for child in node.children if child.tag in SHAPES) or "no box"
    return None, error or ("missing_box", f"{shapes}, expected <bndbox> with {', '.join(EDGES)}, or a polygon with an area")


def _box_of_edges(bndbox: Node) -> tuple[Box | None, Error | None]:
    edges = _corners(bndbox)
    if not all(map(math.isfinite, edges)):
        texts = ", ".join(f"{tag} {text_of(bndbox, tag)!r}" for tag in EDGES)
        return None, ("not_a_number", f"{texts}, expected four numbers")
    xmin, ymin, xmax, ymax = edges
    found = f"xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g}, expected xmin < xmax and ymin < ymax"
    if xmin == xmax or ymin == ymax:
        return None, ("zero_area_box", found)
    (left, right), (top, bottom) = sorted((xmin, xmax)), sorted((ymin, ymax))
    box = _low_edge(left), _low_edge(top), right, bottom
    return box, None if (left, top) == (xmin, ymin) else ("swapped_corners", f"{found}; edges interchanged")


def _low_edge(pixel: float) -> float:
    """Return the edge before a first pixel, numbered from 1. A 0 comes from a tool that numbers from 0, and is the edge already."""
    return pixel - 1 if pixel >= 1 else min(pixel, 0.0)


def _box_of_rotated(rotated: Node) -> tuple[Box | None, Error | None]:
    """Return the box around a rotated box."""
    cx, cy, width, height, angle = (parse_number(text_of(rotated, tag)) for tag in ROTATED)
    if not all(map(math.isfinite, (cx, cy, width, height, angle))):
        texts = ", ".join(f"{tag} {text_of(rotated, tag)!r}" for tag in ROTATED)
        return None, ("not_a_number", f"{texts}, expected five numbers")
    if width <= 0 or height <= 0:
        code = "missing_box" if min(width, height) < 0 else "zero_area_box"
        return None, (code, f"w {width:g}, h {height:g}, expected both above 0")
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    half_width, half_height = (width * cosine + height * sine) / 2, (width * sine + height * cosine) / 2
    return (cx - half_width, cy - half_height, cx + half_width, cy + half_height), None


def _polygons(node: Node) -> list[list[float]]:
    """Return the outlines of an <object>, one per piece, or none if a piece cannot be read."""
    shapes = [shape for child in node.children if child.tag in POLYGONS for shape in child.find_nested("polygon") or [child]]
    pieces = [_polygon(shape) for shape in shapes]
    readable = [piece for piece in pieces if piece]
    return readable if len(readable) == len(pieces) else []


def _polygon(node: Node) -> list[float] | None:
    """Return the points of an element as x, y, x, y, …, or None if the element has no three readable points.

    Tools write <x1>, <y1>, <x2>, …, or <x> and <y> inside of each <pt> or <point>, or the numbers as text.
    """
    leaves = [leaf for leaf in node.leaves() if leaf.tag[0] in "xy"]
    xs, ys = (sorted((leaf for leaf in leaves if leaf.tag[0] == axis), key=_number_in_tag) for axis in "xy")
    if leaves:
        texts = [leaf.text for point in zip(xs, ys, strict=False) for leaf in point] if len(xs) == len(ys) else []
    else:
        texts = [text for leaf in node.leaves() for text in NUMBER.findall(leaf.text)]
    numbers = list(map(parse_number, texts))
    is_polygon = len(numbers) >= 6 and len(numbers) % 2 == 0 and segmentation_bounds([numbers], None)
    return numbers if is_polygon else None


def _number_in_tag(leaf: Node) -> int:
    """Return the number of a point, as in <x12>, or 0; sorting by it keeps the order of equal numbers."""
    digits = leaf.tag[1:]
    return int(digits) if digits.isdecimal() else 0
