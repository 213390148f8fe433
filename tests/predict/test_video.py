"""Frames of a video: their times and places, and a video that is turned, cut or no video at all."""

import json

import numpy as np
import pytest

from colour_engine import draw
from yolor_ray.errors import ConfigError, DataError
from yolor_ray.predict import video
from yolor_ray.predict.run import predict
from yolor_ray.predict.video import video_parts

av = pytest.importorskip("av")
IDENTITY = (1, 0, 0, 1)
CLOCKWISE = (0, 1, -1, 0)


def write_video(path, seconds=6, rate=10, size=(192, 96), codec="mpeg4", **options):
    """Write a video whose red rectangle moves by 2 pixels from frame to frame."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=rate, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        for number in range(seconds * rate):
            picture = draw(size, [("red", 8 + 2 * number, 16, 40 + 2 * number, 48)])
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "clip.mp4")


def test_a_frame_is_predicted_every_so_many_seconds_with_boxes_of_its_time(clip, settings, rows, tmp_path):
    result = predict(settings(images=str(clip), every_s=0.5))
    assert (result["images"], result["detections"], result["faults"]) == (12, 12, {})
    found = rows(tmp_path / "out")
    assert list(found) == [f"clip.mp4#t={0.5 * number:.3f}" for number in range(12)]
    for number, row in enumerate(found.values()):
        assert (row["width"], row["height"]) == (192, 96)
        np.testing.assert_allclose(row["boxes_xyxy"], [[8 + 10 * number, 16, 40 + 10 * number, 48]], atol=4)


@pytest.mark.parametrize("every_s", [0.0, 0.1, 0.25, 1.0, 30.0])
def test_parts_of_a_video_give_the_frames_of_the_whole_once(every_s, clip, monkeypatch):
    whole = [image.name for part in video_parts(str(clip), every_s, 0) for image in part.read()]
    monkeypatch.setattr(video, "PART_IMAGES", 3)
    parts = video_parts(str(clip), every_s, 0)
    assert len(parts) == {0.0: 20, 0.1: 20, 0.25: 8, 1.0: 2, 30.0: 1}[every_s]
    assert [image.name for part in parts for image in part.read()] == whole
    assert len(whole) == {0.0: 60, 0.1: 60, 0.25: 24, 1.0: 6, 30.0: 1}[every_s]


def test_a_tiled_video_keeps_the_size_of_its_frames_and_others_are_reduced(clip):
    (reduced,), (full,) = ([part for part in video_parts(str(clip), 9.0, fit_px) if part.start_s == 0] for fit_px in (64, 0))
    first, second = next(iter(reduced.read())), next(iter(full.read()))
    assert first.size == (192, 96) and second.size is None
    assert 8 * len(first.data) < len(second.data)


def test_a_turned_video_is_predicted_as_it_is_displayed(clip, settings, rows, tmp_path):
    data = clip.read_bytes()

    def matrix(a, b, c, d):
        return np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()

    track = data.index(b"tkhd")
    place = data.index(matrix(*IDENTITY), track)
    turned = matrix(*CLOCKWISE)
    clip.write_bytes(data[:place] + turned + data[place + len(turned) :])
    predict(settings(images=str(clip), every_s=9.0))
    row = rows(tmp_path / "out")["clip.mp4#t=0.000"]
    assert (row["width"], row["height"]) == (96, 192)
    np.testing.assert_allclose(row["boxes_xyxy"], [[96 - 48, 8, 96 - 16, 40]], atol=4)


def test_a_file_without_a_duration_is_read_to_its_end(tmp_path, settings):
    stream = write_video(tmp_path / "raw.ts", codec="mpeg2video", format="mpegts")
    assert predict(settings(images=str(stream)))["images"] == 6


def test_the_missing_end_of_a_video_is_a_fault(tmp_path, settings, monkeypatch):
    clip = write_video(tmp_path / "clip.mp4", options={"movflags": "faststart"})
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(video, "PART_IMAGES", 1)
    result = predict(settings(images=str(clip)))
    assert result["images"] in (2, 3) and result["faults"]["broken_image"] >= 2
    faults = [json.loads(line) for line in (tmp_path / "out" / "faults.jsonl").read_text().splitlines()]
    assert all(fault["image"].startswith("clip.mp4#t=") and fault["file"].startswith(f"{clip}#t=") for fault in faults)


def test_a_file_that_is_no_video_and_a_machine_without_pyav_are_refused(tmp_path, settings, clip, monkeypatch):
    (tmp_path / "no.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(DataError, match=r"no\.mp4: found no video that can be read"):
        predict(settings(images=str(tmp_path / "no.mp4")))
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="no package av, expected it; install with: pip install av"):
        predict(settings(images=str(clip)))
