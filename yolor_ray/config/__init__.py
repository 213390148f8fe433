"""Define every knob of every job.

The dotted name of a field is its command-line flag, its Tune key, the logged parameter and its key in `config.json`.
Values are checked when a configuration is made, so nothing is built from a bad one.
"""

from yolor_ray.config.evaluate import Evaluate
from yolor_ray.config.export import Export
from yolor_ray.config.network import Implicit, Network
from yolor_ray.config.pack import Pack, PackCoco, PackCrops, Packing, PackScenes, PackVoc, PackYolo
from yolor_ray.config.serve import Serve
from yolor_ray.config.train import Augment, Cluster, Data, Loss, Optim, Run, Train

__all__ = [
    "Augment",
    "Cluster",
    "Data",
    "Evaluate",
    "Export",
    "Implicit",
    "Loss",
    "Network",
    "Optim",
    "Pack",
    "PackCoco",
    "PackCrops",
    "PackScenes",
    "PackVoc",
    "PackYolo",
    "Packing",
    "Run",
    "Serve",
    "Train",
]
