"""Boxes follow their pixels through every transform: rectangles of one colour each say where they really are."""

from dataclasses import replace

import numpy as np
import pytest

from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.labels import SampleLabels
from yolor_ray.data.augment.tile import Tile, make_tile
from yolor_ray.data.augment.transforms import FILL, training_sample
from yolor_ray.data.synthetic.scenes import scene

SIDE = 160
STILL = AugmentConfig(mosaic=0, translate=0, scale=0, hue=0, saturation=0, value=0, flip_horizontal=0)
MOVES = {
    "nothing": STILL,
    "zoom": replace(STILL, scale=0.6),
    "shift": replace(STILL, translate=0.3),
    "rotation": replace(STILL, degrees=40),
    "mirror": replace(STILL, flip_horizontal=1),
    "upside down": replace(STILL, flip_vertical=1),
    "mosaic": replace(STILL, mosaic=1),
    "mosaic, small zoom": replace(STILL, mosaic=1, scale=0.5, translate=0.1),
    "mosaic, large zoom": replace(STILL, mosaic=1, scale=0.9, translate=0.1),
    "all": replace(STILL, mosaic=0.5, scale=0.5, translate=0.2, degrees=10, flip_horizontal=0.5, flip_vertical=0.5),
}
CUT_BY_THE_WINDOW_ALONE = ("nothing", "zoom", "shift", "rotation", "mirror", "upside down", "mosaic")
SIZES = ((160, 160), (90, 160), (160, 120), (160, 160), (140, 160))
"""Height and width of each tile; tile t has the labels 3t, 3t + 1 and 3t + 2."""


def painted(number: int, *, shown: bool = True) -> Tile:
    """Return a grey tile with three rectangles: the first in red, the second in green, the third in blue; or with their boxes alone."""
    height, width = SIZES[number]
    rng = np.random.default_rng(number)
    image = np.full((height, width, 3), FILL, np.uint8)
    boxes = []
    for place in range(3):
        left, right = place * width // 3 + rng.integers(0, 8), (place + 1) * width // 3 - rng.integers(1, 8)
        top, bottom = rng.integers(0, height // 3), height - rng.integers(0, height // 3)
        if shown:
            image[top:bottom, left:right, place] = 255
        boxes.append((left, top, right, bottom))
    return Tile(image, SampleLabels(np.array(boxes, np.float32), np.arange(3 * number, 3 * number + 3)))


TILES = [painted(number) for number in range(len(SIZES))]
GREY_TILES = [painted(number, shown=False) for number in range(len(SIZES))]


def sample(augment: AugmentConfig, seed: int, index: int = 0, tiles: list[Tile] = TILES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    out = np.full((SIDE, SIDE, 3), 7, np.uint8)
    known = training_sample(index, np.arange(len(tiles)), lambda i: tiles[i], np.random.default_rng(seed), augment, out)
    return out, known.boxes_xyxy, known.labels


def sample_by_label(augment: AugmentConfig, seed: int, index: int = 0) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Return the pixels that show each label, and the boxes of each: the same sample again and again, with one tile painted each time.

    A tile that a mosaic holds twice is left out, for then two places share a label.
    """
    shown, found = {}, {}
    for number, tile in enumerate(TILES):
        tiles, taken = [*GREY_TILES[:number], tile, *GREY_TILES[number + 1 :]], []
        image = np.empty((SIDE, SIDE, 3), np.uint8)

        def tile_of(i: int, tiles: list[Tile] = tiles, taken: list[int] = taken) -> Tile:
            taken.append(i)
            return tiles[i]

        known = training_sample(index, np.arange(len(tiles)), tile_of, np.random.default_rng(seed), augment, image)
        if taken.count(number) < 2:
            for place, label in enumerate(tile.known.labels.tolist()):
                shown[label] = image[..., place] > (FILL + 255) / 2
                found[label] = known.boxes_xyxy[known.labels == label]
    return shown, found


def bounds(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


@pytest.mark.parametrize("name", MOVES)
def test_boxes_follow_their_pixels(name):
    compared = 0
    for seed in range(60):
        shown, found = sample_by_label(MOVES[name], seed, index=seed % len(TILES))
        for label, [box] in ((label, boxes) for label, boxes in found.items() if len(boxes)):
            assert shown[label].any(), f"seed {seed}: label {label} has box {box.tolist()} and not one pixel"
            # The hull of a rotated rectangle that the border cuts is wider than what is left of it: boxes know no corners.
            if MOVES[name].degrees == 0 or is_inside(box):
                seen = bounds(shown[label])
                assert np.abs(seen - box).max() <= 1.5, f"seed {seed}: label {label} has box {box.tolist()}, pixels {seen.tolist()}"
                compared += 1
    assert compared > 60


@pytest.mark.parametrize("name", ["zoom", "shift", "rotation", "mirror", "upside down"])
def test_a_whole_rectangle_has_its_centre_where_the_box_has_it(name):
    offsets = []
    for seed in range(200):
        image, boxes, labels = sample(MOVES[name], seed)
        # Shrinking skips pixels, which moves centres at random; growing moves none.
        for box, label in ((b, label) for b, label in zip(boxes, labels, strict=True) if is_inside(b) and not is_shrunk(b, label)):
            share = (image[..., label].astype(np.float64) - FILL) / (255 - FILL)
            centre = [(share * (places + 0.5)).sum() / share.sum() for places in np.mgrid[0:SIDE, 0:SIDE][::-1]]
            offsets.append(np.abs(centre - (box[:2] + box[2:]) / 2).max())
    assert len(offsets) > 20
    assert max(offsets) < 0.05, "half a pixel between counting centres and counting edges would show"


def is_shrunk(box: np.ndarray, label: int) -> bool:
    full = TILES[0].known.boxes_xyxy[label]
    return bool((box[2:] - box[:2]).prod() < 0.98 * (full[2:] - full[:2]).prod())


@pytest.mark.parametrize("name", CUT_BY_THE_WINDOW_ALONE)
def test_what_is_seen_as_a_whole_has_a_box(name):
    for seed in range(30):
        shown, found = sample_by_label(MOVES[name], seed)
        whole = {label for label, seen in shown.items() if seen.any() and is_inside(bounds(seen))}
        assert whole <= {label for label, boxes in found.items() if len(boxes)}, f"seed {seed}"


def is_inside(box: np.ndarray) -> bool:
    return bool((box > 1).all() and (box < SIDE - 1).all())


def test_without_any_variation_a_square_tile_is_copied():
    image, boxes, labels = sample(STILL, seed=0)
    assert np.array_equal(image, TILES[0].image)
    assert np.array_equal(boxes, TILES[0].known.boxes_xyxy)
    assert np.array_equal(labels, TILES[0].known.labels)


def test_without_colour_variation_no_colour_changes():
    image, _, _ = sample(replace(STILL, flip_horizontal=1), seed=1)
    assert np.array_equal(image, TILES[0].image[:, ::-1])


def test_a_narrow_tile_is_centred_on_grey():
    image, boxes, _ = sample(STILL, seed=0, index=2)
    assert np.array_equal(image[:, 20:140], TILES[2].image)
    assert (image[:, :20] == FILL).all()
    assert (image[:, 140:] == FILL).all()
    assert np.array_equal(boxes, TILES[2].known.boxes_xyxy + np.array((20, 0, 20, 0)))


@pytest.mark.parametrize("knob", ["hue", "saturation", "value"])
def test_colour_variation_changes_pixels_and_no_box(knob):
    scene_tile = make_tile(scene(0, size_px=SIDE), SIDE)
    plain, varied = (np.empty((SIDE, SIDE, 3), np.uint8) for _ in range(2))
    augment = replace(STILL, **{knob: 0.6})
    for settings, out in ((STILL, plain), (augment, varied)):
        known = training_sample(0, np.zeros(1, np.int64), lambda _: scene_tile, np.random.default_rng(3), settings, out)
        assert np.array_equal(known.boxes_xyxy, scene_tile.known.boxes_xyxy)
    assert not np.array_equal(plain, varied)
    assert plain.mean() / 2.5 < varied.mean() < plain.mean() * 2.5


def test_brighter_means_every_channel_is_scaled():
    grey = Tile(np.full((SIDE, SIDE, 3), 100, np.uint8), SampleLabels(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)))
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    seen = set()
    for seed in range(30):
        training_sample(0, np.zeros(1, np.int64), lambda _: grey, np.random.default_rng(seed), replace(STILL, value=0.4), out)
        assert (out == out[0, 0, 0]).all()
        seen.add(int(out[0, 0, 0]))
    assert 60 <= min(seen) < 75
    assert 125 < max(seen) <= 140


def test_mixup_keeps_the_boxes_of_both():
    kept = []
    for seed in range(20):
        image, boxes, labels = sample(replace(STILL, mixup=1), seed)
        assert set(labels[:3].tolist()) == {0, 1, 2}
        assert len(boxes) == len(labels) == 6
        kept.append(set(labels.tolist()))
        assert np.array_equal(image, TILES[0].image) == (kept[-1] == {0, 1, 2})
    assert len({tuple(sorted(labels)) for labels in kept}) > 1


@pytest.mark.parametrize("name", ["all", "mosaic, large zoom"])
def test_the_same_seed_gives_the_same_sample(name):
    settings = replace(MOVES[name], mixup=0.5, hue=0.1, saturation=0.5, value=0.3)
    first, second, other = (sample(settings, seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_boxes_stay_inside_and_specks_are_left_out():
    settings = replace(MOVES["mosaic, large zoom"], degrees=20)
    for seed in range(60):
        _, boxes, labels = sample(settings, seed)
        assert len(boxes) == len(labels)
        assert (boxes >= 0).all()
        assert (boxes <= SIDE).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) > 2).all()


def test_a_tile_without_objects_gives_an_image_without_boxes():
    empty = Tile(np.full((SIDE, SIDE, 3), 50, np.uint8), SampleLabels(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)))
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    for seed in range(10):
        known = training_sample(
            0, np.zeros(1, np.int64), lambda _: empty, np.random.default_rng(seed), AugmentConfig(mixup=0.5, flip_vertical=0.5), out
        )
        assert known.boxes_xyxy.shape == (0, 4)
        assert known.labels.shape == (0,)
