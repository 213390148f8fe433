"""Annotations of letterboxed images, in pixels of the network input."""

import numpy as np
import pytest

from coded import ALL_TASKS, OBJECTS, coded_record, level_of
from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.data.augment.letterboxed import letterboxed_annotations
from yolor_ray.data.images.decode import decode
from yolor_ray.data.images.letterbox import letterbox

SIDE = 64
MASKS = LabelSpec(masks=True)


def letterboxed(width: int, height: int):
    record = coded_record(0, width, height, tasks=ALL_TASKS)
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    box = letterbox(decode(record.image), width, height, image)
    return record, image, box, letterboxed_annotations(record, image, box, MASKS)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 90), (90, 128), (100, 33), (61, 128)])
def test_boxes_and_masks_lie_on_the_objects_of_the_letterboxed_image(width, height):
    record, image, box, annotations = letterboxed(width, height)
    assert len(annotations.labels) == OBJECTS
    np.testing.assert_allclose(annotations.boxes_xyxy, box.to_input(record.objects.boxes_xyxy), atol=0.75)
    assert annotations.instances.shape == (SIDE, SIDE)
    for index, label in enumerate(annotations.labels.tolist()):
        grey = image[annotations.instances == index + 1].mean(axis=-1)
        assert annotations.has_mask[index]
        assert np.median(grey) == pytest.approx(level_of(label), abs=1)


def test_boxes_that_training_would_drop_are_dropped():
    record, image, box, full = letterboxed(64, 64)
    corners = record.objects.boxes_xyxy.copy()
    corners[0, 2:] = corners[0, :2] + 1.5
    record.objects.boxes_xyxy[:] = corners
    assert letterboxed_annotations(record, image, box, LabelSpec()).labels.tolist() == full.labels.tolist()[1:]
