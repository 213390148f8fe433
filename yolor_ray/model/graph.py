"""Write a network as a graph that other runtimes read: image in, decoded boxes and scores out.

ONNX comes first; OpenVINO's files are made from it. The packages for both are optional and imported when they are needed.
Legend: B images, S side of the square network input in pixels, P predictions over all levels, K classes.
"""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.boxes import xyxy_from_cxcywh
from yolor_ray.errors import ConfigError
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import CONFIG_FILE, WeightsInfo

FORMAT, VERSION = "yolor_ray.graph", 1
ONNX_FILE, OPENVINO_FILES = "model.onnx", ("model.xml", "model.bin")
INPUT, OUTPUTS = "image", ("boxes_xyxy", "scores")
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""What each format needs beside torch."""
EXPORT_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")

Predictor = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Turns images (B, 3, S, S) in 0..1 into boxes_xyxy (B, P, 4) in pixels of the network input and scores (B, P, K)."""


class DecodedYolor(nn.Module):
    """Predict and decode; what is exported."""

    def __init__(self, network: Yolor) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Float[Tensor, "B 3 S S"]) -> tuple[Float[Tensor, "B P 4"], Float[Tensor, "B P K"]]:
        """Return every prediction's boxes_xyxy in pixels and its scores, before non-maximum suppression."""
        return decode(self.network, self.network(image))


def decode(network: Yolor, raw: list[Tensor]) -> tuple[Float[Tensor, "B P 4"], Float[Tensor, "B P K"]]:
    """Return boxes_xyxy in pixels and scores from a network's raw predictions."""
    boxes_cxcywh, scores = network.head.decode(raw)
    return xyxy_from_cxcywh(boxes_cxcywh), scores


def require_packages(format_name: str) -> None:
    """Raise ConfigError with the pip command if a package that the format needs is absent."""
    needed = PACKAGES[format_name]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"format {format_name}: found no {' and no '.join(missing)}; install with: pip install {' '.join(needed)}")


def graph_config(info: WeightsInfo) -> dict[str, Any]:
    """Return what a reader of the graph has to know, for `config.json` and for the metadata inside the graph."""
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "name": info.name,
        "version": info.version,
        "classes": list(info.classes),
        "image_px": info.image_px,
        "input": f"{INPUT} (B, 3, image_px, image_px) float32 RGB 0..1; letterboxed: scaled to fit, centred on grey 114",
        "outputs": f"{OUTPUTS[0]} (B, P, 4) float32 pixels of the input; {OUTPUTS[1]} (B, P, K) float32 0..1; before NMS",
        "metrics": info.metrics,
    }


def onnx_files(network: Yolor, info: WeightsInfo) -> dict[str, bytes]:
    """Return `model.onnx`, for batches of any size, and `config.json`."""
    config = graph_config(info)
    return {ONNX_FILE: _onnx(network, info.image_px, config), CONFIG_FILE: json.dumps(config, indent=1).encode()}


def _onnx(network: Yolor, image_px: int, config: Mapping[str, Any]) -> bytes:
    # A batch of one would be taken for a constant.
    example = torch.zeros(2, 3, image_px, image_px)
    with _quiet_exporter():
        program = torch.onnx.export(
            DecodedYolor(network).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None, "the dynamo exporter returns a program"
    model = program.model_proto
    _drop_traces(model.graph)
    for name, value in config.items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    return model.SerializeToString()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep back what the exporter says about itself: each rewritten node, an absent torchvision, its own deprecated calls."""
    levels = {name: logging.getLogger(name).level for name in EXPORT_LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _drop_traces(graph: Any) -> None:
    """Remove the exporter's notes on every node: they hold stack traces with this machine's paths."""
    for part in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in part:
            item.ClearField("metadata_props")
            item.ClearField("doc_string")


def onnx_predictor(files: Mapping[str, bytes]) -> Predictor:
    """Return what ONNX Runtime predicts with the files."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(files[ONNX_FILE], options, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> tuple[Tensor, Tensor]:
        boxes_xyxy, scores = session.run(list(OUTPUTS), {INPUT: images.contiguous().numpy()})
        return torch.from_numpy(boxes_xyxy), torch.from_numpy(scores)

    return predict


def openvino_files(network: Yolor, info: WeightsInfo) -> dict[str, bytes]:
    """Return `model.xml` and `model.bin` in fp32, for batches of any size, and `config.json`.

    On CPUs that compute in bfloat16 OpenVINO chooses that unless it is told `INFERENCE_PRECISION_HINT` f32.
    """
    import openvino

    config = graph_config(info)
    model = openvino.Core().read_model(_onnx(network, info.image_px, {}))
    for name, value in config.items():
        model.set_rt_info(value if isinstance(value, str) else json.dumps(value), ["model_info", name])
    with tempfile.TemporaryDirectory(prefix="yolor_ray_openvino_") as folder:
        openvino.save_model(model, Path(folder) / OPENVINO_FILES[0], compress_to_fp16=False)
        files = {name: (Path(folder) / name).read_bytes() for name in OPENVINO_FILES}
    return {**files, CONFIG_FILE: json.dumps(config, indent=1).encode()}


def openvino_predictor(files: Mapping[str, bytes]) -> Predictor:
    """Return what OpenVINO predicts in fp32 with the files."""
    import openvino

    core = openvino.Core()
    model = core.read_model(*(files[name] for name in OPENVINO_FILES))
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", options)

    def predict(images: Tensor) -> tuple[Tensor, Tensor]:
        found = compiled({INPUT: images.contiguous().numpy()})
        return torch.from_numpy(found[OUTPUTS[0]].copy()), torch.from_numpy(found[OUTPUTS[1]].copy())

    return predict
