"""Bootstrap over validation images: weights on images equal a dataset with repeated images."""

import numpy as np
import pytest

from yolor_ray.errors import DataError
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.against import bootstrap
from yolor_ray.evaluate.against.bootstrap import (
    KEYPOINT_METRICS,
    METRICS,
    draw_resamples,
    mean_of_classes,
    resampled_class_metrics,
    resampled_metrics,
)

SIDES = (12, 30, 34, 80, 100, 180)
"""Sides of objects in pixels: two in each of COCO's ranges of areas."""


def make_scene(seed, images=6, ties=True):
    """Return random objects of three classes, some of them crowds, with near and far detections; with ties, many scores are equal."""
    rng = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": [{"id": k, "name": f"class {k}"} for k in range(3)]}
    rows = []
    for image_id in rng.permutation(100)[:images].tolist():
        truth["images"].append({"id": image_id, "width": 600, "height": 600})
        for _ in range(rng.integers(0, 6)):
            label, side = int(rng.integers(3)), float(rng.choice(SIDES))
            box = [*rng.uniform(0, 400, 2).tolist(), side, side * rng.uniform(0.8, 1.2)]
            crowd = int(rng.random() < 0.15)
            common = {"image_id": image_id, "category_id": label}
            truth["annotations"].append(common | {"bbox": box, "area": box[2] * box[3], "iscrowd": crowd})
            for _ in range(rng.integers(0, 3)):
                near = (np.array(box) + rng.normal(0, 0.08 * side, 4)).clip(1)
                rows.append(common | {"bbox": near.tolist(), "score": float(rng.beta(3, 2))})
        for _ in range(rng.integers(0, 5)):
            box = [*rng.uniform(0, 400, 2).tolist(), *rng.choice(SIDES, 2).tolist()]
            rows.append({"image_id": image_id, "category_id": int(rng.integers(3)), "bbox": box, "score": float(rng.beta(2, 3))})
    for row in rows:
        row["score"] = round(row["score"], 1) if ties else row["score"]
    return truth, rows


def repeat_images(truth, rows, times):
    """Return the dataset with `times[i]` copies of image i, side by side in the order of their ids."""
    copies = {image["id"]: [image["id"] * 10 + copy for copy in range(n)] for image, n in zip(truth["images"], times, strict=True)}
    images = [image | {"id": copy} for image in truth["images"] for copy in copies[image["id"]]]
    annotations, rows = (
        [item | {"image_id": copy} for item in items for copy in copies[item["image_id"]]] for items in (truth["annotations"], rows)
    )
    return truth | {"images": images, "annotations": annotations}, rows


def coco_metrics(truth, rows):
    metrics = np.array([coco.score(truth, rows)[name] for name in METRICS])
    return np.where(metrics < 0, np.nan, metrics)


@pytest.mark.parametrize("seed", range(8))
def test_weights_of_one_give_the_metrics_of_coco(seed):
    truth, rows = make_scene(seed)
    metrics = resampled_metrics(truth, rows, np.ones((1, 6), int))
    assert metrics.dtype == np.float64 and metrics.shape == (1, len(METRICS))
    np.testing.assert_allclose(metrics[0], coco_metrics(truth, rows), rtol=0, atol=1e-12)


def with_masks_and_keypoints(truth, rows):
    """Return the scene with a mask and three keypoints in every box."""
    for item in [*truth["annotations"], *rows]:
        x, y, width, height = item["bbox"]
        item["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        item["keypoints"] = [x, y, 2, x + width, y, 2, x + width / 2, y + height, 2]
    annotations = [item | {"num_keypoints": 3} for item in truth["annotations"]]
    return truth | {"annotations": annotations}, rows


@pytest.mark.parametrize("iou_type", ["segm", "keypoints"])
@pytest.mark.parametrize("seed", range(4))
def test_masks_and_keypoints_of_weights_of_one_have_the_metrics_of_coco(seed, iou_type):
    truth, rows = with_masks_and_keypoints(*make_scene(seed))
    names = KEYPOINT_METRICS if iou_type == "keypoints" else METRICS
    metrics = mean_of_classes(resampled_class_metrics(truth, rows, np.ones((1, 6), int), iou_type))[0]
    expected = np.array([coco.measure(truth, rows, iou_type).metrics[name] for name in names])
    np.testing.assert_allclose(metrics, np.where(expected < 0, np.nan, expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_a_weight_equals_that_number_of_copies_of_an_image(seed):
    truth, rows = make_scene(seed, ties=False)
    times = np.random.default_rng(seed).integers(0, 4, (4, 6))
    metrics = resampled_metrics(truth, rows, times)
    for values, counts in zip(metrics, times, strict=True):
        np.testing.assert_allclose(values, coco_metrics(*repeat_images(truth, rows, counts)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_weight_of_zero_equals_a_missing_image_with_equal_scores_too(seed):
    truth, rows = make_scene(seed, images=9)
    kept = np.arange(9) % 3 != seed % 3
    metrics = resampled_metrics(truth, rows, kept[None].astype(int))
    np.testing.assert_allclose(metrics[0], coco_metrics(*repeat_images(truth, rows, kept.astype(int))), rtol=0, atol=1e-12)


def test_one_chunk_and_many_chunks_give_equal_metrics(monkeypatch):
    truth, rows = make_scene(3)
    weights = draw_resamples(6, 10, seed=0)
    one_chunk = resampled_metrics(truth, rows, weights)
    monkeypatch.setattr(bootstrap, "RESAMPLES_PER_CHUNK", 3)
    np.testing.assert_array_equal(resampled_metrics(truth, rows, weights), one_chunk)


def test_a_resample_without_objects_of_a_size_has_no_metric_for_that_size():
    small, large = ({"image_id": i, "category_id": 0, "bbox": [5, 5, side, side]} for i, side in enumerate((10, 200)))
    images = [{"id": i, "width": 300, "height": 300} for i in range(2)]
    annotations = [box | {"area": box["bbox"][2] ** 2, "iscrowd": 0} for box in (small, large)]
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "absent"}]}
    metrics = resampled_metrics(truth, [small | {"score": 0.5}], np.array([[1, 0], [0, 2], [0, 0]]))
    nan = np.nan
    np.testing.assert_allclose(metrics, [[1, 1, 1, 1, nan, nan], [0, 0, 0, nan, nan, 0], [nan] * 6])


def test_without_detections_metrics_are_zero_where_there_are_objects():
    truth, _ = make_scene(0)
    metrics = resampled_metrics(truth, [], draw_resamples(6, 5, seed=1))
    assert np.isfinite(metrics[:, 0]).all()
    assert set(metrics[np.isfinite(metrics)]) == {0}


def test_resamples_have_as_many_images_as_the_dataset_and_repeat_with_their_seed():
    drawn = draw_resamples(50, 2000, seed=4)
    assert drawn.shape == (2000, 50)
    assert (drawn.sum(axis=1) == 50).all()
    np.testing.assert_array_equal(drawn, draw_resamples(50, 2000, seed=4))
    assert not np.array_equal(drawn, draw_resamples(50, 2000, seed=5))
    # Each image is left out with probability (1 - 1/50) ** 50; 100,000 draws measure the share to 0.002.
    assert (drawn == 0).mean() == pytest.approx(0.98**50, abs=0.006)


def test_resampling_refuses_detections_that_scoring_refuses():
    truth, rows = make_scene(0)
    with pytest.raises(DataError, match="detection 0: found image_id 1000"):
        resampled_metrics(truth, [rows[0] | {"image_id": 1000}], np.ones((1, 6), int))
