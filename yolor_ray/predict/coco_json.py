"""Write predictions as COCO JSON, which labelling tools import as annotations; each annotation also has its confidence as `score`."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from yolor_ray.inference.polygons import mask_polygons
from yolor_ray.io.storage import join, read_bytes
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.predict.part_file import from_parquet

COCO_FILE = "coco.json"
VISIBLE = 0.5
"""Confidence from which a keypoint counts as visible."""


def coco_json(output: str, names: Sequence[str], info: WeightsInfo) -> bytes:
    """Return the predictions of the Parquet files of an output as one JSON file; ids count from 1.

    A mask becomes its polygons, which every labelling tool reads; the Parquet files keep its exact pixels.
    """
    images: list[bytes] = []
    annotations: list[bytes] = []
    for row in (row for name in names for row in from_parquet(read_bytes(join(output, name)))):
        image = {"id": len(images) + 1, "file_name": row["name"], "width": row["width"], "height": row["height"]}
        if "image_labels" in row:
            image["labels"] = [label for label, confidence in row["image_labels"] if confidence >= VISIBLE]
        images.append(_encoded(image))
        for annotation in _annotations(row, info):
            annotations.append(_encoded({"id": len(annotations) + 1, "image_id": len(images), **annotation}))
    categories = [_encoded(category) for category in _categories(info)]
    lists = {"images": images, "annotations": annotations, "categories": categories}
    return b"{" + b",\n".join(f'"{name}": [\n'.encode() + b",\n".join(items) + b"]" for name, items in lists.items()) + b"}\n"


def _encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def _categories(info: WeightsInfo) -> Iterator[dict[str, Any]]:
    for label, name in enumerate(info.classes):
        own = info.class_keypoints.get(name) if "pose" in info.tasks else None
        yield {"id": label + 1, "name": name, "supercategory": "", **({"keypoints": list(own), "skeleton": []} if own else {})}


def _annotations(row: dict[str, Any], info: WeightsInfo) -> Iterator[dict[str, Any]]:
    for index, (name, confidence, box) in enumerate(zip(row["classes"], row["confidences"], row["boxes_xyxy"], strict=True)):
        x1, y1, x2, y2 = (round(edge, 2) for edge in box)
        width, height = round(x2 - x1, 2), round(y2 - y1, 2)
        annotation: dict[str, Any] = {
            "category_id": info.classes.index(name) + 1,
            "bbox": [x1, y1, width, height],
            "area": round(width * height, 2),
            "iscrowd": 0,
            "score": round(confidence, 5),
        }
        if "masks" in row:
            area, polygons = mask_polygons(row["masks"][index].encode("ascii"), row["height"])
            # A mask without a pixel leaves the annotation a box.
            annotation |= {"segmentation": polygons, "area": area} if polygons else {}
        if "keypoints" in row and row["keypoints"][index]:
            annotation |= _keypoints(row["keypoints"][index])
        yield annotation


def _keypoints(numbers: list[float]) -> dict[str, Any]:
    """Return the keypoints in COCO's form: x, y and 2 where visible, zeros elsewhere."""
    points = [(round(x, 2), round(y, 2), 2) if c >= VISIBLE else (0, 0, 0) for x, y, c in zip(*[iter(numbers)] * 3, strict=True)]
    return {"keypoints": [number for point in points for number in point], "num_keypoints": sum(point[2] > 0 for point in points)}
