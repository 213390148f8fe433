"""Train, evaluate and serve unified YOLOR networks on Ray.

The Python API: `train`, `pack`, `evaluate`, `export` and `predict` take a configuration and return the result of the job of that name.
`presets` holds complete trainings by name, `replace_fields` changes settings by dotted name, `Detector` finds objects in images,
and `Client` and `AsyncClient` ask a service for them.
Importing this package imports neither torch nor Ray; each name brings its libraries at its first use.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolor_ray import errors as errors
    from yolor_ray.api import Detector as Detector
    from yolor_ray.api import Result as Result
    from yolor_ray.client import AsyncClient as AsyncClient
    from yolor_ray.client import Client as Client
    from yolor_ray.config import EvaluateConfig as EvaluateConfig
    from yolor_ray.config import ExportConfig as ExportConfig
    from yolor_ray.config import PackAutoConfig as PackAutoConfig
    from yolor_ray.config import PackCheckConfig as PackCheckConfig
    from yolor_ray.config import PackCocoConfig as PackCocoConfig
    from yolor_ray.config import PackCropsConfig as PackCropsConfig
    from yolor_ray.config import PackScenesConfig as PackScenesConfig
    from yolor_ray.config import PackVocConfig as PackVocConfig
    from yolor_ray.config import PackYoloConfig as PackYoloConfig
    from yolor_ray.config import PredictConfig as PredictConfig
    from yolor_ray.config import TrainConfig as TrainConfig
    from yolor_ray.config.dotted import replace_fields as replace_fields
    from yolor_ray.config.presets import PRESETS as presets
    from yolor_ray.evaluate.run import evaluate as evaluate
    from yolor_ray.export.run import export as export
    from yolor_ray.pack.run import pack as pack
    from yolor_ray.predict.run import predict as predict
    from yolor_ray.train.run import train as train

__version__ = "0.2.0"

_MODULES = {
    "Detector": "yolor_ray.api",
    "Result": "yolor_ray.api",
    "AsyncClient": "yolor_ray.client",
    "Client": "yolor_ray.client",
    "replace_fields": "yolor_ray.config.dotted",
    **dict.fromkeys(
        (
            "TrainConfig",
            "EvaluateConfig",
            "ExportConfig",
            "PackAutoConfig",
            "PackCheckConfig",
            "PackCocoConfig",
            "PackCropsConfig",
            "PackScenesConfig",
            "PackVocConfig",
            "PackYoloConfig",
            "PredictConfig",
        ),
        "yolor_ray.config",
    ),
}
"""Where each lazy name is defined."""
_JOBS = ("evaluate", "export", "pack", "predict", "train")
"""Jobs that are functions of the API; the room of the same name holds their code."""
__all__ = [
    "AsyncClient",
    "Client",
    "Detector",
    "Result",
    "errors",
    "presets",
    "replace_fields",
    *(name for name in _MODULES if name.endswith("Config")),
    *_JOBS,
]


class _CallableRoom(ModuleType):
    """A room whose call runs its job: `yolor_ray.train(config)` is `yolor_ray.train.run.train(config)`.

    An import of `yolor_ray.train.run` makes the room an attribute of this package. A function of that name would be overwritten.
    """

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Pickle the room as its name: cloudpickle knows plain modules only, and functions of users refer to rooms."""
        return importlib.import_module, (self.__name__,)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the job of this room; see the function of the room's name in its module `run`."""
        job = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(f"{self.__name__}.run"), job)(*args, **options)


def __getattr__(name: str) -> Any:
    """Import a name of the API at its first use."""
    if name == "errors":
        return importlib.import_module("yolor_ray.errors")
    if name == "presets":
        return importlib.import_module("yolor_ray.config.presets").PRESETS
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the API, for completion."""
    return sorted({*globals(), *__all__})


for _job in _JOBS:
    importlib.import_module(f"{__name__}.{_job}")
    sys.modules[f"{__name__}.{_job}"].__class__ = _CallableRoom
