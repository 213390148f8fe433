from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as run_length

from yolor_ray.data.images.letterbox import letterbox
from yolor_ray.inference.detect import Detections
from yolor_ray.inference.postprocess import mask_pixels, select_detections, to_image_detections

SIDE = 128


def _place(width, height, side=SIDE):
    return letterbox(np.zeros((height, width, 3), np.uint8), width, height, np.empty((side, side, 3), np.uint8))


def _detections(boxes_xyxy, **more):
    boxes = torch.tensor(np.asarray(boxes_xyxy), dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.linspace(0.9, 0.5, len(boxes)), torch.arange(len(boxes)) % 3, **more)


def _slow_masks(detections, place):
    """The definition, pixel by pixel: is its centre in the box, and is the logit there, bilinear between the centres of cells, above 0?"""
    prototypes = detections.prototypes.double().numpy()
    for coefficients, box in zip(
        detections.coefficients.double().numpy(), place.to_image(detections.boxes_xyxy.double().numpy()), strict=True
    ):
        logits = np.tensordot(coefficients, prototypes, 1)
        found = np.zeros((place.height, place.width), np.uint8, order="F")
        for y, x in np.ndindex(found.shape):
            u, v = np.clip(place.to_input(np.array([x, y, x, y]) + 0.5)[:2] / 4 - 0.5, 0, len(logits) - 1)
            i, j = min(int(v), len(logits) - 2), min(int(u), len(logits) - 2)
            square = logits[i : i + 2, j : j + 2]
            value = np.array([1 - v + i, v - i]) @ square @ np.array([1 - u + j, u - j])
            found[y, x] = box[0] <= x + 0.5 < box[2] and box[1] <= y + 0.5 < box[3] and value > 0
        yield run_length.encode(found)["counts"]


@pytest.mark.parametrize(("width", "height"), [(64, 48), (37, 90), (70, 70), (141, 47)])
def test_masks_are_those_of_whole_images_made_pixel_by_pixel(width, height):
    place = _place(width, height)
    torch.manual_seed(width)
    corners = torch.rand(6, 2, 2).sort(dim=1).values.reshape(6, 4) * SIDE
    corners[0] = torch.tensor([0, 0, SIDE, SIDE])
    corners[1] = torch.tensor([-9, -9, SIDE + 9, 70])
    corners[2, 2:] = corners[2, :2]
    found = _detections(corners, coefficients=torch.randn(6, 5), prototypes=torch.randn(5, SIDE // 4, SIDE // 4))
    assert to_image_detections(found, place).masks == tuple(_slow_masks(found, place))


def test_masks_that_fill_an_image_or_nothing_have_canonical_runs():
    place = _place(30, 20)
    whole = [[0, 0, SIDE, SIDE]] * 2
    found = to_image_detections(_detections(whole, coefficients=torch.tensor([[1.0], [-1.0]]), prototypes=torch.ones(1, 32, 32)), place)
    expected = [run_length.encode(np.full((20, 30), value, np.uint8, order="F"))["counts"] for value in (1, 0)]
    assert list(found.masks) == expected


def test_a_shape_in_the_network_input_comes_back_where_it_is_in_the_image():
    place = _place(200, 100, side=256)
    # Rows and columns of the input, by cell centres: a disc of radius 40 px of the image around (90, 50).
    centres = (np.arange(64) + 0.5) * 4
    points = np.stack(np.meshgrid(centres, centres), axis=-1)
    x, y, *_ = place.to_input(np.array([90, 50, 90, 50]))
    logits = torch.from_numpy(40 * place.scale - np.hypot(points[..., 0] - x, points[..., 1] - y)).float()
    box = place.to_input(np.array([50, 10, 130, 90]))
    mask = to_image_detections(_detections(box, coefficients=torch.ones(1, 1), prototypes=logits[None]), place).masks[0]
    rows, columns = np.mgrid[:100, :200] + 0.5
    expected = np.hypot(columns - 90, rows - 50) < 40
    assert (mask_pixels(mask, 100, 200) != expected).sum() < 0.01 * expected.sum()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999, 1.0])
def test_run_lengths_are_read_as_pycocotools_writes_them(share):
    pixels = np.asfortranarray(np.random.default_rng(3).random((211, 97)) < share)
    pixels[100:150, 20:60] = share > 0
    counts = run_length.encode(pixels.astype(np.uint8, order="F"))["counts"]
    assert (mask_pixels(counts, 211, 97) == pixels).all()


def test_some_objects_are_taken_with_all_that_is_known_of_them():
    found = _detections(np.tile([0, 0, 9, 9], (3, 1)), embeddings=torch.eye(3), keypoints=torch.rand(3, 2, 3), image_labels=torch.ones(4))
    located = replace(to_image_detections(found, _place(50, 40)), masks=(b"a", b"b", b"c"))
    part = select_detections(located, np.array([True, False, True]))
    assert part.masks == (b"a", b"c") and part.labels.tolist() == [0, 2]
    assert part.embeddings.tolist() == [[1, 0, 0], [0, 0, 1]] and part.keypoints.shape == (2, 2, 3)
    assert part.image_labels.tolist() == [1] * 4


def test_keypoints_are_mapped_like_boxes_but_not_clipped():
    place = _place(200, 100)
    inside, outside = place.to_input(np.array([[20, 30, 150, 80], [-40, -10, 230, 120]])).reshape(2, 2, 2)
    points = torch.tensor(np.stack([inside, outside])).float()
    keypoints = torch.cat([points, torch.tensor([0.25, 0.75]).expand(2, 2)[..., None]], dim=-1)
    found = to_image_detections(_detections(np.zeros((2, 4)), keypoints=keypoints), place).keypoints
    expected = [[[20, 30, 0.25], [150, 80, 0.75]], [[-40, -10, 0.25], [230, 120, 0.75]]]
    assert found == pytest.approx(np.array(expected), abs=1e-4)


def test_what_a_network_lacks_is_none_and_masks_can_be_left_out():
    place = _place(64, 64)
    plain = to_image_detections(_detections([[0, 0, 64, 64]]), place)
    assert plain.masks is plain.keypoints is plain.embeddings is plain.image_labels is None
    assert plain.boxes_xyxy.tolist() == [[0, 0, 32, 32]]
    more = _detections([[0, 0, 64, 64]], coefficients=torch.ones(1, 1), prototypes=torch.ones(1, 32, 32), image_labels=torch.tensor([0.5]))
    assert to_image_detections(more, place, masks=False).masks is None
    assert to_image_detections(more, place, masks=False).image_labels.tolist() == [0.5]


def test_an_image_without_detections_has_no_masks():
    found = _detections(np.zeros((0, 4)), coefficients=torch.zeros(0, 2), prototypes=torch.zeros(2, 32, 32), keypoints=torch.zeros(0, 3, 3))
    located = to_image_detections(found, _place(50, 40))
    assert located.masks == () and located.keypoints.shape == (0, 3, 3)


def test_prototypes_of_another_input_are_refused():
    found = _detections([[0, 0, 9, 9]], coefficients=torch.ones(1, 1), prototypes=torch.ones(1, 16, 16))
    with pytest.raises(AssertionError, match="input 128 px"):
        to_image_detections(found, _place(50, 40))
