"""Two weights on the same images: differences with intervals, changed images, and the page."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from yolor_ray.config import EvaluateConfig, NetworkConfig
from yolor_ray.data.shards.dataset import Dataset, open_dataset
from yolor_ray.errors import ConfigError, DataError
from yolor_ray.evaluate.against.difference import compare_results
from yolor_ray.evaluate.against.page import difference_files
from yolor_ray.evaluate.metrics import EvalResult, measure
from yolor_ray.evaluate.predict import read_annotations
from yolor_ray.evaluate.run import evaluate
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights
from yolor_ray.pack.run import pack_scenes

IMAGES = 24


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    url = str(tmp_path_factory.mktemp("scenes"))
    pack_scenes(url, IMAGES, seed=4, size_px=96)
    return open_dataset(url)


def result_of(
    dataset: Dataset, *, seed: int, noise_px: float = 0.0, found: float = 1.0, tasks: tuple[str, ...] = ("detect",)
) -> EvalResult:
    """Measure detections that are a share of the annotated boxes, moved by noise."""
    random = np.random.default_rng(seed)
    detections = []
    for record in read_annotations(dataset):
        chosen = random.random(len(record.objects.labels)) < found
        boxes = record.objects.boxes_xyxy[chosen] + random.normal(0, noise_px, (chosen.sum(), 4))
        confidences = np.sort(random.random(chosen.sum()))[::-1].astype(np.float32)
        others = {}
        if "segment" in tasks:
            others["masks"] = tuple(mask for mask, kept in zip(record.objects.masks, chosen, strict=True) if kept)
        if "pose" in tasks:
            others["keypoints"] = record.objects.keypoints[chosen]
        detections.append(ImageDetections(boxes.astype(np.float32), confidences, record.objects.labels[chosen], **others))
    return measure(dataset, detections, tasks)


NAMES = ("weights-b", "weights-a")


def test_weights_against_themselves_differ_in_nothing(dataset):
    result = result_of(dataset, seed=0, noise_px=2.0)
    difference = compare_results(dataset, result, result, dataset.classes, NAMES)
    assert not difference.images
    assert list(difference.classes) == ["AP", "AP50", "AP75"]
    for item in (difference.metrics["AP"], *(item for classes in difference.classes.values() for item in classes.values())):
        assert (item.difference, item.low, item.high) == (0, 0, 0) and not item.beyond_noise


def test_equally_good_weights_differ_within_the_noise_and_worse_ones_beyond(dataset):
    first, second = (result_of(dataset, seed=seed, noise_px=2.0) for seed in (1, 2))
    worse = result_of(dataset, seed=3, noise_px=2.0, found=0.4)
    equal = compare_results(dataset, first, second, dataset.classes, NAMES).metrics["AP"]
    assert equal.low < 0 < equal.high and equal.low < equal.difference < equal.high
    better = compare_results(dataset, first, worse, dataset.classes, NAMES)
    assert better.metrics["AP"].low > 0 and better.metrics["AP"].beyond_noise
    assert better.metrics["AP"].difference == first.metrics["AP"] - worse.metrics["AP"]
    reverse = compare_results(dataset, worse, first, dataset.classes, NAMES).metrics["AP"]
    assert (reverse.low, reverse.high) == pytest.approx((-better.metrics["AP"].high, -better.metrics["AP"].low))


def test_differences_of_classes_are_those_of_cocos_numbers(dataset):
    first, second = (result_of(dataset, seed=seed, noise_px=2.0, found=found) for seed, found in ((1, 1.0), (2, 0.6)))
    classes = compare_results(dataset, first, second, dataset.classes, NAMES).classes
    for metric in ("AP", "AP50"):
        for name, item in classes[metric].items():
            scores = [getattr(result.boxes.classes[name], metric) for result in (first, second)]
            assert [item.value, item.other] == pytest.approx([np.nan if score < 0 else score for score in scores], nan_ok=True)
    assert any(item.low > 0 for item in classes["AP75"].values())


def test_masks_and_keypoints_have_intervals_too(dataset):
    tasks = ("detect", "segment", "pose")
    first, second = (result_of(dataset, seed=seed, found=found, tasks=tasks) for seed, found in ((1, 1.0), (2, 0.4)))
    metrics = compare_results(dataset, first, second, dataset.classes, NAMES).metrics
    for name in ("segment/AP", "segment/AP50", "pose/AP", "pose/AP75"):
        item = metrics[name]
        assert item.difference == first.metrics[name] - second.metrics[name]
        assert 0 < item.low < item.difference < item.high
    same = compare_results(dataset, first, first, dataset.classes, NAMES).metrics
    assert (same["segment/AP"].low, same["pose/AP"].high) == (0, 0)
    without = compare_results(dataset, first, result_of(dataset, seed=2), dataset.classes, NAMES).metrics
    assert "segment/AP" not in without and "AP" in without


def test_the_images_with_the_largest_change_come_first(dataset):
    perfect, worse = result_of(dataset, seed=0), result_of(dataset, seed=3, found=0.5)
    images = compare_results(dataset, perfect, worse, dataset.classes, NAMES).images
    changes = [abs(image.score - image.other) for image in images]
    assert changes == sorted(changes, reverse=True) and all(image.score == 1 > image.other for image in images)


def test_weights_with_another_order_of_classes_are_compared_by_name(dataset):
    result = result_of(dataset, seed=0, noise_px=2.0)
    order = dataset.classes[::-1]
    rows = [row | {"category_id": order.index(dataset.classes[row["category_id"]])} for row in result.rows]
    difference = compare_results(dataset, result, replace(result, rows=rows), order, NAMES)
    assert difference.metrics["AP"].high == 0 and not difference.images


def test_weights_of_other_classes_are_refused(dataset):
    result = result_of(dataset, seed=0)
    with pytest.raises(DataError, match=r"weights-a: found the classes .*whale, expected those of the other weights; only one has .*whale"):
        compare_results(dataset, result, result, (*dataset.classes[:-1], "whale"), NAMES)


def test_page_and_json_say_the_same(dataset):
    difference = compare_results(dataset, result_of(dataset, seed=0), result_of(dataset, seed=3, found=0.5), dataset.classes, ("<b>", "a"))
    files = difference_files(difference, dataset)
    numbers, page = json.loads(files["against.json"]), files["against.html"].decode()
    assert f"{numbers['metrics']['AP']['difference']:+.3f}" in page and "beyond the noise" in page
    assert all(numbers["classes"][metric].keys() == set(dataset.classes) for metric in ("AP", "AP50", "AP75"))
    assert (
        all(name in page for name in numbers["classes"]["AP"])
        and "AP75 of each class" in page
        and numbers["changed_images"][0]["name"] in page
    )
    assert "&lt;b&gt;" in page and "<b>a" not in page and page.count("<image ") <= 12
    assert numbers["metrics"]["AR1"]["low"] is None


def test_the_job_compares_weights_and_writes_the_page(dataset, tmp_path):
    torch.manual_seed(5)
    config = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1, head="free")
    network = Yolor(config, len(dataset.classes), None)
    weights = str(tmp_path / "weights")
    save_weights(weights, network.eval(), WeightsInfo("guesses", dataset.classes, 64))
    output = tmp_path / "report"
    result = evaluate(EvaluateConfig(weights=weights, against=weights, data=dataset.url, output=str(output)))
    assert result["differences"]["AP"]["difference"] == 0 and (output / "against.html").exists() and (output / "index.html").exists()


def test_a_comparison_needs_weights_and_data():
    with pytest.raises(ConfigError, match="against: found 'runs/a', expected none without weights and data"):
        EvaluateConfig(truth="truth.json", results="results.json", against="runs/a")
