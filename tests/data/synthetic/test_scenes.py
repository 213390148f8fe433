"""Annotations of the built-in scenes agree with the pixels."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.header import read_header
from yolor_ray.data.rle import decode_mask
from yolor_ray.data.shards.records import Record
from yolor_ray.data.synthetic import paint, scenes, shapes
from yolor_ray.data.synthetic.shapes import Pose

COUNT = 60


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [scenes.scene(index) for index in range(COUNT)]


def masks_of(record: Record) -> np.ndarray:
    return np.stack([decode_mask(counts, record.width, record.height) for counts in record.objects.masks])


def test_the_same_index_and_seed_give_the_same_record(records):
    again = scenes.scene(7, 0)
    assert again.image == records[7].image
    assert again.name == records[7].name
    for values, expected in zip(dataclasses.astuple(again.objects), dataclasses.astuple(records[7].objects), strict=True):
        assert np.array_equal(values, expected)


@pytest.mark.parametrize("other", [(8, 0), (7, 1)])
def test_another_index_or_seed_gives_another_scene(other, records):
    assert scenes.scene(*other).image != records[7].image
    assert scenes.scene(*other).name != records[7].name


@pytest.mark.parametrize("size_px", [64, 320, 640])
def test_the_image_has_the_size_in_its_record(size_px):
    record = scenes.scene(0, size_px=size_px)
    header = read_header(record.image)
    assert (header.format, header.width, header.height) == ("JPEG", size_px, size_px)
    assert decode(record.image).shape == (record.height, record.width, 3)


def test_every_scene_is_annotated_for_all_tasks(records):
    assert {record.tasks for record in records} == {("classify", "detect", "embed", "pose", "segment")}


def test_boxes_are_the_exact_bounds_of_masks_and_areas_count_their_pixels(records):
    for record in records:
        for box, area, mask in zip(record.objects.boxes_xyxy, record.objects.areas, masks_of(record), strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert area == mask.sum()


def test_no_pixel_belongs_to_two_objects(records):
    overlaps = [masks_of(record).sum(axis=0).max() for record in records]
    assert max(overlaps) == 1


def test_an_object_in_front_hides_the_pixels_behind_it():
    rng = np.random.default_rng(1)
    drawn = (scenes._place_toys(rng, 320, np.zeros((320, 320), bool)) for _ in range(50))
    toys = next(toys for toys in drawn if any(_hidden(toy) > 100 for toy in toys))
    for nearer, toy in pairwise(toys):
        assert not (nearer.visible & toy.visible).any()
        assert not (toy.visible & toy.in_front).any()


def _hidden(toy: scenes._Toy) -> int:
    """Count the pixels of a toy that other objects hide."""
    covered = np.zeros_like(toy.visible)
    covered[toy.shape.rows, toy.shape.columns] = toy.shape.alpha >= 0.5
    return int((covered & ~toy.visible).sum())


def test_every_drawn_object_is_visible_enough():
    rng = np.random.default_rng(2)
    shares = [toy.visible.sum() / toy.shape.area for _ in range(30) for toy in scenes._place_toys(rng, 320, np.zeros((320, 320), bool))]
    assert min(shares) >= scenes.MIN_VISIBLE_SHARE
    assert min(shares) < 0.6, "no object was hidden, so the test proves nothing"


def test_a_mask_covers_the_pixels_that_its_object_changes(monkeypatch):
    """Leave one object out of the painting: the pixels that change are its mask."""
    monkeypatch.setattr(paint, "photograph", lambda rng, canvas, light: (canvas.clip(0, 1).transpose(1, 2, 0) * 255).astype(np.uint8))
    monkeypatch.setattr(paint, "cast_shadow", lambda *arguments: None)
    rng = np.random.default_rng(3)
    grass = np.zeros((320, 320), np.float32)
    toys = scenes._place_toys(rng, 320, grass > 0.5)
    with_all = scenes._render(np.random.default_rng(4), toys, 0, grass, "day")
    for toy in toys:
        without = scenes._render(np.random.default_rng(4), [other for other in toys if other is not toy], 0, grass, "day")
        changed = np.abs(with_all - without).max(axis=2) > 8
        agreement = (changed & toy.visible).sum() / (changed | toy.visible).sum()
        assert agreement > 0.85, toy.class_name


def test_persons_alone_have_keypoints_and_their_visibility_is_right(records):
    person = scenes.CLASSES.index("person")
    counts = np.zeros(3, int)
    for record in records:
        for label, points, mask in zip(record.objects.labels, record.objects.keypoints, masks_of(record), strict=True):
            visibility = points[:, 2].astype(int)
            if label != person:
                assert (points == (0, 0, -1)).all()
                continue
            counts += np.bincount(visibility, minlength=3)
            columns, rows = points[:, :2].astype(int).T
            assert mask[rows[visibility == 2], columns[visibility == 2]].all()
            assert not mask[rows[visibility == 1], columns[visibility == 1]].any()
            assert not points[visibility == 0].any()
    assert (counts > 5).all(), f"visibilities {counts}: each should occur"


def test_keypoints_rotate_with_the_person():
    upright = Pose(100, 100, 50, 0, (0.0, 0.0, 1.5, 1.5))
    head, left_hand, right_hand, left_foot, _ = shapes.keypoints(upright)
    assert np.allclose(head, (100, 64))
    assert np.allclose(left_hand, (135, 84))
    assert np.allclose(right_hand, (65, 84))
    assert left_foot[1] > 130
    rotated = shapes.keypoints(dataclasses.replace(upright, angle=np.pi / 2))
    assert np.allclose(rotated[0], (136, 100)), "a quarter turn clockwise puts the head on the right"
    shape = shapes.outline("person", dataclasses.replace(upright, angle=0.4), 200)
    for x, y in shapes.keypoints(dataclasses.replace(upright, angle=0.4)):
        assert shape.alpha[int(y) - shape.rows.start, int(x) - shape.columns.start] == 1


@pytest.mark.parametrize("class_name", scenes.CLASSES)
def test_a_shape_has_the_size_of_its_pose_also_when_the_border_cuts_it(class_name):
    uncut = shapes.outline(class_name, Pose(160, 160, 60, 0.3, (0.5, 0.5, 1.2, 1.2)), 320)
    cut = shapes.outline(class_name, Pose(0, 160, 60, 0.3, (0.5, 0.5, 1.2, 1.2)), 320)
    assert uncut.area == pytest.approx(uncut.alpha.sum(), rel=1e-5)
    assert cut.area == pytest.approx(uncut.area, rel=1e-3)
    assert cut.alpha.sum() < 0.75 * cut.area
    rows, columns = np.nonzero(uncut.alpha > 0.5)
    assert 60 < max(np.ptp(rows), np.ptp(columns)) <= 2 * 60
    assert shapes.outline(class_name, Pose(-200, 160, 60, 0), 320) is None


def test_an_individual_keeps_class_and_look_in_every_scene(records):
    classes: dict[int, set[int]] = {}
    for record in records:
        assert len(set(record.objects.identities.tolist())) == len(record.objects.identities)
        for identity, label in zip(record.objects.identities.tolist(), record.objects.labels.tolist(), strict=True):
            classes.setdefault(identity, set()).add(label)
    assert all(len(labels) == 1 for labels in classes.values())
    assert set(classes) == set(range(scenes.IDENTITIES))
    colour, again, of_other = (np.ravel(paint.look(*individual).first) for individual in ((0, 5), (0, 5), (0, 11)))
    assert np.array_equal(colour, again)
    assert not np.allclose(colour, of_other, atol=0.02)
    assert not np.allclose(colour, paint.look(1, 5).first.ravel(), atol=0.02), "another seed has other individuals"


def test_every_class_light_and_scale_occurs(records):
    labels = np.concatenate([record.objects.labels for record in records])
    assert np.bincount(labels, minlength=len(scenes.CLASSES)).min() > COUNT / 3
    lights = np.concatenate([record.image_labels for record in records])
    assert np.bincount(lights, minlength=len(scenes.IMAGE_CLASSES)).min() > COUNT / 6
    sides = np.concatenate([np.ptp(r.objects.boxes_xyxy.reshape(-1, 2, 2), axis=1).max(axis=1) for r in records]) / 320
    assert sides.min() < 0.09
    assert sides.max() > 0.4


def test_a_night_is_darker_than_a_day(records):
    brightness = [[], [], []]
    for record in records:
        brightness[record.image_labels[0]].append(decode(record.image).mean())
    day, dusk, night = map(np.mean, brightness)
    assert day > 1.2 * dusk > 1.2 * night
    assert night > 25, "objects must stay visible at night"
