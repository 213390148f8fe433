from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as run_length

from yolor_ray.data.images.letterbox import letterbox as fit_letterbox
from yolor_ray.data.rle import decode_mask
from yolor_ray.inference.detect import Detections
from yolor_ray.inference.postprocess import select_detections, to_image_detections

SIDE = 128
ALL = np.ones((3, 1), bool)
"""Flags of three classes with all keypoints."""


def _letterbox(width, height, side=SIDE):
    return fit_letterbox(np.zeros((height, width, 3), np.uint8), width, height, np.empty((side, side, 3), np.uint8))


def _detections(boxes_xyxy, **more):
    boxes = torch.tensor(np.asarray(boxes_xyxy), dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.linspace(0.9, 0.5, len(boxes)), torch.arange(len(boxes)) % 3, **more)


def _slow_masks(detections, letterbox):
    """Make masks pixel by pixel: a pixel is inside if its centre is in the box and the bilinear logit there is above 0."""
    prototypes = detections.prototypes.double().numpy()
    for coefficients, box in zip(
        detections.coefficients.double().numpy(), letterbox.to_image(detections.boxes_xyxy.double().numpy()), strict=True
    ):
        logits = np.tensordot(coefficients, prototypes, 1)
        mask = np.zeros((letterbox.height, letterbox.width), np.uint8, order="F")
        for y, x in np.ndindex(mask.shape):
            u, v = np.clip(letterbox.to_input(np.array([x, y, x, y]) + 0.5)[:2] / 4 - 0.5, 0, len(logits) - 1)
            i, j = min(int(v), len(logits) - 2), min(int(u), len(logits) - 2)
            square = logits[i : i + 2, j : j + 2]
            value = np.array([1 - v + i, v - i]) @ square @ np.array([1 - u + j, u - j])
            mask[y, x] = box[0] <= x + 0.5 < box[2] and box[1] <= y + 0.5 < box[3] and value > 0
        yield run_length.encode(mask)["counts"]


@pytest.mark.parametrize(("width", "height"), [(64, 48), (37, 90), (70, 70), (141, 47)])
def test_masks_equal_masks_made_pixel_by_pixel(width, height):
    letterbox = _letterbox(width, height)
    torch.manual_seed(width)
    corners = torch.rand(6, 2, 2).sort(dim=1).values.reshape(6, 4) * SIDE
    corners[0] = torch.tensor([0, 0, SIDE, SIDE])
    corners[1] = torch.tensor([-9, -9, SIDE + 9, 70])
    corners[2, 2:] = corners[2, :2]
    detections = _detections(corners, coefficients=torch.randn(6, 5), prototypes=torch.randn(5, SIDE // 4, SIDE // 4))
    assert to_image_detections(detections, letterbox, ALL).masks == tuple(_slow_masks(detections, letterbox))


def test_full_and_empty_masks_have_canonical_runs():
    letterbox = _letterbox(30, 20)
    boxes = [[0, 0, SIDE, SIDE]] * 2
    detections = to_image_detections(
        _detections(boxes, coefficients=torch.tensor([[1.0], [-1.0]]), prototypes=torch.ones(1, 32, 32)), letterbox, ALL
    )
    expected = [run_length.encode(np.full((20, 30), value, np.uint8, order="F"))["counts"] for value in (1, 0)]
    assert list(detections.masks) == expected


def test_a_mask_in_the_network_input_is_mapped_to_the_image():
    letterbox = _letterbox(200, 100, side=256)
    # A disc of radius 40 px of the image around (90, 50), as logits at the cell centres of the input.
    centres = (np.arange(64) + 0.5) * 4
    points = np.stack(np.meshgrid(centres, centres), axis=-1)
    x, y, *_ = letterbox.to_input(np.array([90, 50, 90, 50]))
    logits = torch.from_numpy(40 * letterbox.scale - np.hypot(points[..., 0] - x, points[..., 1] - y)).float()
    box = letterbox.to_input(np.array([50, 10, 130, 90]))
    mask = to_image_detections(_detections(box, coefficients=torch.ones(1, 1), prototypes=logits[None]), letterbox, ALL).masks[0]
    rows, columns = np.mgrid[:100, :200] + 0.5
    expected = np.hypot(columns - 90, rows - 50) < 40
    assert (decode_mask(mask, 200, 100) != expected).sum() < 0.01 * expected.sum()


def test_selected_objects_keep_all_their_outputs():
    detections = _detections(
        np.tile([0, 0, 9, 9], (3, 1)), embeddings=torch.eye(3), keypoints=torch.rand(3, 2, 3), image_labels=torch.ones(4)
    )
    image_detections = replace(to_image_detections(detections, _letterbox(50, 40), ALL), masks=(b"a", b"b", b"c"))
    selected = select_detections(image_detections, np.array([True, False, True]))
    assert selected.masks == (b"a", b"c") and selected.labels.tolist() == [0, 2]
    assert selected.embeddings.tolist() == [[1, 0, 0], [0, 0, 1]] and selected.keypoints.shape == (2, 2, 3)
    assert selected.image_labels.tolist() == [1] * 4


def test_keypoints_are_mapped_like_boxes_but_not_clipped():
    letterbox = _letterbox(200, 100)
    inside, outside = letterbox.to_input(np.array([[20, 30, 150, 80], [-40, -10, 230, 120]])).reshape(2, 2, 2)
    points = torch.tensor(np.stack([inside, outside])).float()
    keypoints = torch.cat([points, torch.tensor([0.25, 0.75]).expand(2, 2)[..., None]], dim=-1)
    mapped = to_image_detections(_detections(np.zeros((2, 4)), keypoints=keypoints), letterbox, ALL).keypoints
    expected = [[[20, 30, 0.25], [150, 80, 0.75]], [[-40, -10, 0.25], [230, 120, 0.75]]]
    assert mapped == pytest.approx(np.array(expected), abs=1e-4)


def test_keypoints_that_a_class_does_not_have_get_no_confidence():
    flags = np.array([[True, False], [False, False], [True, True]])
    detections = _detections(np.tile([0, 0, 9, 9], (3, 1)), keypoints=torch.full((3, 2, 3), 0.75))
    mapped = to_image_detections(detections, _letterbox(50, 40), flags).keypoints
    assert mapped[..., 2].tolist() == [[0.75, 0], [0, 0], [0.75, 0.75]]


def test_outputs_of_missing_tasks_are_none_and_masks_can_be_left_out():
    letterbox = _letterbox(64, 64)
    plain = to_image_detections(_detections([[0, 0, 64, 64]]), letterbox, ALL)
    assert plain.masks is plain.keypoints is plain.embeddings is plain.image_labels is None
    assert plain.boxes_xyxy.tolist() == [[0, 0, 32, 32]]
    detections = _detections(
        [[0, 0, 64, 64]], coefficients=torch.ones(1, 1), prototypes=torch.ones(1, 32, 32), image_labels=torch.tensor([0.5])
    )
    assert to_image_detections(detections, letterbox, ALL, masks=False).masks is None
    assert to_image_detections(detections, letterbox, ALL, masks=False).image_labels.tolist() == [0.5]


def test_an_image_without_detections_has_no_masks():
    detections = _detections(
        np.zeros((0, 4)), coefficients=torch.zeros(0, 2), prototypes=torch.zeros(2, 32, 32), keypoints=torch.zeros(0, 3, 3)
    )
    image_detections = to_image_detections(detections, _letterbox(50, 40), ALL)
    assert image_detections.masks == () and image_detections.keypoints.shape == (0, 3, 3)


def test_prototypes_of_another_input_are_refused():
    detections = _detections([[0, 0, 9, 9]], coefficients=torch.ones(1, 1), prototypes=torch.ones(1, 16, 16))
    with pytest.raises(AssertionError, match="input 128 px"):
        to_image_detections(detections, _letterbox(50, 40), ALL)
