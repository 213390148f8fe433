"""Write a network as a graph that other runtimes read, and run it there: image in, decoded boxes and scores out.

ONNX comes first; OpenVINO's files are made from it. The packages for both are optional and imported when they are needed.
Legend: B images, H W sides of the network input in pixels, P predictions over all levels, K classes.
"""

import importlib.util
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

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
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
"""What each format needs beside torch."""
DYNAMIC = {INPUT: {0: "batch", 2: "height", 3: "width"}, **{name: {0: "batch", 1: "predictions"} for name in OUTPUTS}}
"""Axes of any size, by name."""
OPENVINO_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}

Precision = Literal["float32", "bfloat16"]
Predictor = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Turns images (B, 3, H, W) in 0..1 into boxes_xyxy (B, P, 4) in pixels of the network input and scores (B, P, K)."""


class DecodedYolor(nn.Module):
    """Predict and decode; what is exported."""

    def __init__(self, network: Yolor) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B P 4"], Float[Tensor, "B P K"]]:
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


def graph_config(network: Yolor, info: WeightsInfo) -> dict[str, Any]:
    """Return what a reader of the graph has to know, for `config.json` and for the metadata inside the graph."""
    stride = network.config.strides[-1]
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "name": info.name,
        "version": info.version,
        "classes": list(info.classes),
        "image_px": info.image_px,
        "stride": stride,
        "input": f"{INPUT} (B, 3, H, W) float32 RGB 0..1, any B, H and W any multiples of {stride}; trained for H = W = {info.image_px}, "
        "letterboxed: scaled to fit, centred on grey 114",
        "outputs": f"{OUTPUTS[0]} (B, P, 4) float32 pixels of the input; {OUTPUTS[1]} (B, P, K) float32 0..1; before NMS",
        "metrics": info.metrics,
    }


def onnx_files(network: Yolor, info: WeightsInfo) -> dict[str, bytes]:
    """Return `model.onnx`, for any number of images and sides of any multiple of the coarsest stride, and `config.json`."""
    import onnx

    config = graph_config(network, info)
    model = onnx.load_from_string(_onnx(network))
    for name, value in _texts(config).items():
        model.metadata_props.add(key=name, value=value)
    return {ONNX_FILE: model.SerializeToString(), CONFIG_FILE: json.dumps(config, indent=1).encode()}


def _onnx(network: Yolor) -> bytes:
    """Trace the network: half a second to two, where the exporter over torch.export takes 20 s, which each replica would wait."""
    stride = network.config.strides[-1]
    # Its annotations know of paths alone; this exporter writes into any file.
    written: Any = io.BytesIO()
    with warnings.catch_warnings():
        # That the other exporter is the default, and that loops over levels are unrolled.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(
            DecodedYolor(network).eval(),
            (torch.zeros(1, 3, stride, 2 * stride),),
            written,
            dynamo=False,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes=DYNAMIC,
        )
    return written.getvalue()


def _texts(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in config.items()}


def openvino_files(network: Yolor, info: WeightsInfo) -> dict[str, bytes]:
    """Return `model.xml` and `model.bin` in fp32, for inputs like those of `onnx_files`, and `config.json`.

    On CPUs that compute in bfloat16 OpenVINO chooses that unless it is told `INFERENCE_PRECISION_HINT` f32.
    """
    import openvino

    config = graph_config(network, info)
    model = openvino.Core().read_model(_onnx(network))
    for name, value in _texts(config).items():
        model.set_rt_info(value, ["model_info", name])
    with tempfile.TemporaryDirectory(prefix="yolor_ray_openvino_") as folder:
        openvino.save_model(model, Path(folder) / OPENVINO_FILES[0], compress_to_fp16=False)
        files = {name: (Path(folder) / name).read_bytes() for name in OPENVINO_FILES}
    return {**files, CONFIG_FILE: json.dumps(config, indent=1).encode()}


def torch_predictor(network: Yolor, precision: Precision = "float32") -> Predictor:
    """Return what torch predicts with the network, on its device; its weights are laid out channels last, in place."""
    decoded = DecodedYolor(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    device_type = next(network.parameters()).device.type

    @torch.inference_mode()
    def predict(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device_type, torch.bfloat16, enabled=precision == "bfloat16"):
            return decoded(images.contiguous(memory_format=torch.channels_last))

    return predict


def onnx_predictor(files: Mapping[str, bytes]) -> Predictor:
    """Return what ONNX Runtime predicts with the files, in fp32, on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Waiting threads would take the cores from those that decode the next images; on a busy machine that halves the speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(files[ONNX_FILE], options, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> tuple[Tensor, Tensor]:
        boxes_xyxy, scores = session.run(list(OUTPUTS), {INPUT: images.contiguous().numpy()})
        return torch.from_numpy(boxes_xyxy), torch.from_numpy(scores)

    return predict


def openvino_predictor(files: Mapping[str, bytes], precision: Precision = "float32", image_px: int | None = None) -> Predictor:
    """Return what OpenVINO predicts with the files of either format, on as many threads as torch has.

    With `image_px` it takes square images of that side alone, which is faster for small networks.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(*(files[name] for name in (ONNX_FILE, *OPENVINO_FILES) if name in files))
    if image_px:
        model.reshape([-1, 3, image_px, image_px])
    options = {
        "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        # Pinned threads of several replicas would share the machine's first cores.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(model, "CPU", options)

    def predict(images: Tensor) -> tuple[Tensor, Tensor]:
        found = compiled({INPUT: images.contiguous().numpy()}, share_inputs=True)
        return torch.from_numpy(found[OUTPUTS[0]].copy()), torch.from_numpy(found[OUTPUTS[1]].copy())

    return predict
