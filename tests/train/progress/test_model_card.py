"""The card of weights: intervals of the metrics that COCO's rules give."""

from types import SimpleNamespace

import numpy as np

from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.evaluate.metrics import measure
from yolor_ray.evaluate.predict import read_annotations
from yolor_ray.evaluate.report import report_files
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.pack.run import pack_scenes
from yolor_ray.report.markdown import UNKNOWN
from yolor_ray.train.progress.model_card import model_card

TASKS = ("detect", "segment", "pose")


def test_boxes_masks_and_keypoints_have_intervals_and_recalls_have_none(tmp_path):
    pack_scenes(str(tmp_path), 12, seed=4, size_px=96)
    dataset = open_dataset(str(tmp_path))
    objects = [record.objects for record in read_annotations(dataset)]
    # Objects of every third image are missed.
    counts = [len(item.labels) if index % 3 else 0 for index, item in enumerate(objects)]
    detections = [
        ImageDetections(
            item.boxes_xyxy[:count], np.full(count, 0.9), item.labels[:count], masks=item.masks[:count], keypoints=item.keypoints[:count]
        )
        for item, count in zip(objects, counts, strict=True)
    ]
    result = measure(dataset, detections, TASKS)
    config = {"name": "run", "network": {"tasks": list(TASKS)}, "image_px": 64}
    card = model_card(SimpleNamespace(train=dataset, val=dataset), report_files(result, [], {}), config).decode()
    rows = {cells[1].strip(): cells[3].strip() for cells in (line.split("|") for line in card.splitlines()) if len(cells) == 5}
    for name in ("AP", "segment/AP", "segment/AP50", "pose/AP", "pose/AP75"):
        low, high = map(float, rows[name].split(" to "))
        assert 0 < low < result.metrics[name] < high <= 1
    assert rows["segment/AR100"] == rows["pose/AR"] == rows["AR100"] == UNKNOWN
