"""Referee of the scorer's numbers: pycocotools."""

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def referee(truth: dict[str, Any], rows: list[dict[str, Any]], iou_type: str, sigmas: Sequence[float] | None = None) -> COCOeval:
    """Return pycocotools' scorer after all its steps, without any help of ours; `sigmas` replaces COCO's."""
    with contextlib.redirect_stdout(io.StringIO()):
        annotated, detected = COCO(), COCO()
        annotated.dataset = copy.deepcopy(truth)
        detected.dataset = copy.deepcopy(truth) | {"annotations": []}
        annotated.createIndex()
        detected.createIndex()
        scorer = COCOeval(annotated, annotated.loadRes(copy.deepcopy(rows)) if rows else detected, iou_type)
        if sigmas is not None:
            scorer.params.kpt_oks_sigmas = np.array(sigmas)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return scorer
