"""Overfit a small network on eight scenes, in all tasks at once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from yolor_ray.class_names import keypoint_flags
from yolor_ray.config import AugmentConfig, ClusterConfig, DataConfig, LossConfig, NetworkConfig, OptimConfig, RunConfig, TrainConfig
from yolor_ray.config.network import TASKS
from yolor_ray.data.augment.instance_map import instance_map
from yolor_ray.data.images.letterbox import Letterbox
from yolor_ray.data.shards.dataset import Dataset, dataset_digest, encode_shard, open_dataset, write_dataset
from yolor_ray.data.synthetic import scenes
from yolor_ray.evaluate.metrics import MAIN_METRICS, measure
from yolor_ray.inference.detect import Detections
from yolor_ray.inference.postprocess import to_image_detections
from yolor_ray.model.weights import load_weights
from yolor_ray.train.run import train

SIDE = 128
SCENES = (7, 16, 15, 77, 99, 96, 33, 112)
"""Scenes with persons, with individuals that appear twice, and without tiny objects: masks have a quarter of the input's side."""
MIN_METRIC = 0.95


def pack(folder: Path) -> str:
    records = [scenes.scene(number, size_px=SIDE) for number in SCENES]
    data, shard = encode_shard(records, 0)
    (folder / shard.name).write_bytes(data.to_pybytes())
    counts = np.bincount(np.concatenate([record.objects.labels for record in records]), minlength=len(scenes.CLASSES)).tolist()
    boxes = dict(zip(scenes.CLASSES, counts, strict=True))
    names = scenes.CLASSES, scenes.IMAGE_CLASSES, scenes.KEYPOINT_NAMES
    write_dataset(
        Dataset(str(folder), *names, tuple(sorted(TASKS)), len(records), sum(counts), boxes, (shard,), dataset_digest([shard]), {})
    )
    return str(folder)


@pytest.fixture(scope="module", params=["anchors", "free"])
def metrics(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, float]:
    """Return the metrics of a network with each detection head on its own training images."""
    head = request.param
    loss, lr = (LossConfig(box=0.2, cls=2.0, anchor_ratio=3.0), 0.03) if head == "anchors" else (LossConfig(), 0.005)
    folder = tmp_path_factory.mktemp("eight")
    url = pack(folder)
    config = TrainConfig(
        network=NetworkConfig(
            stem="reorg", stem_width=16, widths=(32, 48, 64), depths=(1, 1, 1), levels=2, neck_depth=1, tasks=TASKS, head=head
        ),
        data=DataConfig(train=url, val=url, image_px=SIDE, allow_shared_images=True),
        augment=AugmentConfig(mosaic=0, translate=0, scale=0, hue=0, saturation=0, value=0, flip_horizontal=0),
        loss=loss,
        optim=OptimConfig(epochs=360, batch=8, nominal_batch=8, lr=lr, final_lr_ratio=0.05, warmup_epochs=10),
        cluster=ClusterConfig(compute_threads=1),
        run=RunConfig(storage=str(folder / "runs"), validate_epochs=90, checkpoint_epochs=1000),
    )
    threads = torch.get_num_threads()
    result = train(config)
    torch.set_num_threads(threads)
    return {**result["metrics"], "url": url, "weights": result["weights"]}


def test_each_class_has_the_confidence_with_its_best_f1_score(metrics):
    thresholds, boxes = load_weights(metrics["weights"])[1].thresholds, open_dataset(metrics["url"]).boxes_per_class
    assert thresholds.keys() == {name for name, count in boxes.items() if count}
    assert all(0 < threshold < 1 for threshold in thresholds.values())


@pytest.mark.parametrize("task", [task for task in TASKS if task != "segment"])
def test_eight_scenes_are_overfitted_in_each_task(metrics, task):
    assert metrics[MAIN_METRICS[task]] >= MIN_METRIC


def test_masks_of_eight_scenes_are_nearly_as_good_as_their_resolution_allows(metrics):
    assert metrics["segment/AP50"] >= MIN_METRIC
    assert metrics["segment/AP"] >= MIN_METRIC * best_possible_mask_ap(open_dataset(metrics["url"]))


def best_possible_mask_ap(dataset: Dataset) -> float:
    """Return the AP of the annotated masks at the resolution of prototypes, in the annotated boxes."""
    predictions = []
    for number in SCENES:
        objects = scenes.scene(number, size_px=SIDE).objects
        instances = instance_map(objects.masks, SIDE, SIDE, (SIDE, SIDE))
        ids = np.arange(1, len(objects.labels) + 1)[:, None, None]
        coverage = (instances[None] == ids).reshape(-1, SIDE // 4, 4, SIDE // 4, 4).mean(axis=(2, 4))
        detections = Detections(
            torch.from_numpy(objects.boxes_xyxy),
            torch.ones(len(ids)),
            torch.from_numpy(objects.labels),
            coefficients=torch.eye(len(ids)),
            prototypes=torch.from_numpy(coverage - 0.5).float(),
        )
        predictions.append(to_image_detections(detections, Letterbox(1.0, 0, 0, SIDE, SIDE), keypoint_flags(dataset)))
    return measure(dataset, predictions, ("detect", "segment")).metrics["segment/AP"]
