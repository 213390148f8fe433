"""The page of a health report: self-contained, escaped, with pictures of findings and labels; and when it is written."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import packed
from yolor_ray.config import PackCheckConfig, PackScenesConfig, PackYoloConfig
from yolor_ray.data.images.decode import decode
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.pack.health.pictures import CROP_PX, HIGHLIGHT, IMAGE_PX, Picture, draw
from yolor_ray.pack.run import pack, pack_scenes
from yolor_ray.report.colours import rgb

JOB = Path(__file__).resolve().parents[3] / "jobs" / "pack.py"
NAMES = {"image_classes": ("tall", "wide"), "keypoint_names": ("first", "last", "tail")}


def pictures(page: str) -> list[np.ndarray]:
    return [decode(base64.b64decode(text)) for text in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("set")
    packed.pack(str(folder), [[packed.rich_record(index) for index in range(24)]], **NAMES)
    pack(PackCheckConfig(url=str(folder)))
    return (folder / "health.html").read_text()


def test_the_page_loads_nothing_and_runs_no_script(page):
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"|url\((?!data:)|@import|<script|http', page) == []


def test_the_page_has_pictures_of_every_class_label_and_individual(page):
    for title in ("Objects of each class", "Individuals", "Images of each label", "Images with their annotations"):
        assert f"<h2>{title}</h2>" in page
    shown = pictures(page)
    assert len(shown) > 20
    assert max(max(picture.shape) for picture in shown) == IMAGE_PX


def test_names_from_data_are_escaped(tmp_path):
    packed.pack(str(tmp_path), [[packed.square_record(0)]], classes=("<script>alert(1)</script>", 'a"b'))
    pack(PackCheckConfig(url=str(tmp_path)))
    page = (tmp_path / "health.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_picture_of_an_object_shows_the_object_in_the_colour_of_its_class():
    record = packed.square_record(2)
    box = tuple(record.objects.boxes_xyxy[0].tolist())
    picture = decode(draw(Picture(0, 2, box), record))
    assert max(picture.shape) == CROP_PX
    assert np.abs(picture.astype(int) - rgb(1)).sum(axis=2).min() < 60
    highlighted = decode(draw(Picture(0, 2, box, (box,)), record))
    assert np.abs(highlighted.astype(int) - HIGHLIGHT).sum(axis=2).min() < 60


def test_masks_are_drawn_where_they_are():
    record = packed.rich_record(2)
    picture = decode(draw(Picture(0, 2), record)).astype(int)
    scale = picture.shape[1] / record.width
    x1, y1, x2, y2 = (record.objects.boxes_xyxy[0] * scale).astype(int)
    inside = picture[y1 + 8 : y2 - 8, x1 + 8 : x2 - 8].reshape(-1, 3)
    expected = 0.6 * 255 + 0.4 * np.array(rgb(1))
    np.testing.assert_allclose(np.median(inside, axis=0), expected, atol=8)


def test_an_extremely_long_image_has_a_small_picture():
    record = packed.square_record(0)
    long = draw(Picture(0, 0, (0, 0, 1, 1)), record)
    assert max(decode(long).shape) <= IMAGE_PX


def test_every_pack_ends_with_a_report_and_the_same_pack_keeps_it(yolo_set, tmp_path):
    config = PackYoloConfig(**yolo_set(), output=str(tmp_path / "out"))
    result = pack(config)
    assert result["health"] == str(tmp_path / "out" / "health.html")
    pack(PackCheckConfig(url=config.output, image_px=64))
    assert pack(config) == result
    assert json.loads((tmp_path / "out" / "health.json").read_text())["image_px"] == 64
    for name in ("health.html", "health.json"):
        (tmp_path / "out" / name).unlink()
        pack(config)
        assert (tmp_path / "out" / "health.html").exists(), name
    (tmp_path / "out" / "health.json").write_text("{")
    pack(config)
    report = json.loads((tmp_path / "out" / "health.json").read_text())
    assert (report["image_px"], report["digest"]) == (640, open_dataset(config.output).digest)


def test_scenes_on_demand_have_no_report_but_packed_scenes_have(tmp_path):
    assert "health" not in pack_scenes(str(tmp_path / "demand"), 2, seed=0, size_px=64)
    assert not (tmp_path / "demand" / "health.html").exists()
    assert pack(PackScenesConfig(output=str(tmp_path / "packed"), count=2, size_px=64))["health"]


def test_the_report_of_another_folder_leaves_the_dataset_alone(squares, tmp_path):
    result = pack(PackCheckConfig(url=squares.url, output=str(tmp_path)))
    assert result["health"] == str(tmp_path / "health.html")
    assert not Path(squares.url, "health.json").exists()


def test_the_job_prints_its_result_and_exits_with_1_for_a_finding_and_with_2_for_an_unknown_code(squares, tmp_path):
    def run(*flags: str) -> subprocess.CompletedProcess:
        words = [sys.executable, str(JOB), "check", squares.url, "--output", str(tmp_path), *flags]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)

    failed = run("--fail-on", "class_without_boxes")
    assert (failed.returncode, json.loads(failed.stdout.splitlines()[-1])["findings"]["class_without_boxes"]) == (1, 1)
    assert "CheckFailed: " in failed.stderr and "Traceback" not in failed.stderr
    assert run("--fail-on", "nonsense").returncode == 2
