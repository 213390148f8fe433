"""The judgement on a new version: which differences reject it, and which are chance."""

import numpy as np
import pytest
import torch

from yolor_ray.inference.detect import Detections
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.serve.rollout import comparison
from yolor_ray.serve.rollout.comparison import Comparison, Found, found_in

CLASSES = ("bird", "cat", "dog")
INFO = WeightsInfo("name", CLASSES, 64)


def found(rng, boxes=3.0, confidence=0.7, shares=(0.4, 0.3, 0.3), seconds=0.02, classes=CLASSES):
    """Return boxes whose number varies from image to image."""
    count = rng.poisson(boxes)
    names = tuple(rng.choice(classes, count, p=shares))
    return Found(names, np.clip(rng.normal(confidence, 0.15, count), 0.05, 1), seconds * rng.uniform(0.9, 1.1))


def compared(images, before=None, new=None, seed=0, **options):
    rng = np.random.default_rng(seed)
    result = Comparison(INFO, INFO, **options)
    for _ in range(images):
        result.add(found(rng, **(before or {})), found(rng, **(new or {})))
    return result


@pytest.mark.parametrize(
    ("new", "fault"),
    [
        ({"boxes": 0}, "detections per image: found 0.00, expected 1."),
        ({"boxes": 9}, "detections per image: found 9."),
        ({"confidence": 0.4}, "mean confidence: found 0.4"),
        ({"shares": (0, 0.3, 0.7)}, "class mix: found 0.4"),
        ({"seconds": 0.05}, "latency: found a median of 5"),
    ],
)
def test_each_difference_is_a_fault_with_found_and_expected(new, fault):
    reason = compared(64, new=new).fault()
    assert reason.startswith(fault) and "expected" in reason and reason.endswith("(64 images)")


@pytest.mark.parametrize(
    "new", [{}, {"boxes": 4.5}, {"boxes": 2.0}, {"confidence": 0.6}, {"shares": (0.3, 0.3, 0.4)}, {"seconds": 0.03}, {"seconds": 0.001}]
)
def test_a_version_like_the_one_before_has_no_fault(new):
    for seed in range(20):
        assert compared(128, new=new, seed=seed).fault() is None


def test_equal_versions_are_never_rejected_by_chance_at_any_number_of_images():
    rng = np.random.default_rng(1)
    for boxes in (0.05, 0.5, 5):
        for _ in range(20):
            result = Comparison(INFO, INFO)
            for _ in range(200):
                result.add(found(rng, boxes), found(rng, boxes))
                assert result.fault() is None


def test_a_version_that_finds_nothing_is_seen_at_the_first_judgement():
    assert compared(comparison.MIN_IMAGES - 1, new={"boxes": 0}).fault() is None
    assert "detections per image" in compared(comparison.MIN_IMAGES, new={"boxes": 0}).fault()


def test_rare_objects_need_more_images_until_a_version_without_them_is_seen():
    few, many = (compared(images, {"boxes": 0.1}, {"boxes": 0}) for images in (16, 640))
    assert few.fault() is None and "detections per image: found 0.00" in many.fault()


def test_false_boxes_where_the_version_before_finds_none_are_a_fault():
    assert "expected 0.00 to 0.00" in compared(64, {"boxes": 0}, {"boxes": 2}).fault()


def test_a_few_milliseconds_are_never_slow():
    assert compared(64, {"seconds": 0.001}, {"seconds": 0.004}).fault() is None


def test_only_classes_of_both_versions_are_compared():
    rng = np.random.default_rng(2)
    renamed = WeightsInfo("name", ("bird", "cat", "wolf"), 64)
    result = Comparison(INFO, renamed)
    for _ in range(128):
        result.add(found(rng), found(rng, classes=renamed.classes))
    assert result.fault() is None
    without = Comparison(INFO, WeightsInfo("name", ("x", "y", "z"), 64))
    for _ in range(128):
        without.add(found(rng), found(rng, boxes=9, classes=("x", "y", "z")))
    assert without.fault() is None


def test_changes_can_be_allowed():
    assert compared(64, new={"boxes": 0, "seconds": 1}, allow_changes=True).fault() is None


def test_a_comparison_is_complete_with_enough_images_and_boxes_or_with_very_many_images():
    assert not compared(comparison.ENOUGH_IMAGES - 1).is_complete
    assert compared(comparison.ENOUGH_IMAGES).is_complete
    nothing = {"before": {"boxes": 0}, "new": {"boxes": 0}}
    assert not compared(comparison.RARE_BOXES_IMAGES - 1, **nothing).is_complete
    assert compared(comparison.RARE_BOXES_IMAGES, **nothing).is_complete


def test_values_that_are_not_finite_are_refused_in_every_output():
    boxes = {"boxes_xyxy": torch.ones(1, 4), "confidences": torch.ones(1), "labels": torch.tensor([2])}
    assert found_in(Detections(**boxes), CLASSES, 0.1).classes == ("dog",)
    for change in ({"confidences": torch.tensor([float("nan")])}, {"image_labels": torch.tensor([float("inf")])}):
        with pytest.raises(FloatingPointError, match=f"found values in {next(iter(change))} that are not finite"):
            found_in(Detections(**boxes | change), CLASSES, 0.1)
