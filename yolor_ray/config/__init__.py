"""Define every setting of every job.

The dotted name of a field is its command-line flag, its Tune key, the logged parameter and its key in `config.json`.
The values are checked when a configuration is created, so nothing is built from an invalid configuration.
"""

from yolor_ray.config.evaluate import EvaluateConfig, PredictConfig
from yolor_ray.config.export import ExportConfig
from yolor_ray.config.network import ImplicitConfig, NetworkConfig
from yolor_ray.config.pack import (
    AnyPackConfig,
    PackAutoConfig,
    PackCheckConfig,
    PackCocoConfig,
    PackConfig,
    PackCropsConfig,
    PackScenesConfig,
    PackVocConfig,
    PackYoloConfig,
)
from yolor_ray.config.serve import ReleaseConfig, ServeConfig
from yolor_ray.config.train import AugmentConfig, ClusterConfig, DataConfig, LossConfig, OptimConfig, RunConfig, TrainConfig, WorkersConfig

__all__ = [
    "AnyPackConfig",
    "AugmentConfig",
    "ClusterConfig",
    "DataConfig",
    "EvaluateConfig",
    "ExportConfig",
    "ImplicitConfig",
    "LossConfig",
    "NetworkConfig",
    "OptimConfig",
    "PackAutoConfig",
    "PackCheckConfig",
    "PackCocoConfig",
    "PackConfig",
    "PackCropsConfig",
    "PackScenesConfig",
    "PackVocConfig",
    "PackYoloConfig",
    "PredictConfig",
    "ReleaseConfig",
    "RunConfig",
    "ServeConfig",
    "TrainConfig",
    "WorkersConfig",
]
