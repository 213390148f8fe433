"""Settings: every one is documented, invalid values are refused by name, and every preset is valid."""

import ast
import dataclasses
import inspect
import math
from dataclasses import replace

import pytest

from yolor_ray import config
from yolor_ray.config import (
    AugmentConfig,
    ClusterConfig,
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    ImplicitConfig,
    LossConfig,
    NetworkConfig,
    OptimConfig,
    PackScenesConfig,
    PackVocConfig,
    PredictConfig,
    RunConfig,
    ServeConfig,
    TrainConfig,
    benchmark,
    study,
)
from yolor_ray.config.presets import PRESETS
from yolor_ray.errors import ConfigError

MODULES = (config, benchmark, study)
CONFIGS = list(dict.fromkeys(c for m in MODULES for c in vars(m).values() if inspect.isclass(c) and dataclasses.is_dataclass(c)))


def test_every_field_has_a_docstring():
    for owner in CONFIGS:
        body = ast.parse(inspect.getsource(owner)).body[0].body
        for field, following in zip(body, [*body[1:], None], strict=True):
            # The sections of a training have class docstrings.
            if isinstance(field, ast.AnnAssign) and owner is not TrainConfig:
                assert isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant), f"{owner.__name__}.{field.target.id}"


INVALID = [
    (NetworkConfig, {"widths": (64, 128)}, "network.widths", "5 numbers for 3 levels"),
    (NetworkConfig, {"depths": (1, 2, 8)}, "network.depths", "5 numbers for 3 levels"),
    (NetworkConfig, {"widths": (60, 128, 256, 512, 1024)}, "network.widths", "positive multiples of 8"),
    (NetworkConfig, {"widths": (0, 128, 256, 512, 1024)}, "network.widths", "positive multiples of 8"),
    (NetworkConfig, {"stem": "reorg", "levels": 1, "widths": (8, 8), "depths": (1, 1)}, "network.levels", "2 to 5"),
    (NetworkConfig, {"stem": "reorg", "levels": 6, "widths": (8,) * 7, "depths": (1,) * 7}, "network.levels", "2 to 5"),
    (DataConfig, {"decode_threads": 0}, "data.decode_threads", "1 or more"),
    (DataConfig, {"image_px": 650}, "data.image_px", "a multiple of 32"),
    (DataConfig, {"image_px": 32}, "data.image_px", "64 or more"),
    (AugmentConfig, {"mosaic": 1.5}, "augment.mosaic", "0 to 1"),
    (AugmentConfig, {"mixup": -0.1}, "augment.mixup", "0 to 1"),
    (AugmentConfig, {"flip_horizontal": math.nan}, "augment.flip_horizontal", "0 to 1"),
    (AugmentConfig, {"flip_vertical": 2}, "augment.flip_vertical", "0 to 1"),
    (AugmentConfig, {"translate": 1.0}, "augment.translate", "under 1"),
    (AugmentConfig, {"scale": 1.0}, "augment.scale", "under 1"),
    (AugmentConfig, {"hue": -1.0}, "augment.hue", "under 1"),
    (AugmentConfig, {"saturation": 1.0}, "augment.saturation", "under 1"),
    (AugmentConfig, {"value": 1.0}, "augment.value", "under 1"),
    (AugmentConfig, {"multi_scale": 1.0}, "augment.multi_scale", "under 1"),
    (ImplicitConfig, {"of_tasks": ("pose=multiply",)}, "network.implicit.of_tasks", "TASK=ALIGN/REFINE"),
    (ImplicitConfig, {"of_tasks": ("poses=add/none",)}, "network.implicit.of_tasks", "TASK=ALIGN/REFINE"),
    (ImplicitConfig, {"of_tasks": ("pose=add/divide",)}, "network.implicit.of_tasks", "TASK=ALIGN/REFINE"),
    (ImplicitConfig, {"of_tasks": ("pose=add/none", "pose=none/add")}, "network.implicit.of_tasks", "each task at most once"),
    (
        ImplicitConfig,
        {"align_by": "factors", "of_tasks": ("pose=project/none",)},
        "network.implicit.of_tasks: pose: network.implicit.align_by",
        "vector",
    ),
    (OptimConfig, {"epochs": 0}, "optim.epochs", "1 or more"),
    (OptimConfig, {"batch": 0}, "optim.batch", "1 or more"),
    (OptimConfig, {"nominal_batch": 0}, "optim.nominal_batch", "1 or more"),
    (OptimConfig, {"lr": -0.1}, "optim.lr", "0 or more"),
    (OptimConfig, {"lr": math.nan}, "optim.lr", "0 or more"),
    (OptimConfig, {"final_lr_ratio": 0.0}, "optim.final_lr_ratio", "over 0"),
    (OptimConfig, {"ema_decay": 1.0}, "optim.ema_decay", "between 0 and 1"),
    (OptimConfig, {"freeze": "backbone"}, "optim.freeze", "none without optim.pretrained"),
    (ClusterConfig, {"workers": "many"}, "cluster.workers", "N or MIN-MAX"),
    (ClusterConfig, {"workers": "4-2"}, "cluster.workers", "N or MIN-MAX"),
    (ClusterConfig, {"workers": "0-2"}, "cluster.workers", "N or MIN-MAX"),
    (ClusterConfig, {"workers": "1-2-3"}, "cluster.workers", "N or MIN-MAX"),
    (ClusterConfig, {"workers": "-1"}, "cluster.workers", "N or MIN-MAX"),
    (RunConfig, {"validate_epochs": 0}, "run.validate_epochs", "1 or more"),
    (RunConfig, {"checkpoint_epochs": 0}, "run.checkpoint_epochs", "1 or more"),
    (RunConfig, {"name": ""}, "run.name", "a plain folder name"),
    (RunConfig, {"name": ".."}, "run.name", "a plain folder name"),
    (RunConfig, {"name": "a/b"}, "run.name", "a plain folder name"),
    (TrainConfig, {"data": DataConfig(image_px=96), "network": PRESETS["p6"].network}, "data.image_px", "the coarsest stride, 64"),
    (
        TrainConfig,
        {"optim": OptimConfig(batch=2), "cluster": ClusterConfig(workers="1-4")},
        "optim.batch",
        "one image for each of 4 workers",
    ),
    (EvaluateConfig, {}, "evaluate", "weights and data, or truth and results"),
    (EvaluateConfig, {"weights": "w", "truth": "t"}, "evaluate", "weights and data, or truth and results"),
    (EvaluateConfig, {"weights": "w", "data": "d", "image_px": 100}, "image_px", "a multiple of 32"),
    (EvaluateConfig, {"weights": "w", "data": "d", "batch": 0}, "batch", "1 or more"),
    (EvaluateConfig, {"weights": "w", "data": "d", "workers": -1}, "workers", "0 or more"),
    (ExportConfig, {"weights": "w", "output": "o", "check_images": -1}, "check_images", "0 or more"),
    (ExportConfig, {"weights": "w", "output": "o", "check_px": 16}, "check_px", "0 or a multiple of 32"),
    (ExportConfig, {"weights": "w", "output": "o", "image_px": 100}, "image_px", "0 or a multiple of 32"),
    (ExportConfig, {"weights": "w", "upstream": "p", "output": "o"}, "export", "either weights or upstream"),
    (ServeConfig, {"weights": "w", "port": 70_000}, "port", "1 to 65535"),
    (ServeConfig, {"weights": "w", "confidence": 1.1}, "confidence", "0 to 1, or best"),
    (PredictConfig, {"weights": "w", "images": "i", "output": "o", "confidence": "high"}, "confidence", "0 to 1, or best"),
    (ServeConfig, {"weights": "w", "iou": 0.0}, "iou", "over 0"),
    (ServeConfig, {"weights": "w", "max_detections": 0}, "max_detections", "1 to 1000"),
    (ServeConfig, {"weights": "w", "min_replicas": 3, "max_replicas": 2}, "min_replicas", "1 to max_replicas, 2"),
    (ServeConfig, {"weights": "w", "max_batch": 0}, "max_batch", "1 or more"),
    (ServeConfig, {"weights": "w", "request_timeout_s": 0.0}, "request_timeout_s", "more than 0"),
    (PackVocConfig, {"images": "i", "annotations": "a", "output": "o", "shard_mb": 0.0}, "shard_mb", "more than 0"),
    (PackScenesConfig, {"output": "o", "count": 0}, "count", "1 or more"),
    (PackScenesConfig, {"output": "o", "size_px": 8}, "size_px", "32 or more"),
]


@pytest.mark.parametrize(("owner", "values", "name", "expected"), INVALID)
def test_an_invalid_value_is_refused_by_its_dotted_name(owner, values, name, expected):
    with pytest.raises(ConfigError) as refusal:
        owner(**values)
    message = str(refusal.value)
    assert name in message.split(": found")[0]
    assert ": found " in message
    assert expected in message.split("expected ", 1)[1]


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (NetworkConfig, "anchors_per_level", 0),
        (NetworkConfig, "stem_width", 0),
        (NetworkConfig, "depths", (1, 2, 8, 8, -4)),
        (NetworkConfig, "spp_pairs", 0),
        (NetworkConfig, "norm_eps", 0.0),
        (AugmentConfig, "close_mosaic_epochs", -1),
        (AugmentConfig, "degrees", -5.0),
        (LossConfig, "box", -0.05),
        (LossConfig, "anchor_ratio", 1.0),
        (OptimConfig, "momentum", 1.0),
        (OptimConfig, "weight_decay", -1.0),
        (OptimConfig, "warmup_epochs", -3.0),
        (OptimConfig, "clip_ratio", -0.1),
        (OptimConfig, "patience", -1),
        (ClusterConfig, "cpus_per_worker", -1.0),
        (ClusterConfig, "max_failures", -1),
        (RunConfig, "checkpoint_minutes", -1.0),
    ],
)
def test_a_value_that_cannot_train_is_refused_when_the_configuration_is_created(owner, name, value):
    section = owner.__name__.removesuffix("Config").lower()
    with pytest.raises(ConfigError, match=rf"^{section}\.{name}: found "):
        owner(**{name: value})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_can_be_changed_by_field(name):
    preset = PRESETS[name]
    assert preset == replace(preset)
    assert preset.data.image_px % preset.network.strides[-1] == 0
    assert replace(preset, optim=replace(preset.optim, epochs=1)).optim.epochs == 1


@pytest.mark.parametrize("name", ["ablation", "tasks"])
def test_a_comparison_trains_equal_epochs(name):
    patient = replace(PRESETS["nano"], optim=OptimConfig(patience=5))
    comparison = study.STUDIES[name](patient)
    assert comparison.train.optim.patience == 0, "a preset may have another value"
    with pytest.raises(ConfigError, match=r"optim\.patience: found 5, expected 0: the trials of a comparison train equal epochs"):
        replace(comparison, train=replace(comparison.train, optim=patient.optim))


def test_a_search_may_end_trials_early_and_does_not_vary_the_patience():
    search = study.STUDIES["search"](replace(PRESETS["nano"], optim=OptimConfig(patience=5)))
    assert search.train.optim.patience == 5
    with pytest.raises(ConfigError, match=r"optim\.patience=0,5', but it saves time"):
        replace(search, search=("optim.patience=0,5",))


@pytest.mark.parametrize(("text", "limits"), [("0", (0, 0)), ("3", (3, 3)), ("1-4", (1, 4))])
def test_workers_are_a_number_or_a_range(text, limits):
    assert ClusterConfig(workers=text).worker_range == limits


def test_strides_double_from_8():
    assert PRESETS["csp"].network.strides == (8, 16, 32)
    assert PRESETS["d6"].network.strides == (8, 16, 32, 64)
