"""Tiles: every pixel is covered, and each object of the image is found once, wherever the borders cut it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colour_engine import CONFIDENCE, draw
from yolor_ray.data.rle import decode_mask, encode_mask, move_mask, union_of_masks
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.inference.tiles import Tile, cut_tiles, merge_tiles
from yolor_ray.predict.run import predict


@given(st.integers(1, 2000), st.integers(1, 300), st.integers(64, 640), st.sampled_from([0.0, 0.1, 0.2, 0.5]))
def test_tiles_cover_every_pixel_and_overlap_as_much_as_asked(width, height, tile_px, overlap):
    tiles = cut_tiles(width, height, tile_px, overlap)
    covered = np.zeros((height, width), bool)
    for tile in tiles:
        assert 0 <= tile.left < tile.right <= width and 0 <= tile.top < tile.bottom <= height
        assert tile.right - tile.left == min(tile_px, width) and tile.bottom - tile.top == min(tile_px, height)
        covered[tile.top : tile.bottom, tile.left : tile.right] = True
    assert covered.all()
    lefts = sorted({tile.left for tile in tiles})
    assert all(first + tile_px - second >= int(tile_px * overlap) for first, second in itertools.pairwise(lefts))
    assert len(tiles) == len(set(tiles))


def seen(objects, width, height, tile_px, overlap, noise=0.0, seed=0):
    """Return each tile with the visible parts of objects (label, x1, y1, x2, y2, confidence), as a network would find them."""
    generator = np.random.default_rng(seed)
    found = []
    values = np.array(objects, np.float64).reshape(-1, 6)
    for tile in cut_tiles(width, height, tile_px, overlap):
        low, high = np.tile(tile.xyxy[:2], 2), np.tile(tile.xyxy[2:], 2)
        parts = np.clip(values[:, 1:5], low, high) - low
        visible = (parts[:, 2:] - parts[:, :2] >= 6).all(axis=1)
        boxes = parts[visible] + generator.uniform(-noise, noise, (visible.sum(), 4))
        found.append((tile, ImageDetections(boxes, values[visible, 5], values[visible, 0].astype(np.int64))))
    return found


def merged(objects, overlap=0.2, width=1000, height=700, tile_px=320, **options):
    return merge_tiles(seen(objects, width, height, tile_px, overlap, **options), width, height, iou=0.5, max_detections=300)


def assert_found(result, objects, tolerance=0.01):
    expected = np.array(sorted(objects, key=lambda one: tuple(one[1:5])), np.float64)
    order = np.lexsort(result.boxes_xyxy.T[::-1].round())
    assert len(result.labels) == len(objects), result.boxes_xyxy.round().tolist()
    np.testing.assert_allclose(result.boxes_xyxy[order], expected[:, 1:5], atol=tolerance)
    np.testing.assert_allclose(result.confidences[order], expected[:, 5])
    assert result.labels[order].tolist() == expected[:, 0].astype(int).tolist()
    assert (np.diff(result.confidences) <= 0).all()


OBJECTS = {
    "in one tile": [(0, 40, 40, 90, 100, 0.9)],
    "in an overlap": [(0, 245, 40, 300, 100, 0.9)],
    "cut by one tile, whole in its neighbour": [(0, 250, 40, 380, 100, 0.9)],
    "cut by both tiles": [(0, 100, 40, 500, 100, 0.9)],
    "cut at a corner": [(0, 150, 120, 420, 460, 0.9)],
    "over all tiles": [(0, 20, 300, 980, 340, 0.9)],
    "larger than nine tiles": [(0, 5, 5, 995, 695, 0.9)],
    "at the border of the image": [(0, 0, 0, 60, 60, 0.9), (1, 930, 640, 1000, 700, 0.8)],
    "two classes in one place": [(0, 100, 40, 500, 100, 0.9), (1, 100, 40, 500, 100, 0.8)],
    "side by side": [(0, 100, 40, 500, 100, 0.9), (0, 100, 110, 500, 170, 0.8), (0, 510, 40, 600, 100, 0.7)],
    "one inside another": [(0, 100, 40, 500, 240, 0.9), (0, 140, 90, 200, 140, 0.8)],
}


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("name", OBJECTS)
def test_each_object_is_found_once_with_its_box(name, overlap):
    assert_found(merged(OBJECTS[name], overlap), OBJECTS[name])


@pytest.mark.parametrize("overlap", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(5))
def test_each_object_is_found_once_where_boxes_are_a_little_off(overlap, seed):
    objects = [one for name in ("cut by both tiles", "cut at a corner") for one in OBJECTS[name]]
    objects = [objects[0], (1, *objects[1][1:])]
    assert_found(merged(objects, overlap, noise=2.0, seed=seed), objects, tolerance=2.1)


@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.2, 0.3]))
def test_a_grid_of_small_objects_is_found_as_it_is(seed, overlap):
    generator = np.random.default_rng(seed)
    shift_x, shift_y = generator.integers(0, 20, 2)
    objects = [
        (
            int(generator.integers(2)),
            x + shift_x,
            y + shift_y,
            x + shift_x + 25,
            y + shift_y + 25,
            round(float(generator.uniform(0.3, 1)), 3),
        )
        for x in range(10, 900, 45)
        for y in range(10, 600, 45)
    ]
    result = merge_tiles(seen(objects, 1000, 700, 320, overlap), 1000, 700, iou=0.5, max_detections=1000)
    assert_found(result, objects)


def test_the_best_detections_are_kept_up_to_the_limit():
    objects = [(0, 20 + 90 * place, 20, 80 + 90 * place, 80, 0.9 - place / 20) for place in range(10)]
    result = merge_tiles(seen(objects, 1000, 700, 320, 0.2), 1000, 700, iou=0.5, max_detections=4)
    assert result.confidences.tolist() == pytest.approx([0.9, 0.85, 0.8, 0.75])


def test_tiles_without_a_detection_give_none():
    assert len(merged([]).labels) == 0


def test_masks_and_keypoints_of_parts_are_joined():
    left, right = np.zeros((100, 100), bool), np.zeros((100, 100), bool)
    left[20:60, 50:], right[20:60, :30] = True, True
    points = [np.array([[[60.0, 30, 0.9], [99, 40, 0.2]]]), np.array([[[2.0, 30, 0.3], [25, 40, 0.8]]])]
    boxes = [np.array([[50.0, 20, 100, 60]]), np.array([[0.0, 20, 30, 60]])]
    tiles = [Tile(0, 0, 100, 100), Tile(80, 0, 180, 100)]
    found = [
        (tile, ImageDetections(box, np.array([score]), np.array([0]), (encode_mask(mask),), point, np.array([[score, 0]], np.float32)))
        for tile, box, mask, point, score in zip(tiles, boxes, (left, right), points, (0.8, 0.9), strict=True)
    ]
    result = merge_tiles(found, 180, 100, iou=0.5, max_detections=9)
    expected = np.zeros((100, 180), bool)
    expected[20:60, 50:110] = True
    np.testing.assert_array_equal(decode_mask(result.masks[0], 180, 100), expected)
    np.testing.assert_allclose(result.keypoints, [[[60, 30, 0.9], [105, 40, 0.8]]])
    assert result.boxes_xyxy.tolist() == [[50, 20, 110, 60]]
    np.testing.assert_allclose(result.embeddings, [[0.9, 0]])


def test_a_mask_moves_with_its_rectangle_and_masks_unite():
    generator = np.random.default_rng(0)
    whole = np.zeros((70, 90), bool)
    whole[20:60, 30:80] = generator.random((40, 50)) > 0.5
    moved = move_mask(encode_mask(whole[20:60, 30:80]), (50, 40), (30, 20), (90, 70))
    np.testing.assert_array_equal(decode_mask(moved, 90, 70), whole)
    empty = move_mask(encode_mask(np.zeros((40, 50), bool)), (50, 40), (30, 20), (90, 70))
    assert not decode_mask(empty, 90, 70).any()
    np.testing.assert_array_equal(decode_mask(union_of_masks([moved, empty], 90, 70), 90, 70), whole)


def test_a_large_image_is_predicted_in_tiles_and_a_small_one_as_a_whole(settings, tmp_path, rows, rich_weights):
    objects = [("red", 20, 20, 32, 32), ("red", 100, 60, 150, 90), ("blue", 180, 30, 420, 110), ("blue", 300, 180, 312, 190)]
    (tmp_path / "large").mkdir()
    draw((500, 260), objects).save(tmp_path / "large" / "a.png")
    draw((120, 90), objects[:1]).save(tmp_path / "large" / "b.png")
    for weights, output in ((settings().weights, "plain"), (rich_weights, "rich")):
        out = tmp_path / output
        changes = {"images": str(tmp_path / "large"), "tile": 128, "batch": 5, "weights": weights}
        assert predict(settings(**changes, output=str(out)))["detections"] == 5
        found = rows(out)
        boxes = sorted(zip(found["a.png"]["classes"], map(tuple, found["a.png"]["boxes_xyxy"]), strict=True))
        expected = sorted((name, box) for name, *box in objects)
        assert [name for name, _ in boxes] == [name for name, _ in expected]
        np.testing.assert_allclose([box for _, box in boxes], [box for _, box in expected], atol=1.01)
        assert found["a.png"]["confidences"] == [CONFIDENCE] * 4
    assert found["a.png"]["image_labels"] == found["b.png"]["image_labels"] == [("day", 0.25), ("night", 0.75)]
    wide = next(index for index, box in enumerate(found["a.png"]["boxes_xyxy"]) if box[2] - box[0] > 200)
    inside = decode_mask(found["a.png"]["masks"][wide].encode(), 500, 260)
    assert inside[32:108, 184:416].all() and inside.sum() == pytest.approx(240 * 80, rel=0.05)
