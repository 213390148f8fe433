"""The pictures of the most interesting images."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from colour_engine import draw, write_weights
from yolor_ray.io import manifest
from yolor_ray.predict import sources
from yolor_ray.predict.run import predict


@pytest.fixture
def crowd(photos):
    """Add an image with more detections than the others."""
    draw((200, 100), [("red", 10 + 45 * place, 20, 40 + 45 * place, 60) for place in range(4)]).save(photos / "crowd.png")
    return photos


def pictures(url):
    return {name: data for name, data in manifest.read_published(url).items() if name.startswith("drawn/")}


@pytest.mark.usefixtures("crowd")
@pytest.mark.parametrize("part_images", [1, 64])
def test_images_with_the_most_doubtful_detections_are_drawn_first(part_images, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_IMAGES", part_images)
    predict(settings(draw=2, confidence=0.6))
    drawn = pictures(str(tmp_path / "out"))
    assert list(drawn) == ["drawn/1_crowd.png", "drawn/2_0.png"]
    with Image.open(BytesIO(drawn["drawn/1_crowd.png"])) as picture:
        assert picture.width == 640 and picture.height == pytest.approx(320 + 46, abs=1)
        pixels = np.asarray(picture.convert("RGB"))
    blue_line = (np.abs(pixels[:320].astype(int) - (0x2F, 0x8D, 0xFF)).max(axis=2) < 40).any(axis=0)
    assert blue_line[32:128].mean() > 0.9, "the box of the first rectangle"


@pytest.mark.usefixtures("crowd")
def test_without_doubt_the_images_with_the_most_detections_are_drawn(settings, tmp_path):
    predict(settings(draw=1))
    assert list(pictures(str(tmp_path / "out"))) == ["drawn/1_crowd.png"]


def test_a_detection_just_over_the_best_confidence_of_its_class_is_doubtful(settings, photos, tmp_path):
    draw((200, 100), [("red", 10, 20, 60, 70), ("red", 100, 20, 160, 90)]).save(photos / "reds.png")
    draw((200, 100), [("blue", 10 + 45 * place, 20, 40 + 45 * place, 60) for place in range(4)]).save(photos / "blues.png")
    weights = write_weights(tmp_path / "best", thresholds={"red": 0.7, "blue": 0.1})
    predict(settings(draw=1, weights=weights))
    assert list(pictures(str(tmp_path / "out"))) == ["drawn/1_reds.png"]


def test_other_pictures_replace_the_former_ones_and_need_no_prediction(settings, tmp_path):
    predict(settings(draw=3))
    predict(settings(draw=1))
    assert [path.name for path in (tmp_path / "out" / "drawn").iterdir()] == ["1_0.png"]
    assert list(pictures(str(tmp_path / "out"))) == ["drawn/1_0.png"]


def test_more_pictures_than_images_and_every_task_are_drawn(settings, tmp_path, rich_weights):
    predict(settings(draw=10, weights=rich_weights))
    assert [name[:8] for name in pictures(str(tmp_path / "out"))] == [f"drawn/{rank:02d}" for rank in range(1, 6)]
