"""Make the page and the JSON of a comparison of two weights."""

import json
from typing import Any

from yolor_ray import __version__
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.evaluate.against.difference import WeightsDifference, difference_json
from yolor_ray.evaluate.page.page import side_by_side
from yolor_ray.evaluate.page.pictures import embed_images
from yolor_ray.report.colours import colour
from yolor_ray.report.html import render_page

PAGE_FILE, JSON_FILE = "against.html", "against.json"
CHANGED = 12
"""Most images on the page."""


def difference_files(difference: WeightsDifference, dataset: Dataset) -> dict[str, bytes]:
    """Return the page and the JSON by name."""
    return {PAGE_FILE: _page(difference, dataset), JSON_FILE: json.dumps(_json(difference), indent=1, ensure_ascii=False).encode()}


def _json(difference: WeightsDifference) -> dict[str, Any]:
    images = [{"name": image.name, "value": image.score, "other": image.other} for image in difference.images]
    weights, against = difference.names
    return {
        "weights": weights,
        "against": against,
        "metrics": difference.metrics_json(),
        "classes": {metric: difference_json(classes) for metric, classes in difference.classes.items()},
        "changed_images": images,
    }


def _page(difference: WeightsDifference, dataset: Dataset) -> bytes:
    rows = []
    for image in difference.images[:CHANGED]:
        (truth, detected), (_, other) = (side_by_side(*boxes[image.image_id], dataset.classes) for boxes in difference.boxes)
        rows.append((image, truth, other, detected))
    content = {
        "difference": difference,
        "dataset": dataset,
        "rows": rows,
        "images": embed_images(dataset, [picture for _, *pictures in rows for picture in pictures]),
        "colour": colour,
        "version": __version__,
    }
    return render_page("evaluate/against/against.html", content)
