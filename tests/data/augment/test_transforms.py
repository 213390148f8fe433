"""Boxes follow their pixels through every transform: rectangles of one colour each show their true position."""

from dataclasses import replace

import numpy as np
import pytest

from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.labels import SampleLabels
from yolor_ray.data.augment.tile import Tile, make_tile
from yolor_ray.data.augment.transforms import training_sample
from yolor_ray.data.images.decode import FILL
from yolor_ray.data.synthetic.scenes import scene

SIDE = 160
STILL = AugmentConfig(mosaic=0, translate=0, scale=0, hue=0, saturation=0, value=0, flip_horizontal=0)
MOVES = {
    "nothing": STILL,
    "zoom": replace(STILL, scale=0.6),
    "shift": replace(STILL, translate=0.3),
    "rotation": replace(STILL, degrees=40),
    "horizontal flip": replace(STILL, flip_horizontal=1),
    "vertical flip": replace(STILL, flip_vertical=1),
    "mosaic": replace(STILL, mosaic=1),
    "mosaic, small zoom": replace(STILL, mosaic=1, scale=0.5, translate=0.1),
    "mosaic, large zoom": replace(STILL, mosaic=1, scale=0.9, translate=0.1),
    "all": replace(STILL, mosaic=0.5, scale=0.5, translate=0.2, degrees=10, flip_horizontal=0.5, flip_vertical=0.5),
}
CUT_BY_THE_WINDOW_ALONE = ("nothing", "zoom", "shift", "rotation", "horizontal flip", "vertical flip", "mosaic")
SIZES = ((160, 160), (90, 160), (160, 120), (160, 160), (140, 160))
"""Height and width of each tile; tile t has the labels 3t, 3t + 1 and 3t + 2."""


def painted(number: int, *, drawn: bool = True) -> Tile:
    """Make a grey tile with the boxes of three rectangles, drawn in red, green and blue or not drawn at all."""
    height, width = SIZES[number]
    rng = np.random.default_rng(number)
    image = np.full((height, width, 3), FILL, np.uint8)
    boxes = []
    for channel in range(3):
        left, right = channel * width // 3 + rng.integers(0, 8), (channel + 1) * width // 3 - rng.integers(1, 8)
        top, bottom = rng.integers(0, height // 3), height - rng.integers(0, height // 3)
        if drawn:
            image[top:bottom, left:right, channel] = 255
        boxes.append((left, top, right, bottom))
    return Tile(image, SampleLabels(np.array(boxes, np.float32), np.arange(3 * number, 3 * number + 3)))


TILES = [painted(number) for number in range(len(SIZES))]
GREY_TILES = [painted(number, drawn=False) for number in range(len(SIZES))]


def sample(augment: AugmentConfig, seed: int, index: int = 0, tiles: list[Tile] = TILES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    out = np.full((SIDE, SIDE, 3), 7, np.uint8)
    annotations = training_sample(index, np.arange(len(tiles)), lambda i: tiles[i], np.random.default_rng(seed), augment, out)
    return out, annotations.boxes_xyxy, annotations.labels


def sample_by_label(augment: AugmentConfig, seed: int, index: int = 0) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Return the pixels that show each label, and the boxes of each label.

    The same sample is made once per tile, with that tile alone painted. A tile that a mosaic holds twice is left out, because two
    objects would share a label.
    """
    shown, boxes_by_label = {}, {}
    for number, tile in enumerate(TILES):
        tiles, taken = [*GREY_TILES[:number], tile, *GREY_TILES[number + 1 :]], []
        image = np.empty((SIDE, SIDE, 3), np.uint8)

        def tile_of(i: int, tiles: list[Tile] = tiles, taken: list[int] = taken) -> Tile:
            taken.append(i)
            return tiles[i]

        annotations = training_sample(index, np.arange(len(tiles)), tile_of, np.random.default_rng(seed), augment, image)
        if taken.count(number) < 2:
            for channel, label in enumerate(tile.annotations.labels.tolist()):
                shown[label] = image[..., channel] > (FILL + 255) / 2
                boxes_by_label[label] = annotations.boxes_xyxy[annotations.labels == label]
    return shown, boxes_by_label


def bounds(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


@pytest.mark.parametrize("name", MOVES)
def test_boxes_follow_their_pixels(name):
    compared = 0
    for seed in range(60):
        shown, boxes_by_label = sample_by_label(MOVES[name], seed, index=seed % len(TILES))
        for label, [box] in ((label, boxes) for label, boxes in boxes_by_label.items() if len(boxes)):
            assert shown[label].any(), f"seed {seed}: label {label} has box {box.tolist()} but no pixel"
            # Boxes hold no corners, so the hull of a rotated rectangle that the border cuts is wider than the visible rest.
            if MOVES[name].degrees == 0 or is_inside(box):
                seen = bounds(shown[label])
                assert np.abs(seen - box).max() <= 1.5, f"seed {seed}: label {label} has box {box.tolist()}, pixels {seen.tolist()}"
                compared += 1
    assert compared > 60


@pytest.mark.parametrize("name", ["zoom", "shift", "rotation", "horizontal flip", "vertical flip"])
def test_an_uncut_rectangle_and_its_box_have_the_same_centre(name):
    offsets = []
    for seed in range(200):
        image, boxes, labels = sample(MOVES[name], seed)
        # Shrinking skips pixels, which moves centres at random; enlarging moves no centre.
        for box, label in ((b, label) for b, label in zip(boxes, labels, strict=True) if is_inside(b) and not is_shrunk(b, label)):
            share = (image[..., label].astype(np.float64) - FILL) / (255 - FILL)
            centre = [(share * (cells + 0.5)).sum() / share.sum() for cells in np.mgrid[0:SIDE, 0:SIDE][::-1]]
            offsets.append(np.abs(centre - (box[:2] + box[2:]) / 2).max())
    assert len(offsets) > 20
    assert max(offsets) < 0.05, "an error of half a pixel, between pixel centres and pixel edges, would show"


def is_shrunk(box: np.ndarray, label: int) -> bool:
    full = TILES[0].annotations.boxes_xyxy[label]
    return bool((box[2:] - box[:2]).prod() < 0.98 * (full[2:] - full[:2]).prod())


@pytest.mark.parametrize("name", CUT_BY_THE_WINDOW_ALONE)
def test_every_uncut_object_has_a_box(name):
    for seed in range(30):
        shown, boxes_by_label = sample_by_label(MOVES[name], seed)
        uncut = {label for label, seen in shown.items() if seen.any() and is_inside(bounds(seen))}
        assert uncut <= {label for label, boxes in boxes_by_label.items() if len(boxes)}, f"seed {seed}"


def is_inside(box: np.ndarray) -> bool:
    return bool((box > 1).all() and (box < SIDE - 1).all())


def test_without_augmentation_a_square_tile_is_copied():
    image, boxes, labels = sample(STILL, seed=0)
    assert np.array_equal(image, TILES[0].image)
    assert np.array_equal(boxes, TILES[0].annotations.boxes_xyxy)
    assert np.array_equal(labels, TILES[0].annotations.labels)


def test_without_colour_jitter_no_colour_changes():
    image, _, _ = sample(replace(STILL, flip_horizontal=1), seed=1)
    assert np.array_equal(image, TILES[0].image[:, ::-1])


def test_a_narrow_tile_is_centred_on_grey():
    image, boxes, _ = sample(STILL, seed=0, index=2)
    assert np.array_equal(image[:, 20:140], TILES[2].image)
    assert (image[:, :20] == FILL).all()
    assert (image[:, 140:] == FILL).all()
    assert np.array_equal(boxes, TILES[2].annotations.boxes_xyxy + np.array((20, 0, 20, 0)))


@pytest.mark.parametrize("knob", ["hue", "saturation", "value"])
def test_colour_jitter_changes_pixels_and_no_box(knob):
    scene_tile = make_tile(scene(0, size_px=SIDE), SIDE)
    plain, varied = (np.empty((SIDE, SIDE, 3), np.uint8) for _ in range(2))
    augment = replace(STILL, **{knob: 0.6})
    for settings, out in ((STILL, plain), (augment, varied)):
        annotations = training_sample(0, np.zeros(1, np.int64), lambda _: scene_tile, np.random.default_rng(3), settings, out)
        assert np.array_equal(annotations.boxes_xyxy, scene_tile.annotations.boxes_xyxy)
    assert not np.array_equal(plain, varied)
    assert plain.mean() / 2.5 < varied.mean() < plain.mean() * 2.5


def test_brightness_scales_every_channel():
    grey = Tile(np.full((SIDE, SIDE, 3), 100, np.uint8), SampleLabels(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)))
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    seen = set()
    for seed in range(30):
        training_sample(0, np.zeros(1, np.int64), lambda _: grey, np.random.default_rng(seed), replace(STILL, value=0.4), out)
        assert (out == out[0, 0, 0]).all()
        seen.add(int(out[0, 0, 0]))
    assert 60 <= min(seen) < 75
    assert 125 < max(seen) <= 140


def test_mixup_keeps_the_boxes_of_both_images():
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


def test_boxes_stay_inside_the_image_and_tiny_boxes_are_dropped():
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
        annotations = training_sample(
            0, np.zeros(1, np.int64), lambda _: empty, np.random.default_rng(seed), AugmentConfig(mixup=0.5, flip_vertical=0.5), out
        )
        assert annotations.boxes_xyxy.shape == (0, 4)
        assert annotations.labels.shape == (0,)
