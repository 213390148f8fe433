"""One small network learns eight scenes by heart, in all tasks at once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from yolor_ray.config import AugmentConfig, ClusterConfig, DataConfig, LossConfig, NetworkConfig, OptimConfig, RunConfig, TrainConfig
from yolor_ray.config.network import TASKS
from yolor_ray.data.augment.instance_map import instance_map
from yolor_ray.data.images.letterbox import Letterbox
from yolor_ray.data.shards.dataset import Dataset, dataset_digest, open_dataset, encode_shard, write_dataset
from yolor_ray.data.synthetic import scenes
from yolor_ray.evaluate.metrics import MAIN_METRICS, measure
from yolor_ray.inference.detect import Detections
from yolor_ray.inference.postprocess import to_image_detections
from yolor_ray.train.run import train

SIDE = 128
SCENES = (7, 16, 15, 77, 99, 96, 33, 112)
"""With persons, with individuals that are in two of them, and without tiny toys: masks are a quarter of the input's sides."""
ENOUGH = 0.95


def packed(folder: Path) -> str:
    found = [scenes.scene(number, size_px=SIDE) for number in SCENES]
    data, shard = encode_shard(found, 0)
    (folder / shard.name).write_bytes(data.to_pybytes())
    boxes = sum(len(record.objects.labels) for record in found)
    names = scenes.CLASSES, scenes.IMAGE_CLASSES, scenes.KEYPOINT_NAMES
    write_dataset(Dataset(str(folder), *names, tuple(sorted(TASKS)), len(found), boxes, {}, (shard,), dataset_digest([shard]), {}))
    return str(folder)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Return what the network reaches on the very images that it was trained on."""
    folder = tmp_path_factory.mktemp("eight")
    url = packed(folder)
    config = TrainConfig(
        network=NetworkConfig(stem="reorg", stem_width=16, widths=(32, 48, 64), depths=(1, 1, 1), levels=2, neck_depth=1, tasks=TASKS),
        data=DataConfig(train=url, val=url, image_px=SIDE),
        augment=AugmentConfig(mosaic=0, translate=0, scale=0, hue=0, saturation=0, value=0, flip_horizontal=0),
        loss=LossConfig(box=0.2, cls=2.0, segment=1.0, anchor_ratio=3.0),
        optim=OptimConfig(epochs=300, batch=8, nominal_batch=8, lr=0.03, final_lr_ratio=0.05, warmup_epochs=10),
        cluster=ClusterConfig(compute_threads=1),
        run=RunConfig(storage=str(folder / "runs"), validate_epochs=75, checkpoint_epochs=1000),
    )
    threads = torch.get_num_threads()
    metrics = train(config)["metrics"]
    torch.set_num_threads(threads)
    metrics["url"] = url
    return metrics


@pytest.mark.parametrize("task", [task for task in TASKS if task != "segment"])
def test_eight_scenes_are_learned_by_heart_in_each_task(learned, task):
    assert learned[MAIN_METRICS[task]] >= ENOUGH


def test_eight_scenes_have_masks_nearly_as_good_as_their_resolution_allows(learned):
    assert learned["segment/AP50"] >= ENOUGH
    assert learned["segment/AP"] >= ENOUGH * best_possible_mask_ap(open_dataset(learned["url"]))


def best_possible_mask_ap(dataset: Dataset) -> float:
    """Return the AP of the annotated masks themselves once they are as coarse as prototypes are, in the annotated boxes."""
    found = []
    for number in SCENES:
        objects = scenes.scene(number, size_px=SIDE).objects
        painted = instance_map(objects.masks, SIDE, SIDE, (SIDE, SIDE))
        ids = np.arange(1, len(objects.labels) + 1)[:, None, None]
        shares = (painted[None] == ids).reshape(-1, SIDE // 4, 4, SIDE // 4, 4).mean(axis=(2, 4))
        detections = Detections(
            torch.from_numpy(objects.boxes_xyxy),
            torch.ones(len(ids)),
            torch.from_numpy(objects.labels),
            coefficients=torch.eye(len(ids)),
            prototypes=torch.from_numpy(shares - 0.5).float(),
        )
        found.append(to_image_detections(detections, Letterbox(1.0, 0, 0, SIDE, SIDE)))
    return measure(dataset, found, ("detect", "segment")).metrics["segment/AP"]
