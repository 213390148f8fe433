"""Requests with `tile`: large images are cut, predicted in batches and merged, by the code of `predict --tile`."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from red_engine import ALL_TASKS, SIDE, RedEngine, encode_image
from yolor_ray.inference import views
from yolor_ray.serve import requests as received_requests

SQUARES = ((30, 40, 60, 70), (350, 20, 372, 44), (200, 300, 290, 380))
"""Boxes of red objects; a border of tiles of 160 px cuts the last one."""


def photo(size=(400, 400), squares=SQUARES):
    image = Image.new("RGB", size, (40, 60, 90))
    for x1, y1, x2, y2 in squares:
        ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=(230, 20, 20))
    return image


PHOTO = encode_image(photo(), "PNG")


def boxes(answer):
    assert answer.status_code == 200, answer.text
    return sorted(detection["box"] for detection in answer.json()["detections"])


def test_objects_of_a_tiled_image_are_found_one_by_one_in_its_pixels(client):
    whole = boxes(client.post(PHOTO))
    assert len(whole) == 1, "the engine finds the rectangle around all that is red"
    for overlap in ("", "&overlap=0.5"):
        found = boxes(client.post(PHOTO, query=f"?tile=160{overlap}"))
        assert found == pytest.approx(np.array(sorted(SQUARES)), abs=1)


def test_the_engine_gets_batches_of_tiles_and_at_most_a_batch_at_a_time(serve):
    engine = RedEngine()
    with serve(engine, max_batch=4) as client:
        body = client.post(PHOTO, query="?tile=160&overlap=0").json()
        assert sum(map(len, engine.batches)) == 9 and max(map(len, engine.batches)) <= 4
        assert set(body["timing_ms"]) == {"body", "decode", "queue", "network", "answer"}
        assert body["timing_ms"]["queue"] >= 0
        engine.batches.clear()
        small = client.post(encode_image(photo((150, 100), ((10, 20, 30, 40),)), "PNG"), query="?tile=160")
        assert list(map(len, engine.batches)) == [1] and boxes(small) == [pytest.approx([10, 20, 30, 40], abs=1)]


def test_masks_keypoints_and_labels_of_a_tiled_image_are_those_of_the_image(serve):
    with serve(RedEngine(tasks=ALL_TASKS)) as client:
        body = client.post(PHOTO, query="?tile=160").json()
        assert len(body["detections"]) == 3 and len(body["labels"]) == 3
        for detection in body["detections"]:
            x1, y1, x2, y2 = detection["box"]
            assert detection["mask"]["rle"]["size"] == [400, 400]
            assert detection["mask"]["area"] == pytest.approx((x2 - x1) * (y2 - y1), rel=0.25)
            assert [detection["keypoints"][0][axis] for axis in "xy"] == pytest.approx([x1, y1], abs=1)
        assert "labels" not in client.post(PHOTO, query="?tile=160&labels=false").json()


def test_the_limits_of_a_request_hold_for_the_image(client):
    assert len(boxes(client.post(PHOTO, query="?tile=160&max_detections=2"))) == 2
    assert boxes(client.post(PHOTO, query="?tile=160&confidence=0.95")) == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("tile=63", "tile: found '63', expected a whole number from 64 to 65536"),
        ("tile=0", "tile: found '0'"),
        ("tile=many", "tile: found 'many'"),
        ("tile=160&overlap=0.6", "overlap: found '0.6', expected a number from 0 to 0.5"),
        ("tile=160&overlap=nan", "overlap: found 'nan'"),
    ],
)
def test_a_wrong_tile_or_overlap_is_named(client, query, message):
    answer = client.post(PHOTO, query=f"?{query}")
    assert answer.status_code == 422 and message in answer.json()["message"]


def test_too_many_tiles_are_refused_before_decoding(serve, monkeypatch):
    monkeypatch.setattr(received_requests, "open_image", lambda *_, **__: pytest.fail("decoded"))
    with serve() as client:
        answer = client.post(encode_image(Image.new("RGB", (1000, 1000)), "PNG"), query="?tile=64&overlap=0.5")
        assert (answer.status_code, answer.json()["code"]) == (422, "too_many_tiles")
        assert "found 961 tiles, expected at most 256" in answer.json()["message"]


def test_tiles_are_cut_when_they_are_taken():
    image = views.open_image(PHOTO, SIDE, views.Tiling(160, 0.0))
    assert (image.view_count, image.width, image.height) == (9, 400, 400)
    first = next(image.views)
    assert first.tile.xyxy.tolist() == [0, 0, 160, 160] and first.pixels.shape == (SIDE, SIDE, 3)
    assert len(list(image.views)) == 8
