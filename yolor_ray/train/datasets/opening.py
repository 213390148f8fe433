"""Open the training set and the validation set of a run: pack built-in scenes, hold images out, refuse images of both sets."""

import logging

import numpy as np

from yolor_ray.config import TrainConfig
from yolor_ray.data.shards import union
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.data.shards.image_hashes import image_hashes, record_name
from yolor_ray.data.shards.split import split_dataset
from yolor_ray.errors import ConfigError, DataError
from yolor_ray.io import storage
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.pack.scenes_url import SCENES_PREFIX, VALIDATION_SEED, resolve_dataset_urls

logger = logging.getLogger(__name__)

TRAINING_SEED = 0
SCENES_VALIDATION = "scenes:80"
"""Validation set of a training on built-in scenes where data.val is empty."""
SCENES_FOLDER, HELD_OUT_FOLDER, HASHES_FOLDER = "scenes", "held-out", "image-hashes"
"""Folders below run.storage: packed scenes, copies of held-out images, hashes of images."""
MAX_HELD_OUT_BYTES = 30e9
"""Largest dataset that is copied in order to hold images out: a larger one takes over four minutes and as much storage again."""


def validation_url(train: str, val: str) -> str:
    """Return `val`, or `SCENES_VALIDATION` where it is empty and the training set is built-in scenes alone; else empty."""
    only_scenes = all(url.strip().startswith(SCENES_PREFIX) for url in train.split(","))
    return val or (SCENES_VALIDATION if only_scenes else "")


def open_datasets(config: TrainConfig) -> tuple[Dataset, Dataset]:
    """Return the training set, and the validation set relabelled to its names; built-in scenes are packed first.

    Without a validation set, a share of the training set is held out.

    Raises:
        DataError: the validation set has names that the training set lacks, or a task has no annotations in the training set; a teacher
            stands in for the annotations of detect.
        ConfigError: there is no validation set, and the training set is too large for a copy.

    """
    scenes_folder = storage.join(config.run.storage, SCENES_FOLDER)
    train_set = union.open_datasets(resolve_dataset_urls(config.data.train, scenes_folder, TRAINING_SEED))
    val = validation_url(config.data.train, config.data.val)
    if val:
        val_set = union.open_datasets(resolve_dataset_urls(val, scenes_folder, VALIDATION_SEED))
    else:
        train_set, val_set = _hold_out(train_set, config)
    tasks = config.network.tasks
    # Names of tasks that the network lacks may differ.
    image_classes = train_set.image_classes if "classify" in tasks else ()
    keypoint_names, class_keypoints = (train_set.keypoint_names, train_set.class_keypoints) if "pose" in tasks else ((), {})
    names = WeightsInfo(
        *("", train_set.classes, config.data.image_px),
        image_classes=image_classes,
        keypoint_names=keypoint_names,
        class_keypoints=class_keypoints,
    )
    val_set = union.relabel_to(val_set, names)
    _check_tasks(config, train_set)
    return train_set, val_set


def _check_tasks(config: TrainConfig, train_set: Dataset) -> None:
    """Raise DataError if a task of the network has no annotations to learn from."""
    has_no_names = {"classify": not train_set.image_classes, "pose": not train_set.keypoint_names}
    learnable = {*train_set.tasks, "detect"} if config.optim.teacher else set(train_set.tasks)
    missing = [task for task in config.network.tasks if task not in learnable or has_no_names.get(task)]
    if missing:
        annotated = f"found annotations for {', '.join(train_set.tasks) or 'no task'}"
        other_way = ", or optim.teacher for detect" if "detect" in missing else ""
        raise DataError(f"{train_set.url}: {annotated}, expected some for network.tasks: {', '.join(missing)} too{other_way}")


def _hold_out(dataset: Dataset, config: TrainConfig) -> tuple[Dataset, Dataset]:
    """Return the kept images and the held-out images of the training set, as two datasets in the run's storage."""
    size, share = sum(shard.bytes for shard in dataset.shards), config.data.hold_out
    if size > MAX_HELD_OUT_BYTES:
        expected = f"expected one, because data.train has {size / 1e9:.0f} GB, and {MAX_HELD_OUT_BYTES / 1e9:.0f} GB or less are copied"
        raise ConfigError(f"data.val: found no validation set, {expected}; `yolor-ray pack auto FOLDER --hold_out 0.1` packs two")
    logger.info("event=hold_out data=%s share=%g mb=%.1f reason='data.val is not given'", dataset.url, share, size / 1e6)
    train_set, val_set = split_dataset(dataset, storage.absolute(storage.join(config.run.storage, HELD_OUT_FOLDER)), share)
    logger.info(
        "event=held_out images=%d of=%d train=%s val=%s chosen_by='the content of each image' advice='--data.val URL sets another'",
        *(val_set.images, dataset.images, train_set.url, val_set.url),
    )
    return train_set, val_set


def refuse_shared_images(config: TrainConfig, train_set: Dataset, val_set: Dataset) -> None:
    """Refuse a validation set that has images of the training set, by the content of the images, unless data.allow_shared_images is set.

    Raises:
        DataError: images are in both sets.

    """
    urls = [url.strip() for url in f"{config.data.train},{config.data.val}".split(",")]
    # Held-out images and built-in scenes of two seeds are in one set only.
    if not config.data.val or all(url.startswith(SCENES_PREFIX) for url in urls):
        return
    folder = storage.absolute(storage.join(config.run.storage, HASHES_FOLDER))
    train_hashes, val_hashes = image_hashes(train_set, folder), image_hashes(val_set, folder)
    [shared] = np.isin(val_hashes, train_hashes).nonzero()
    if not len(shared):
        return
    [twins] = (train_hashes == val_hashes[shared[0]]).nonzero()
    names = record_name(val_set, int(shared[0])), record_name(train_set, int(twins[0]))
    found = f"{len(shared)} of {val_set.images} images of data.val in data.train, too, such as {names[0]!r}, there {names[1]!r}"
    if config.data.allow_shared_images:
        logger.warning(
            "event=shared_images count=%d of=%d example='%s' consequence='metrics are too good'", *(len(shared), val_set.images, names[0])
        )
        return
    expected = "expected images that training never sees, because metrics on others are too good"
    other_way = "without --data.val a share of data.train is held out; --data.allow_shared_images trains all the same"
    raise DataError(f"{val_set.url}: found {found}; {expected}; {other_way}")
