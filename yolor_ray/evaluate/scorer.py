"""Match detections with annotated objects by hotcoco, whose numbers equal those of pycocotools, the referee in tests, to the last digit.

They differ in one case: a box or keypoint that is not finite matches no object here, and any object in pycocotools.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from hotcoco import COCO, COCOeval

from yolor_ray.errors import DataError
from yolor_ray.pack.annotations.values import claimed_size

IouType = Literal["bbox", "segm", "keypoints"]
RESULT_FIELDS: dict[IouType, str] = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
"""Field of annotations and detections that is compared."""
ANNOTATION_FIELDS: dict[IouType, tuple[str, ...]] = {
    "bbox": ("bbox",),
    "segm": ("segmentation",),
    # A detection of an object without labelled keypoints is compared with the object's box.
    "keypoints": ("keypoints", "num_keypoints", "bbox"),
}
"""Fields of annotations that each comparison reads, beside image, category, area and crowd flag."""
OTHER_SIGMA = 0.05
"""Sigma of every keypoint of objects with other than COCO's 17 keypoints; similarity falls with distance / (2 · sigma · object size)."""


def match_detections(truth: dict[str, Any], rows: Sequence[dict[str, Any]], iou_type: IouType) -> COCOeval:
    """Return the scorer with detections and objects of each image matched, before accumulation; the arguments are not changed.

    Args:
        truth: COCO's annotations; ids of images and categories are whole numbers from 0.
        rows: COCO's results.
        iou_type: kind of comparison.

    Raises:
        DataError: a value has another type than COCO's.
    """
    fields = {"image_id", "category_id", "score", RESULT_FIELDS[iou_type]}
    # With a bbox beside mask or keypoints, detections would be sorted into APs, APm, APl by the area of the box.
    copies = [row if len(row) == len(fields) else {key: row[key] for key in fields} for row in rows]
    try:
        annotated = COCO(_make_dataset(truth, iou_type))
        scorer = COCOeval(annotated, annotated.load_res(copies), iou_type)
    except ValueError as error:
        raise DataError(f"scoring {iou_type}: {error}") from error
    if iou_type == "keypoints":
        keypoints = next((len(item["keypoints"]) // 3 for item in [*truth["annotations"], *rows]), 0)
        if keypoints not in (0, len(scorer.params.kpt_oks_sigmas)):
            scorer.params.kpt_oks_sigmas = [OTHER_SIGMA] * keypoints
    with _quiet():
        scorer.evaluate()
    return scorer


def accumulate(scorer: COCOeval) -> dict[str, Any]:
    """Compute the numbers of COCO's table, `scorer.stats`, and return the curves they come from, such as `precision`."""
    with _quiet():
        scorer.accumulate()
        scorer.summarize()
    assert scorer.eval is not None
    return scorer.eval


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop the printed table, and the warning that other sigmas than COCO's give other numbers than COCO's."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", UserWarning)
        yield


def _make_dataset(truth: dict[str, Any], iou_type: IouType) -> dict[str, Any]:
    """Return the images, categories and annotations with only those fields that the comparison reads."""
    images = {image["id"]: {"id": image["id"]} for image in truth["images"]}
    if iou_type == "segm":
        # Polygons become pixels of an image.
        sizes = {image["id"]: claimed_size(image.get("width"), image.get("height")) for image in truth["images"]}
        images = {key: {"id": key} | (dict(zip(("width", "height"), size, strict=True)) if size else {}) for key, size in sizes.items()}
    categories = {category["id"]: {"id": category["id"], "name": str(category["id"])} for category in truth["categories"]}
    fields = ("image_id", "category_id", "area", "iscrowd", *ANNOTATION_FIELDS[iou_type])
    # An annotation with id 0 would count as "no match".
    annotations = [
        {"iscrowd": 0} | {key: annotation[key] for key in fields if key in annotation} | {"id": index}
        for index, annotation in enumerate(truth["annotations"], start=1)
    ]
    return {"images": list(images.values()), "categories": list(categories.values()), "annotations": annotations}
