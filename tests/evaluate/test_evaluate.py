import json
from pathlib import Path

import pytest
import torch

from yolor_ray.config import EvaluateConfig, NetworkConfig
from yolor_ray.config.network import TASKS
from yolor_ray.data.shards.dataset import open_dataset
from yolor_ray.data.synthetic import scenes
from yolor_ray.evaluate import coco
from yolor_ray.evaluate.run import evaluate
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights
from yolor_ray.pack.run import pack_scenes
from yolor_ray.pack.scenes_url import temporary_dataset_urls

SMALL = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1, tasks=TASKS)
ANCHORS = ((12, 12), (20, 16), (16, 28), (30, 30), (40, 26), (28, 48), (60, 60), (80, 50), (50, 90))
METRICS = {
    *coco.METRICS,
    *("classify/mAP", "classify/F1", "embed/rank1", "embed/mAP"),
    *(f"segment/{name}" for name in coco.METRICS),
    *(f"pose/{name}" for name in coco.KEYPOINT_METRICS),
}
SUMMARY = {"images", "weights", "data"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("scenes"))
    pack_scenes(url, 6, seed=1, size_px=64)
    return url


def untrained_weights(url: Path, **names: tuple[str, ...]) -> str:
    torch.manual_seed(5)
    info = WeightsInfo("guesses", **{"classes": scenes.CLASSES, "image_px": 64, **names})
    counts = {"image_classes": len(info.image_classes), "keypoints": len(info.keypoint_names), "identities": (3,)}
    network = Yolor(SMALL, len(info.classes), torch.tensor(ANCHORS, dtype=torch.float32).reshape(3, 3, 2), **counts)
    save_weights(str(url), network.eval(), info)
    return str(url)


def test_every_task_of_network_and_dataset_is_measured_and_reported(data: str, tmp_path: Path) -> None:
    weights = untrained_weights(tmp_path / "weights", image_classes=scenes.IMAGE_CLASSES, keypoint_names=scenes.KEYPOINT_NAMES)
    result = evaluate(EvaluateConfig(weights=weights, data=data, output=str(tmp_path / "report")))
    assert set(result) == METRICS | SUMMARY
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert numbers.keys() == result.keys() | {"classes", "image_classes"}
    assert numbers["classify/mAP"] == result["classify/mAP"]
    assert list(numbers["image_classes"]) == list(scenes.IMAGE_CLASSES)


def test_several_datasets_are_measured_as_one(data: str, tmp_path: Path) -> None:
    weights = untrained_weights(tmp_path / "weights", image_classes=scenes.IMAGE_CLASSES, keypoint_names=scenes.KEYPOINT_NAMES)
    pack_scenes(str(tmp_path / "more"), 3, seed=2, size_px=64)
    result = evaluate(EvaluateConfig(weights=weights, data=f"{data},{tmp_path / 'more'}"))
    assert result["images"] == 9 and result.keys() == METRICS | SUMMARY


def test_weights_with_more_names_than_the_dataset_are_measured_on_its_names(data: str, tmp_path: Path) -> None:
    plain = untrained_weights(tmp_path / "plain", image_classes=scenes.IMAGE_CLASSES, keypoint_names=scenes.KEYPOINT_NAMES)
    more = untrained_weights(
        tmp_path / "more",
        classes=(*scenes.CLASSES, "zeppelin"),
        image_classes=(*scenes.IMAGE_CLASSES, "underwater"),
        keypoint_names=(*scenes.KEYPOINT_NAMES, "rudder"),
    )
    result, expected = (evaluate(EvaluateConfig(weights=weights, data=data)) for weights in (more, plain))
    assert result.keys() == expected.keys()
    assert all(0 <= result[name] <= 1 for name in ("AP", "classify/mAP", "embed/mAP", "segment/AP", "pose/AP"))


def test_scenes_may_be_one_of_several_datasets(tmp_path):
    with temporary_dataset_urls(f"scenes:2,{tmp_path}") as urls:
        scenes, other = urls.split(",")
        assert open_dataset(scenes).images == 2
        assert other == str(tmp_path)
