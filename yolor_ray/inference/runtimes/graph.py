"""Describe a network as a graph file for other engines: names and shapes of its inputs and outputs, metadata, required packages.

ONNX is traced first; OpenVINO's files are made from ONNX.
Legend: B images, H W sides of the network input in pixels, P predictions over all levels, K classes, M image labels,
E numbers of an embedding, C prototypes, J keypoints.
"""

import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolor_ray.config.network import Precision
from yolor_ray.errors import ConfigError
from yolor_ray.inference.runtimes.torch_runtime import DecodedYolor, Predictor
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.model.weights_info import info_json

KIND = {"format": "yolor_ray.graph", "format_version": 1}
"""Keys of `config.json` that say what the folder holds."""
INPUT = "image"
OUTPUTS = {
    "boxes_xyxy": "(B, P, 4) float32 pixels of the input",
    "scores": "(B, P, K) float32 0..1",
    "image_labels": "(B, M) float32 0..1, probabilities of labels of the whole image",
    "embeddings": "(B, P, E) float32 of length 1",
    "coefficients": "(B, P, C) float32, which times the prototypes are logits of a mask, to be cut to its box",
    "prototypes": "(B, C, H/4, W/4) float32",
    "keypoints": "(B, P, J, 3) float32: x, y in pixels of the input, and the probability of being there to be seen; "
    "class_keypoints says which of them belong to a class",
}
"""Shape and meaning of each output of a graph; outputs of tasks that a network has not learned are absent."""
TASK_OUTPUTS = {
    "detect": ("boxes_xyxy", "scores"),
    "classify": ("image_labels",),
    "embed": ("embeddings",),
    "segment": ("coefficients", "prototypes"),
    "pose": ("keypoints",),
}
"""Outputs of each task."""
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
"""Packages that writing a format needs beside torch."""
READER_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
"""Packages that running an export of a format needs beside torch."""
DYNAMIC_AXES = {
    INPUT: {0: "batch", 2: "height", 3: "width"},
    **{name: {0: "batch", 1: "predictions"} for name in OUTPUTS},
    "image_labels": {0: "batch"},
    "prototypes": {0: "batch", 2: "rows", 3: "columns"},
}
"""Names of the axes of variable size."""


@dataclass(frozen=True)
class Graph:
    """Graph of an export that its engine has read, before it is compiled."""

    inputs: Mapping[str, tuple[int | None, ...]]
    """Shape of each input by name; None is a side of variable size."""
    outputs: frozenset[str]
    """Names of the outputs."""
    metadata: Mapping[str, str]
    """Texts of `metadata_texts` in the graph file itself."""
    compile: Callable[[Precision, int], Predictor]
    """Makes a predictor for a precision and for square images of a side in pixels."""


def require_packages(subject: str, packages: Sequence[str]) -> None:
    """Raise ConfigError with the pip command if a package is absent that `subject`, a format or an export, needs."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        extra = "the extra `export` of yolor_ray has all of them"
        raise ConfigError(f"{subject}: found no {' and no '.join(missing)}; install with: pip install {' '.join(packages)}; {extra}")


def output_names(network: Yolor) -> list[str]:
    """Return the names of a network's outputs in the order of OUTPUTS."""
    names = {name for task in network.config.tasks for name in TASK_OUTPUTS[task]}
    return [name for name in OUTPUTS if name in names]


def graph_config(network: Yolor, info: WeightsInfo) -> dict[str, Any]:
    """Return the metadata of a graph, for `config.json` and for the graph file itself."""
    stride = network.config.strides[-1]
    return {
        **KIND,
        "version": info.version,
        **info_json(info),
        "tasks": list(network.config.tasks),
        "stride": stride,
        "input": f"{INPUT} (B, 3, H, W) float32 RGB 0..1, any B, H and W any multiples of {stride}; trained for H = W = {info.image_px}, "
        "letterboxed: scaled to fit, centred on grey 114",
        "outputs": "; ".join(f"{name} {OUTPUTS[name]}" for name in output_names(network)) + "; before NMS",
    }


def metadata_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """Return metadata as texts; values that are no text become JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in config.items()}


class _TupleOutputs(nn.Module):
    """A network whose outputs are a tuple: the exporter names the outputs of a graph by position."""

    def __init__(self, network: Yolor, names: Sequence[str]) -> None:
        super().__init__()
        self.decoded, self.names = DecodedYolor(network), names

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs = self.decoded(image)
        return tuple(outputs[name] for name in self.names)


def trace_onnx(network: Yolor) -> bytes:
    """Trace a network into an ONNX file.

    Tracing takes 0.5 to 2 s. The exporter over torch.export takes 20 s, and each replica would wait for it.
    """
    stride, names = network.config.strides[-1], output_names(network)
    # The annotations of this exporter allow paths alone; the exporter itself writes into any file object.
    buffer: Any = io.BytesIO()
    with warnings.catch_warnings():
        # DeprecationWarning: the other exporter is the default. TracerWarning: loops over levels are unrolled.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(
            _TupleOutputs(network, names).eval(),
            (torch.zeros(1, 3, stride, 2 * stride),),
            buffer,
            dynamo=False,
            input_names=[INPUT],
            output_names=names,
            dynamic_axes={name: DYNAMIC_AXES[name] for name in (INPUT, *names)},
        )
    return buffer.getvalue()
