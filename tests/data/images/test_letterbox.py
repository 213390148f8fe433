"""Letterboxing of decoded images, and boxes converted to the input and back."""

import cv2
import numpy as np
import pytest
from PIL import Image

from pictures import distance, encode
from yolor_ray.data.images.decode import FILL, decode
from yolor_ray.data.images.letterbox import Letterbox, letterbox
from yolor_ray.data.synthetic import scenes


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_extreme_shapes_decode_and_fit(name, size):
    data = encode(Image.new("RGB", size, (200, 10, 10)), name)
    out = np.empty((320, 320, 3), np.uint8)
    position = letterbox(decode(data, fit_px=320), *size, out)
    image_box = np.array(((0, 0, *size),), float)
    x1, y1, x2, y2 = position.to_input(image_box)[0]
    assert 0 <= x1 < x2 <= 320
    assert 0 <= y1 < y2 <= 320
    assert np.abs(out[int(y1) : int(y2), int(x1) : int(x2)].astype(int) - (200, 10, 10)).max() < 6
    assert np.allclose(position.to_image(position.to_input(image_box)), image_box, atol=1e-3)


@pytest.mark.parametrize(("width", "fit", "expected"), [(640, 320, 320), (640, 321, 640), (640, 100, 160), (640, 10, 80), (200, 320, 200)])
def test_a_jpeg_is_halved_while_its_long_side_covers_the_requested_size(width, fit, expected):
    data = encode(Image.new("RGB", (width, width // 2)), "JPEG")
    assert decode(data, fit_px=fit).shape[1] == expected
    assert decode(data).shape[1] == width


@pytest.mark.parametrize("side", [320, 256, 200])
def test_a_dct_scaled_letterbox_is_close_to_a_full_decode(side):
    data = scenes.scene(3, size_px=800).image
    scaled, full = np.empty((2, side, side, 3), np.uint8)
    letterbox(decode(data, fit_px=side), 800, 800, scaled)
    full[:] = cv2.resize(decode(data), (side, side), interpolation=cv2.INTER_AREA)
    assert distance(scaled, full) < 1.5


def test_a_letterboxed_image_is_centred_on_grey():
    out = np.zeros((64, 64, 3), np.uint8)
    position = letterbox(np.full((20, 40, 3), 200, np.uint8), 40, 20, out)
    assert position == Letterbox(1.6, 0, 16, 40, 20)
    assert (out[16:48] == 200).all()
    assert (out[:16] == FILL).all()
    assert (out[48:] == FILL).all()


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (17, 13), (5000, 7), (320, 320)])
def test_boxes_survive_the_conversion_to_the_input_and_back(size):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, (100, 2, 2)), axis=1).reshape(100, 4)
    boxes = corners * (size * 2)
    position = letterbox(np.zeros((size[1], size[0], 3), np.uint8), *size, np.empty((320, 320, 3), np.uint8))
    in_input = position.to_input(boxes)
    assert in_input.min() >= 0
    assert in_input.max() <= 320
    assert np.abs(position.to_image(in_input) - boxes).max() < 1e-3


def test_a_box_in_the_bars_is_clipped_to_the_image():
    position = letterbox(np.zeros((480, 640, 3), np.uint8), 640, 480, np.empty((320, 320, 3), np.uint8))
    assert position.to_image(np.array((-10.0, 0, 400, 320))).tolist() == [0, 0, 640, 480]


def test_boxes_frame_their_pixels():
    image = np.zeros((300, 500, 3), np.uint8)
    image[100:200, 250:400] = 255
    out = np.empty((320, 320, 3), np.uint8)
    x1, y1, x2, y2 = letterbox(image, 500, 300, out).to_input(np.array((250.0, 100, 400, 200)))
    lit = out[..., 0] > 150
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    assert np.abs(np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)) - (x1, y1, x2, y2)).max() < 1
