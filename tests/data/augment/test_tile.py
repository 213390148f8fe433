"""A tile carries its record's annotations in pixels of the tile; labels that were not annotated are unknown, not negative."""

from dataclasses import replace

import numpy as np
import pytest

from coded import ALL_TASKS, OBJECTS, coded_record, visible_labels
from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.data.augment.tile import Tile, TileCache, make_tile
from yolor_ray.data.synthetic.scenes import IMAGE_CLASSES, KEYPOINT_NAMES, scene

ANNOTATED = np.array([[True, True, True, False], [False, True, True, True]])
EVERYTHING = LabelSpec(masks=True, keypoint_names=KEYPOINT_NAMES, identities=np.array([2, 3, 5, 30]), image_classes=ANNOTATED)
RECORD = scene(3, size_px=64)


def test_by_default_a_tile_carries_boxes_alone():
    annotations = make_tile(RECORD, 64).annotations
    assert annotations.boxes_known
    assert [getattr(annotations, name) for name in ("keypoints", "identities", "has_mask", "instances", "image_labels")] == [None] * 5


def test_crowd_regions_are_left_out_of_tiles():
    count = len(RECORD.objects.labels)
    objects = replace(RECORD.objects, crowd=np.arange(count) == 0)
    tile = make_tile(replace(RECORD, objects=objects), 128, EVERYTHING)
    with_all = make_tile(RECORD, 128, EVERYTHING)
    assert len(tile.annotations.labels) == count - 1
    assert np.array_equal(tile.annotations.boxes_xyxy, 2 * RECORD.objects.boxes_xyxy[1:])
    assert np.array_equal(tile.annotations.labels, RECORD.objects.labels[1:])
    assert np.array_equal(tile.annotations.keypoints, with_all.annotations.keypoints[1:])
    assert np.array_equal(tile.annotations.identities, with_all.annotations.identities[1:])
    assert np.array_equal(tile.annotations.instances, np.maximum(with_all.annotations.instances, 1) - 1)
    assert tile.annotations.has_mask.all()


@pytest.mark.parametrize("image_px", [64, 96, 160])
def test_the_longer_side_of_a_tile_is_that_of_the_network_input(image_px):
    assert make_tile(scene(1, size_px=96), image_px).image.shape == (image_px, image_px, 3)


@pytest.mark.parametrize(("width", "height"), [(128, 128), (128, 92), (60, 128)])
def test_the_map_shows_the_objects_of_the_image(width, height):
    tile = make_tile(coded_record(1, width, height), 128, EVERYTHING)
    square = np.full((128, 128, 3), 255, np.uint8)
    square[:height, :width] = tile.image
    numbers = np.zeros((128, 128), np.uint16)
    numbers[:height, :width] = tile.annotations.instances
    sure, seen = visible_labels(square, tile.annotations.labels)
    labels = np.append(-1, tile.annotations.labels)[numbers]
    assert np.array_equal(labels[sure], seen[sure])
    assert set(labels.ravel().tolist()) == {-1, *tile.annotations.labels.tolist()}


@pytest.mark.parametrize("image_px", [50, 200])
def test_a_map_has_the_size_of_the_tile(image_px):
    tile = make_tile(coded_record(1, 128, 90), image_px, EVERYTHING)
    assert tile.annotations.instances.shape == tile.image.shape[:2]
    assert tile.annotations.instances.dtype == np.uint16
    assert tile.annotations.instances.flags.c_contiguous
    for number, (x1, y1, x2, y2) in enumerate(tile.annotations.boxes_xyxy, start=1):
        rows, columns = np.nonzero(tile.annotations.instances == number)
        assert (columns.min() + 1 > x1) and (columns.max() < x2) and (rows.min() + 1 > y1) and (rows.max() < y2)


def test_an_unknown_mask_is_not_in_the_map_and_the_others_keep_their_numbers():
    masks = (RECORD.objects.masks[0], None, *RECORD.objects.masks[2:])
    annotations = make_tile(replace(RECORD, objects=replace(RECORD.objects, masks=masks)), 64, EVERYTHING).annotations
    expected = make_tile(RECORD, 64, EVERYTHING).annotations
    assert annotations.has_mask.tolist() == [index != 1 for index in range(len(masks))] and expected.has_mask.all()
    known = (expected.instances != 2) & (expected.instances > 0)
    assert np.array_equal(annotations.instances[known], expected.instances[known])
    assert 2 in expected.instances and 2 not in annotations.instances


def test_keypoints_are_scaled_with_the_image_and_keep_their_visibility():
    annotations = make_tile(RECORD, 96, EVERYTHING).annotations
    assert annotations.keypoints.dtype == np.float32
    assert np.allclose(annotations.keypoints, RECORD.objects.keypoints * (1.5, 1.5, 1))


def test_unknown_individuals_have_index_minus_one():
    objects = replace(RECORD.objects, identities=np.resize([5, -1, 2, 99, 4, 0], len(RECORD.objects.labels)))
    annotations = make_tile(replace(RECORD, objects=objects), 64, EVERYTHING).annotations
    expected = {5: 2, 2: 0, -1: -1, 99: -1, 4: -1, 0: -1}
    assert annotations.identities.tolist() == [expected[identity] for identity in objects.identities.tolist()]
    nobody = replace(EVERYTHING, identities=np.zeros(0, np.int64))
    assert set(make_tile(RECORD, 64, nobody).annotations.identities.tolist()) == {-1}


@pytest.mark.parametrize("member", [0, 1])
def test_image_labels_outside_the_classes_of_the_dataset_are_unknown(member):
    assert len(IMAGE_CLASSES) >= 2
    record = replace(RECORD, image_labels=np.array([1], np.int64))
    image_labels = make_tile(record, 64, EVERYTHING, member).annotations.image_labels
    assert np.array_equal(image_labels, np.where(ANNOTATED[member], [0, 1, 0, 0], np.nan), equal_nan=True)
    assert image_labels.dtype == np.float32


def test_labels_of_unannotated_tasks_are_unknown():
    annotations = make_tile(replace(RECORD, tasks=()), 64, EVERYTHING).annotations
    assert not annotations.boxes_known
    assert not annotations.has_mask.any()
    assert not annotations.instances.any()
    assert (annotations.keypoints[..., 2] == -1).all()
    assert np.isnan(annotations.image_labels).all()
    plain = replace(RECORD.objects, masks=None, keypoints=None, identities=None)
    absent = make_tile(replace(RECORD, objects=plain), 64, EVERYTHING).annotations
    assert absent.boxes_known
    assert not absent.has_mask.any()
    assert (absent.keypoints[..., 2] == -1).all()
    assert (absent.identities == -1).all()


@pytest.mark.parametrize("keypoint_count", [0, len(KEYPOINT_NAMES)])
def test_a_background_has_empty_arrays(keypoint_count):
    objects = RECORD.objects
    empty = replace(
        objects,
        boxes_xyxy=objects.boxes_xyxy[:0],
        labels=objects.labels[:0],
        crowd=objects.crowd[:0],
        areas=objects.areas[:0],
        masks=(),
        keypoints=np.zeros((0, keypoint_count, 3), np.float32),
        identities=objects.identities[:0],
    )
    annotations = make_tile(replace(RECORD, objects=empty, tasks=ALL_TASKS), 64, EVERYTHING).annotations
    assert annotations.keypoints.shape == (0, len(KEYPOINT_NAMES), 3)
    assert annotations.identities.shape == annotations.has_mask.shape == (0,)
    assert annotations.instances.shape == (64, 64)
    assert not annotations.instances.any()


def test_the_cache_counts_pixels_and_maps():
    plain, mapped = (make_tile(coded_record(0, 64, 64), 64, label_spec) for label_spec in (LabelSpec(), EVERYTHING))
    assert plain.nbytes == 3 * 64 * 64
    assert mapped.nbytes == 5 * 64 * 64
    for tile, kept in ((plain, 5), (mapped, 3)):
        cache, made = TileCache(5 * plain.nbytes), []

        def make(tile: Tile = tile, made: list[Tile] = made) -> Tile:
            made.append(tile)
            return tile

        for record in range(8):
            cache.get(record, make)
        for record in reversed(range(8)):
            cache.get(record, make)
        assert len(made) == 16 - kept, "a full cache keeps the latest tiles, and every other tile is made again"
    assert len(mapped.annotations.labels) == OBJECTS
