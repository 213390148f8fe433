import numpy as np
import pytest

from yolor_ray.errors import DataError
from yolor_ray.evaluate import coco
from yolor_ray.study import bootstrap
from yolor_ray.study.bootstrap import draws, resampled
from yolor_ray.study.results import METRICS

SIDES = (12, 30, 34, 80, 100, 180)
"""Of objects, in pixels: two of each of COCO's ranges of areas."""


def _scene(seed, images=6, ties=True):
    """Random objects of three classes, some of them crowds, and detections near them and elsewhere, of which many score the same."""
    rng = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": [{"id": k, "name": f"class {k}"} for k in range(3)]}
    rows = []
    for image_id in rng.permutation(100)[:images].tolist():
        truth["images"].append({"id": image_id, "width": 600, "height": 600})
        for _ in range(rng.integers(0, 6)):
            label, side = int(rng.integers(3)), float(rng.choice(SIDES))
            box = [*rng.uniform(0, 400, 2).tolist(), side, side * rng.uniform(0.8, 1.2)]
            crowd = int(rng.random() < 0.15)
            where = {"image_id": image_id, "category_id": label}
            truth["annotations"].append(where | {"bbox": box, "area": box[2] * box[3], "iscrowd": crowd})
            for _ in range(rng.integers(0, 3)):
                near = (np.array(box) + rng.normal(0, 0.08 * side, 4)).clip(1)
                rows.append(where | {"bbox": near.tolist(), "score": float(rng.beta(3, 2))})
        for _ in range(rng.integers(0, 5)):
            box = [*rng.uniform(0, 400, 2).tolist(), *rng.choice(SIDES, 2).tolist()]
            rows.append({"image_id": image_id, "category_id": int(rng.integers(3)), "bbox": box, "score": float(rng.beta(2, 3))})
    for row in rows:
        row["score"] = round(row["score"], 1) if ties else row["score"]
    return truth, rows


def _repeated(truth, rows, times):
    """The data set in which image i is really there `times[i]` times, copies side by side in the order of their ids."""
    copies = {image["id"]: [image["id"] * 10 + copy for copy in range(n)] for image, n in zip(truth["images"], times, strict=True)}
    images = [image | {"id": copy} for image in truth["images"] for copy in copies[image["id"]]]
    annotations, rows = (
        [item | {"image_id": copy} for item in items for copy in copies[item["image_id"]]] for items in (truth["annotations"], rows)
    )
    return truth | {"images": images, "annotations": annotations}, rows


def _expected(truth, rows):
    found = np.array([coco.score(truth, rows)[name] for name in METRICS])
    return np.where(found < 0, np.nan, found)


@pytest.mark.parametrize("seed", range(8))
def test_images_that_count_once_score_as_coco_scores_them(seed):
    truth, rows = _scene(seed)
    found = resampled(truth, rows, np.ones((1, 6), int))
    assert found.dtype == np.float64 and found.shape == (1, len(METRICS))
    np.testing.assert_allclose(found[0], _expected(truth, rows), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_images_that_count_twice_or_not_at_all_score_as_if_they_were_there_twice_or_not_at_all(seed):
    truth, rows = _scene(seed, ties=False)
    times = np.random.default_rng(seed).integers(0, 4, (4, 6))
    found = resampled(truth, rows, times)
    for values, once in zip(found, times, strict=True):
        np.testing.assert_allclose(values, _expected(*_repeated(truth, rows, once)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_an_image_without_weight_scores_as_if_it_were_left_out_also_where_scores_are_equal(seed):
    truth, rows = _scene(seed, images=9)
    kept = np.arange(9) % 3 != seed % 3
    found = resampled(truth, rows, kept[None].astype(int))
    np.testing.assert_allclose(found[0], _expected(*_repeated(truth, rows, kept.astype(int))), rtol=0, atol=1e-12)


def test_resamples_score_the_same_in_one_chunk_and_in_many(monkeypatch):
    truth, rows = _scene(3)
    weights = draws(6, 10, seed=0)
    whole = resampled(truth, rows, weights)
    monkeypatch.setattr(bootstrap, "CHUNK", 3)
    np.testing.assert_array_equal(resampled(truth, rows, weights), whole)


def test_a_resample_without_objects_of_a_size_or_of_any_has_no_number_for_them():
    small, large = ({"image_id": i, "category_id": 0, "bbox": [5, 5, side, side]} for i, side in enumerate((10, 200)))
    images = [{"id": i, "width": 300, "height": 300} for i in range(2)]
    annotations = [box | {"area": box["bbox"][2] ** 2, "iscrowd": 0} for box in (small, large)]
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "absent"}]}
    found = resampled(truth, [small | {"score": 0.5}], np.array([[1, 0], [0, 2], [0, 0]]))
    nan = np.nan
    np.testing.assert_allclose(found, [[1, 1, 1, 1, nan, nan], [0, 0, 0, nan, nan, 0], [nan] * 6])


def test_no_detections_score_zero_wherever_there_are_objects():
    truth, _ = _scene(0)
    found = resampled(truth, [], draws(6, 5, seed=1))
    assert np.isfinite(found[:, 0]).all()
    assert set(found[np.isfinite(found)]) == {0}


def test_draws_hold_as_many_images_as_there_are_and_repeat_with_their_seed():
    drawn = draws(50, 2000, seed=4)
    assert drawn.shape == (2000, 50)
    assert (drawn.sum(axis=1) == 50).all()
    np.testing.assert_array_equal(drawn, draws(50, 2000, seed=4))
    assert not np.array_equal(drawn, draws(50, 2000, seed=5))
    # Each image is left out with probability (1 - 1/50) ** 50; 100,000 draws measure it to 0.002.
    assert (drawn == 0).mean() == pytest.approx(0.98**50, abs=0.006)


def test_resampling_refuses_what_scoring_refuses():
    truth, rows = _scene(0)
    with pytest.raises(DataError, match="detection 0: found image_id 1000"):
        resampled(truth, [rows[0] | {"image_id": 1000}], np.ones((1, 6), int))
