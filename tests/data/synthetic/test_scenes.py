"""Check that the annotations of the built-in scenes are what the pixels show."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.header import read_header, without_warnings
from yolor_ray.data.shards.records import Record
from yolor_ray.data.synthetic import paint, scenes, shapes
from yolor_ray.data.synthetic.shapes import Pose

COUNT = 60


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [scenes.scene(index) for index in range(COUNT)]


def masks_of(record: Record) -> np.ndarray:
    runs = [{"size": [record.height, record.width], "counts": counts} for counts in record.objects.masks]
    with without_warnings():  # pycocotools' own, about NumPy's copy keyword
        return coco_mask.decode(runs).transpose(2, 0, 1).astype(bool)


def test_the_same_index_and_seed_give_the_same_record(records):
    again = scenes.scene(7, 0)
    assert again.image == records[7].image
    assert again.name == records[7].name
    for one, other in zip(dataclasses.astuple(again.objects), dataclasses.astuple(records[7].objects), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("other", [(8, 0), (7, 1)])
def test_another_index_or_seed_gives_another_scene(other, records):
    assert scenes.scene(*other).image != records[7].image
    assert scenes.scene(*other).name != records[7].name


@pytest.mark.parametrize("size_px", [64, 320, 640])
def test_the_image_has_the_size_that_the_record_says(size_px):
    record = scenes.scene(0, size_px=size_px)
    header = read_header(record.image)
    assert (header.format, header.width, header.height) == ("JPEG", size_px, size_px)
    assert decode(record.image).shape == (record.height, record.width, 3)


def test_everything_is_annotated_on_every_scene(records):
    assert {record.tasks for record in records} == {("classify", "detect", "embed", "pose", "segment")}


def test_boxes_are_the_exact_bounds_of_the_masks_and_areas_their_pixels(records):
    for record in records:
        for box, area, mask in zip(record.objects.boxes_xyxy, record.objects.areas, masks_of(record), strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert area == mask.sum()


def test_no_pixel_belongs_to_two_objects(records):
    overlaps = [masks_of(record).sum(axis=0).max() for record in records]
    assert max(overlaps) == 1


def test_an_object_before_another_takes_its_pixels():
    rng = np.random.default_rng(1)
    toys = next(t for t in (scenes._place(rng, 320, np.zeros((320, 320), bool)) for _ in range(50)) if any(_hidden(toy) > 100 for toy in t))
    for nearer, toy in pairwise(toys):
        assert not (nearer.visible & toy.visible).any()
        assert not (toy.visible & toy.in_front).any()


def _hidden(toy: scenes._Toy) -> int:
    whole = np.zeros_like(toy.visible)
    whole[toy.shape.rows, toy.shape.columns] = toy.shape.alpha >= 0.5
    return int((whole & ~toy.visible).sum())


def test_every_drawn_object_is_seen_well_enough_to_be_annotated():
    rng = np.random.default_rng(2)
    seen = [toy.visible.sum() / toy.shape.area for _ in range(30) for toy in scenes._place(rng, 320, np.zeros((320, 320), bool))]
    assert min(seen) >= scenes.LEAST_VISIBLE
    assert min(seen) < 0.6, "no object was ever hidden: the test shows nothing"


def test_a_mask_covers_what_the_object_changed_in_the_picture(monkeypatch):
    """Leave one object out of the painting, keep all else: the pixels that change are its mask, its rim and its shadow."""
    monkeypatch.setattr(paint, "photograph", lambda rng, canvas, light: (canvas.clip(0, 1).transpose(1, 2, 0) * 255).astype(np.uint8))
    monkeypatch.setattr(paint, "cast_shadow", lambda *arguments: None)
    rng = np.random.default_rng(3)
    cover = np.zeros((320, 320), np.float32)
    toys = scenes._place(rng, 320, cover > 0.5)
    with_all = scenes._render(np.random.default_rng(4), toys, 0, cover, "day")
    for toy in toys:
        without = scenes._render(np.random.default_rng(4), [other for other in toys if other is not toy], 0, cover, "day")
        changed = np.abs(with_all - without).max(axis=2) > 8
        agreement = (changed & toy.visible).sum() / (changed | toy.visible).sum()
        assert agreement > 0.85, toy.kind


def test_keypoints_belong_to_persons_and_tell_seen_from_hidden(records):
    person = scenes.CLASSES.index("person")
    counts = np.zeros(3, int)
    for record in records:
        shown = masks_of(record)
        for label, points, mask in zip(record.objects.labels, record.objects.keypoints, shown, strict=True):
            visibility = points[:, 2].astype(int)
            if label != person:
                assert not points.any()
                continue
            counts += np.bincount(visibility, minlength=3)
            columns, rows = points[:, :2].astype(int).T
            assert mask[rows[visibility == 2], columns[visibility == 2]].all()
            assert not mask[rows[visibility == 1], columns[visibility == 1]].any()
            assert not points[visibility == 0].any()
    assert (counts > 5).all(), f"visibilities {counts}: each should occur"


def test_keypoints_turn_with_the_person():
    upright = Pose(100, 100, 50, 0, (0.0, 0.0, 1.5, 1.5))
    head, left_hand, right_hand, left_foot, _ = shapes.keypoints(upright)
    assert np.allclose(head, (100, 64))
    assert np.allclose(left_hand, (135, 84))
    assert np.allclose(right_hand, (65, 84))
    assert left_foot[1] > 130
    turned = shapes.keypoints(dataclasses.replace(upright, angle=np.pi / 2))
    assert np.allclose(turned[0], (136, 100)), "a quarter turn clockwise puts the head on the right"
    shape = shapes.outline("person", dataclasses.replace(upright, angle=0.4), 200)
    for x, y in shapes.keypoints(dataclasses.replace(upright, angle=0.4)):
        assert shape.alpha[int(y) - shape.rows.start, int(x) - shape.columns.start] == 1


@pytest.mark.parametrize("kind", scenes.CLASSES)
def test_a_shape_is_as_large_as_its_pose_says_and_does_not_grow_when_cut(kind):
    whole = shapes.outline(kind, Pose(160, 160, 60, 0.3, (0.5, 0.5, 1.2, 1.2)), 320)
    cut = shapes.outline(kind, Pose(0, 160, 60, 0.3, (0.5, 0.5, 1.2, 1.2)), 320)
    assert whole.area == pytest.approx(whole.alpha.sum(), rel=1e-5)
    assert cut.area == pytest.approx(whole.area, rel=1e-3)
    assert cut.alpha.sum() < 0.75 * cut.area
    rows, columns = np.nonzero(whole.alpha > 0.5)
    assert 60 < max(np.ptp(rows), np.ptp(columns)) <= 2 * 60
    assert shapes.outline(kind, Pose(-200, 160, 60, 0), 320) is None


def test_an_individual_keeps_class_and_look_in_every_scene(records):
    classes: dict[int, set[int]] = {}
    for record in records:
        assert len(set(record.objects.identities.tolist())) == len(record.objects.identities)
        for identity, label in zip(record.objects.identities.tolist(), record.objects.labels.tolist(), strict=True):
            classes.setdefault(identity, set()).add(label)
    assert all(len(labels) == 1 for labels in classes.values())
    assert set(classes) == set(range(scenes.IDENTITIES))
    one, same, other = (np.ravel(dataclasses.astuple(paint.look(*who))[0]) for who in ((0, 5), (0, 5), (0, 11)))
    assert np.array_equal(one, same)
    assert not np.allclose(one, other, atol=0.02)
    assert not np.allclose(one, paint.look(1, 5).first.ravel(), atol=0.02), "another seed has other individuals"


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
    assert night > 25, "a night in which nothing can be seen teaches nothing"
