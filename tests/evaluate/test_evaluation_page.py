"""The page of an evaluation: self-contained, with every section that its data fill, and safe for hostile names."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from yolor_ray.data.shards.dataset import Dataset, open_dataset
from yolor_ray.evaluate.detections import DETECTIONS_FILE, from_parquet, to_parquet
from yolor_ray.evaluate.page.embedding_map import EMBEDDINGS_FILE, embeddings_parquet
from yolor_ray.evaluate.page.page import BEST, WORST, Subject, report_page
from yolor_ray.evaluate.page.pictures import Box, zoomed_picture
from yolor_ray.evaluate.predict import read_annotations
from yolor_ray.evaluate.retrieval import IdentifiedObjects, LocatedObjects
from yolor_ray.pack.run import pack_scenes
from yolor_ray.report.colours import colour

IMAGES = 20


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    url = str(tmp_path_factory.mktemp("scenes"))
    pack_scenes(url, IMAGES, seed=4, size_px=96)
    return open_dataset(url)


def files_of(dataset: Dataset, *, shift_px: float = 0.0) -> dict[str, bytes]:
    """Make the report's files of detections that are the annotations, on every second image moved aside."""
    rows = []
    for image_id, record in enumerate(read_annotations(dataset)):
        for box, label in zip(record.objects.boxes_xyxy.tolist(), record.objects.labels.tolist(), strict=True):
            x1, y1, x2, y2 = np.array(box) + (shift_px if image_id % 2 else 0)
            rows.append({"image_id": image_id, "category_id": label, "score": 0.9, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    classes = {name: {"AP": 0.5, "AP50": 0.6, "objects": 3, "confidence": 0.4} for name in dataset.classes}
    numbers = {"AP": 0.5, "AP50": 0.6, "pose/AP": None, "classes": classes}
    return {"metrics.json": json.dumps(numbers).encode(), DETECTIONS_FILE: to_parquet(rows)}


def test_a_page_shows_every_section_and_loads_nothing(dataset):
    history = [{"epoch": epoch, "loss": 3.0 / epoch, "AP": 0.1 * epoch, "AP50": 0.2 * epoch} for epoch in (1, 2, 3)]
    page = report_page(dataset, files_of(dataset, shift_px=30.0), Subject("Run sea", {"Settings": "--optim.lr 0.1"}, history)).decode()
    for title in (
        "Run sea",
        "Training",
        "Classes",
        "Errors",
        "Confusion matrix",
        "Suspected errors of the annotations",
        "Worst images",
        "Best images",
    ):
        assert f">{title}<" in page
    assert "--optim.lr 0.1" in page and all(name in page for name in dataset.classes)
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page) and "http" not in re.sub(
        r"http://www\.w3\.org|https://matplotlib\.org/", "", page
    )
    images = set(re.findall(r'<image id="image-(\d+)"', page))
    assert set(re.findall(r'<use href="#image-(\d+)"', page)) == images and len(images) <= WORST + BEST + IMAGES


def test_a_page_shows_the_map_of_embeddings_where_there_are_some(dataset):
    objects = IdentifiedObjects(np.arange(6) // 2, np.full(6, -1), np.eye(6))
    files = files_of(dataset) | {EMBEDDINGS_FILE: embeddings_parquet(LocatedObjects(objects, np.arange(6), np.zeros(6, np.int64)))}
    page = report_page(dataset, files, Subject("Run", {})).decode()
    assert ">Embeddings<" in page and page.count("<circle") == 6
    assert f"<title>individual 2, 2 objects: {dataset.classes[0]}, scene-4-000005.jpg</title>" in page
    assert ">Embeddings<" not in report_page(dataset, files_of(dataset), Subject("Run", {})).decode()


def test_a_page_of_perfect_detections_has_no_worst_image_and_no_suspect(dataset):
    page = report_page(dataset, files_of(dataset), Subject("Evaluation", {})).decode()
    assert "Worst images" not in page and "Suspected errors" not in page and "Best images" in page and ">Training<" not in page


def test_an_image_of_many_boxes_has_the_colours_of_its_classes_below(dataset):
    files = files_of(dataset)
    rows = list(from_parquet(files[DETECTIONS_FILE]))
    crowd = [row for row in rows if row["image_id"] == 0] * 9
    page = report_page(dataset, {**files, DETECTIONS_FILE: to_parquet(rows + crowd)}, Subject("Evaluation", {})).decode()
    worst, _, best = page.partition(">Worst images<")[2].partition(">Best images<")
    labels = sorted({int(row["category_id"]) for row in crowd})
    named = re.findall(r'background: ([^"]+)"></span>([^<]+)</li>', worst)
    assert named == [(colour(label), dataset.classes[label]) for label in labels]
    cards = [card for section in (worst, best) for card in section.split('<div class="card">')[1:]]
    boxes = [max(picture.count("<title>") for picture in card.split("<svg")[1:]) for card in cards]
    assert ['class="legend"' in card for card in cards] == [count > 8 for count in boxes] and min(boxes) <= 8


def test_a_page_without_a_detection_is_made(dataset):
    files = {**files_of(dataset), DETECTIONS_FILE: to_parquet([])}
    numbers = json.loads(files["metrics.json"])
    for score in numbers["classes"].values():
        score |= {"AP": 0.0, "AP50": 0.0, "confidence": None}
    page = report_page(dataset, {**files, "metrics.json": json.dumps(numbers).encode()}, Subject("Evaluation", {})).decode()
    assert "Worst images" in page and "Best images" not in page


def test_a_page_of_images_without_annotated_boxes_is_made(dataset, monkeypatch):
    monkeypatch.setattr("yolor_ray.evaluate.page.page.read_images", lambda *_: [])
    page = report_page(dataset, files_of(dataset), Subject("Evaluation", {})).decode()
    assert "nan" not in page.lower().replace("annotations", "") and "Worst images" not in page


def test_a_class_of_other_datasets_is_not_in_the_confusion_matrix(dataset):
    others = replace(dataset, classes=(*dataset.classes, "of another dataset"))
    page = report_page(others, files_of(others, shift_px=30.0), Subject("Evaluation", {})).decode()
    heads = re.findall(r"<th>([^<]*)</th>", page[page.index("Confusion matrix") :].partition("</tr>")[0])
    assert heads == [*dataset.classes, "missed"] and "of another dataset" in page and "are left out" not in page


def test_names_cannot_add_markup_to_the_page(dataset):
    hostile = "<script>alert(1)</script>"
    named = replace(dataset, classes=(hostile, *dataset.classes[1:]))
    page = report_page(named, files_of(named, shift_px=30.0), Subject(hostile, {hostile: hostile})).decode()
    assert "<script" not in page and "&lt;script" in page


@pytest.mark.parametrize(
    ("box", "size", "view"),
    [
        ((40, 40, 50, 50), (100, 100), (30, 30, 60, 60)),
        ((0, 0, 10, 10), (100, 100), (0, 0, 30, 30)),
        ((90, 40, 100, 50), (100, 100), (70, 30, 100, 60)),
        ((0, 0, 90, 40), (90, 50), (0, 0, 90, 50)),
    ],
)
def test_a_zoomed_picture_stays_inside_the_image(box, size, view):
    picture = zoomed_picture(0, box, size, [Box((0, 0, 5, 5), 0, "corner"), Box(box, 1, "own")])
    assert picture.view_xyxy == view and picture.boxes[-1].name == "own"
    assert ("corner" in [drawn.name for drawn in picture.boxes]) == (view[0] < 5 and view[1] < 5)
