"""Annotations move with their pixels: images drawn from the annotations show the true position of everything."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from coded import OBJECTS, coded_record, visible_labels
from yolor_ray.config import AugmentConfig
from yolor_ray.data.augment.geometry import place_tile, transform_labels
from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.data.augment.labels import SampleLabels
from yolor_ray.data.augment.tile import Tile, make_tile
from yolor_ray.data.augment.transforms import training_sample
from yolor_ray.data.images.decode import FILL

SIDE = 128
STILL = AugmentConfig(mosaic=0, translate=0, scale=0, hue=0, saturation=0, value=0, flip_horizontal=0)
MOVES = {
    "nothing": STILL,
    "zoom": replace(STILL, scale=0.6),
    "shift": replace(STILL, translate=0.3),
    "rotation": replace(STILL, degrees=180),
    "horizontal flip": replace(STILL, flip_horizontal=1),
    "vertical flip": replace(STILL, flip_vertical=1),
    "both flips": replace(STILL, flip_horizontal=1, flip_vertical=1),
    "mosaic": replace(STILL, mosaic=1),
    "mosaic, zoom": replace(STILL, mosaic=1, scale=0.6, translate=0.3),
    "all": replace(STILL, mosaic=0.5, scale=0.5, translate=0.2, degrees=40, flip_horizontal=0.5, flip_vertical=0.5),
}
SIZES = ((128, 128), (128, 90), (70, 128), (128, 128), (128, 111))
"""Width and height of each tile."""
CODED = [make_tile(coded_record(number, *size), SIDE, LabelSpec(masks=True)) for number, size in enumerate(SIZES)]


def sample(
    tiles: list[Tile], augment: AugmentConfig, seed: int, keypoint_order: np.ndarray | None = None
) -> tuple[np.ndarray, SampleLabels, list[int]]:
    """Return a sample, its annotations, and the numbers of the tiles in it."""
    taken = []

    def tile_of(number: int) -> Tile:
        taken.append(number)
        return tiles[number]

    out = np.empty((SIDE, SIDE, 3), np.uint8)
    order = np.zeros(0, np.int64) if keypoint_order is None else keypoint_order
    rng = np.random.default_rng(seed)
    return out, training_sample(seed % len(tiles), np.arange(len(tiles)), tile_of, rng, augment, out, order), taken


@pytest.mark.parametrize("name", MOVES)
def test_the_instance_map_shows_the_same_objects_as_the_image(name):
    compared = dropped = 0
    for seed in range(25):
        image, annotations, taken = sample(CODED, MOVES[name], seed)
        assert annotations.instances.shape == (SIDE, SIDE)
        sure, seen = visible_labels(image, np.arange(OBJECTS * len(SIZES)))
        dropped += (sure & (seen >= 0) & ~np.isin(seen, annotations.labels)).any()
        expected = np.where(np.isin(seen, annotations.labels), seen, -1)
        labels = np.append(-1, annotations.labels)[annotations.instances]
        if len(set(taken)) == len(taken):  # otherwise two objects share a label, and either may have been dropped
            assert np.array_equal(labels[sure], expected[sure]), f"seed {seed}"
            compared += sure.mean() > 0.5
        assert set(annotations.labels[annotations.has_mask].tolist()) == set(labels[labels >= 0].tolist())
    assert compared > 4
    assert dropped or name not in ("mosaic", "all"), "no object was dropped, so the test proves nothing about dropped objects"


def test_without_augmentation_the_map_is_that_of_the_tile():
    _, annotations, _ = sample(CODED[:1], STILL, seed=0)
    assert np.array_equal(annotations.instances, CODED[0].annotations.instances)
    assert annotations.has_mask.tolist() == [True] * OBJECTS


@pytest.mark.parametrize(
    ("name", "rows", "columns"), [("nothing", 1, 1), ("horizontal flip", 1, -1), ("vertical flip", -1, 1), ("both flips", -1, -1)]
)
def test_maps_are_flipped_to_the_pixel(name, rows, columns):
    # As many objects as pixels, each shown by one pixel: a shift by a fraction of a pixel would mix the objects.
    cells = np.arange(SIDE**2).reshape(SIDE, SIDE)
    instances = (cells + 1).astype(np.uint16)
    boxes = np.tile(np.array((0, 0, SIDE, SIDE), np.float32), (cells.size, 1))
    annotations = SampleLabels(boxes, cells.ravel(), has_mask=np.ones(cells.size, bool), instances=instances)
    _, transformed, _ = sample([Tile(np.zeros((SIDE, SIDE, 3), np.uint8), annotations)], MOVES[name], seed=0)
    assert np.array_equal(transformed.labels[transformed.instances - 1], cells[::rows, ::columns])


DOT_PX = 4
SWAP = np.array([1, 0])


def dotted(number: int, *, drawn: bool = True) -> Tile:
    """Make a tile with three objects of two keypoints; a dot marks each: in channel i for object i, the first bright, the second dark."""
    width, height = SIZES[number]
    rng = np.random.default_rng((7, number))
    points = rng.uniform((6, 6), (width - 6, height / 2 - 6), (3, 2, 2))
    points[:, 1, 1] += height / 2
    image = np.full((height, width, 3), FILL, np.uint8)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    for i, j in np.ndindex(3, 2) if drawn else ():
        image[np.hypot(columns - points[i, j, 0], rows - points[i, j, 1]) < DOT_PX, i] = (255, 0)[j]
    boxes = np.tile(np.array((0, 0, width, height), np.float32), (3, 1))
    keypoints = np.concatenate((points, rng.integers(1, 3, (3, 2, 1))), axis=2).astype(np.float32)
    return Tile(image, SampleLabels(boxes, np.arange(3) + 3 * number, keypoints=keypoints))


DOTTED = [dotted(number) for number in range(len(SIZES))]
GREY = [dotted(number, drawn=False) for number in range(len(SIZES))]


def dotted_samples(augment: AugmentConfig) -> Iterator[tuple[int, np.ndarray, SampleLabels]]:
    """Yield a tile's number, the sample in which that tile alone is drawn, and its annotations; a tile taken twice is never drawn."""
    for seed in range(25):
        *_, taken = sample(DOTTED, augment, seed, SWAP)
        for number in [number for number in taken if taken.count(number) == 1]:
            image, annotations, _ = sample([*GREY[:number], DOTTED[number], *GREY[number + 1 :]], augment, seed, SWAP)
            if 3 * number in annotations.labels:
                yield number, image, annotations


@pytest.mark.parametrize("name", [name for name in MOVES if name != "all"])
def test_keypoints_follow_their_dots_and_swap_sides_in_a_flip(name):
    order = [1, 0] if name in ("horizontal flip", "vertical flip") else [0, 1]
    distances, unlabelled = [], 0
    for number, image, annotations in dotted_samples(MOVES[name]):
        for i, j in np.ndindex(3, 2):
            dot = image[..., i] > 200 if j == 0 else image[..., i] < 40
            [(x, y, visibility)] = annotations.keypoints[annotations.labels == 3 * number + i, order[j]]
            nearest = np.hypot(*(np.argwhere(dot) + 0.5 - (y, x)).T).min(initial=SIDE)
            if visibility == 0:
                unlabelled += 1
                assert nearest > 0.5, "a visible keypoint is unlabelled"
            else:
                assert visibility == DOTTED[number].annotations.keypoints[i, j, 2]
                assert nearest < 2, "a keypoint outside the image is labelled"
            if min(x, y) > DOT_PX * 2 and max(x, y) < SIDE - DOT_PX * 2 and dot.sum() > 5:
                distances.append(np.hypot(*(np.argwhere(dot).mean(axis=0) + 0.5 - (y, x))))
    assert len(distances) > 50
    assert np.median(distances) < 0.25
    assert unlabelled or name not in ("shift", "mosaic", "mosaic, zoom")


def test_unknown_and_unlabelled_keypoints_stay_so():
    points = np.array([[[5, 5, -1], [SIDE + 9, 5, -1], [5, 5, 0], [5, SIDE + 9, 0], [SIDE, 0, 1], [-1, 5, 2]]], np.float32)
    box = np.array([[0, 0, SIDE, SIDE]], np.float32)
    tile = Tile(np.zeros((SIDE, SIDE, 3), np.uint8), SampleLabels(box, np.zeros(1, np.int64), keypoints=points))
    for name in ("nothing", "horizontal flip", "vertical flip"):
        _, annotations, _ = sample([tile], MOVES[name], 0, np.arange(6))
        assert annotations.keypoints[0, :, 2].tolist() == [-1, -1, 0, 0, 1, 0]


@pytest.mark.parametrize("augment", [STILL, MOVES["mosaic"], replace(MOVES["all"], mixup=0.5)])
def test_identities_stay_with_their_objects(augment):
    tiles = [replace(tile, annotations=replace(tile.annotations, identities=tile.annotations.labels * 7 - 1)) for tile in CODED]
    for seed in range(10):
        _, annotations, _ = sample(tiles, augment, seed)
        assert np.array_equal(annotations.identities, annotations.labels * 7 - 1)


def test_unknown_labels_of_a_visible_tile_are_unknown_for_the_whole_mosaic():
    # The first four tiles have annotations; the last tile has none, and its grey level occurs nowhere else.
    blank = np.full((SIDE, SIDE, 3), 20, np.uint8)
    nothing = SampleLabels(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    tiles = [Tile(blank, replace(nothing, image_labels=np.array([label, 0], np.float32))) for label in (0, 0, 0, 1)]
    tiles.append(Tile(blank + 100, replace(nothing, boxes_known=False, image_labels=np.full(2, np.nan, np.float32))))
    outcomes = set()
    for seed in range(60):
        image, combined, taken = sample(tiles, replace(MOVES["mosaic, zoom"], degrees=30), seed)
        unknown_visible = (image[2:-2, 2:-2] == 120).any()
        assert combined.boxes_known == (not unknown_visible)
        assert np.isnan(combined.image_labels[1]) == unknown_visible
        assert combined.image_labels[0] != 1 or 3 in taken
        outcomes.add((bool(unknown_visible), 4 in taken))
    assert {(True, True), (False, False), (False, True)} <= outcomes


@pytest.mark.parametrize(("x", "label"), [(0, 1), (-96, 1), (-98, np.nan), (-127, np.nan), (-128, 0)])
def test_a_label_holds_if_a_quarter_of_the_whole_tile_is_visible_even_if_the_canvas_cuts_the_tile(x, label):
    annotations = SampleLabels(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), image_labels=np.ones(1, np.float32))
    placed = place_tile(Tile(np.zeros((SIDE, SIDE, 3), np.uint8), annotations), x, 0, 2 * SIDE, 2 * SIDE)
    halved = np.array(((0.5, 0, 0), (0, 0.5, 0)))
    assert np.array_equal(transform_labels([placed], (2 * SIDE, 2 * SIDE), halved, SIDE).image_labels, [label], equal_nan=True)
