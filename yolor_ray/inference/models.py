"""Load the model that a URL means: a network from a weights folder, or an export, which has its own engine."""

from typing import TypeAlias

from yolor_ray.inference.runtimes.export_folder import Export, load_export
from yolor_ray.io.weights_url import export_format, weights_folder
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights

Model: TypeAlias = Yolor | Export
"""What `engine_choice.choose_engine` makes runnable; `to` moves either to a device."""


def load_model(url: str) -> tuple[Model, WeightsInfo]:
    """Return the network of weights, in eval mode on the CPU, or an export that its engine has not opened; and the description.

    The folder of a run stands for its weights, and `builtin` for those of this package.

    Raises:
        WeightsError: the folder is incomplete, altered, or of another format.
        StorageError: the URL cannot be read.
    """
    folder = weights_folder(url)
    format_name = export_format(folder)
    return load_export(folder, format_name) if format_name else load_weights(url)
