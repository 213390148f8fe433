"""Write a network as a graph that other runtimes read, and run it there: image in, decoded boxes and scores out.

ONNX comes first; OpenVINO's files are made from it. The packages for both are optional and imported when they are needed.
Legend: B images, H W sides of the network input in pixels, P predictions over all levels, K classes.
"""

import copy
import functools
import importlib.util
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from yolor_ray.errors import ConfigError
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import CONFIG_FILE, WeightsInfo

FORMAT, VERSION = "yolor_ray.graph", 1
ONNX_FILE, OPENVINO_FILES = "model.onnx", ("model.xml", "model.bin")
INPUT = "image"
OUTPUTS = {
    "boxes_xyxy": "(B, P, 4) float32 pixels of the input",
    "scores": "(B, P, K) float32 0..1",
    "image_labels": "(B, M) float32 0..1, probabilities of labels of the whole image",
    "embeddings": "(B, P, E) float32 of length 1",
    "coefficients": "(B, P, C) float32, which times the prototypes are logits of a mask, to be cut to its box",
    "prototypes": "(B, C, H/4, W/4) float32",
    "keypoints": "(B, P, J, 3) float32: x, y in pixels of the input, and the probability of being there to be seen",
}
"""What graphs answer, by name; those of tasks that a network has not learned are absent."""
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
"""What each format needs beside torch."""
DYNAMIC = {
    INPUT: {0: "batch", 2: "height", 3: "width"},
    **{name: {0: "batch", 1: "predictions"} for name in OUTPUTS},
    "image_labels": {0: "batch"},
    "prototypes": {0: "batch", 2: "rows", 3: "columns"},
}
"""Axes of any size, by name."""
OPENVINO_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}

Precision = Literal["float32", "bfloat16"]
Predictor = Callable[[Tensor], dict[str, Tensor]]
"""Turns images (B, 3, H, W) in 0..1 into what OUTPUTS describes, before non-maximum suppression."""


class DecodedYolor(nn.Module):
    """Predict and decode."""

    def __init__(self, network: Yolor) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> dict[str, Tensor]:
        """Return what every prediction says, by name."""
        return self.network.decode(self.network(image))


class _Listed(nn.Module):
    """Answer without names: what is exported, for a graph numbers its outputs."""

    def __init__(self, network: Yolor, names: Sequence[str]) -> None:
        super().__init__()
        self.decoded, self.names = DecodedYolor(network), names

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        answers = self.decoded(image)
        return tuple(answers[name] for name in self.names)


def output_names(network: Yolor) -> list[str]:
    """Return which of OUTPUTS a network answers, in their order."""
    stride = network.config.strides[-1]
    with torch.inference_mode():
        answers = DecodedYolor(copy.deepcopy(network).to("meta").eval())(torch.zeros(1, 3, stride, stride, device="meta"))
    return [name for name in OUTPUTS if name in answers]


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
        "image_classes": list(info.image_classes),
        "keypoint_names": list(info.keypoint_names),
        "image_px": info.image_px,
        "stride": stride,
        "input": f"{INPUT} (B, 3, H, W) float32 RGB 0..1, any B, H and W any multiples of {stride}; trained for H = W = {info.image_px}, "
        "letterboxed: scaled to fit, centred on grey 114",
        "outputs": "; ".join(f"{name} {OUTPUTS[name]}" for name in output_names(network)) + "; before NMS",
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
    stride, names = network.config.strides[-1], output_names(network)
    # Its annotations know of paths alone; this exporter writes into any file.
    written: Any = io.BytesIO()
    with warnings.catch_warnings():
        # That the other exporter is the default, and that loops over levels are unrolled.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(
            _Listed(network, names).eval(),
            (torch.zeros(1, 3, stride, 2 * stride),),
            written,
            dynamo=False,
            input_names=[INPUT],
            output_names=names,
            dynamic_axes={name: DYNAMIC[name] for name in (INPUT, *names)},
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
    model = _core(openvino).read_model(_onnx(network))
    for name, value in _texts(config).items():
        model.set_rt_info(value, ["model_info", name])
    with tempfile.TemporaryDirectory(prefix="yolor_ray_openvino_") as folder:
        openvino.save_model(model, Path(folder) / OPENVINO_FILES[0], compress_to_fp16=False)
        files = {name: (Path(folder) / name).read_bytes() for name in OPENVINO_FILES}
    return {**files, CONFIG_FILE: json.dumps(config, indent=1).encode()}


@functools.cache
def _core(openvino: ModuleType) -> Any:
    """Return the one core of OpenVINO that this process has, for good.

    Each gives the thread a stack for signals and, when it goes, the one from before it. Two that do not go in the reverse order
    leave one that is freed, and the next signal ends the process with a segmentation fault (OpenVINO 2026.4).
    """
    return openvino.Core()


def torch_predictor(network: Yolor, precision: Precision = "float32") -> Predictor:
    """Return what torch predicts with the network, on its device; its weights are laid out channels last, in place."""
    decoded = DecodedYolor(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    device_type = next(network.parameters()).device.type

    @torch.inference_mode()
    def predict(images: Tensor) -> dict[str, Tensor]:
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

    names = [output.name for output in session.get_outputs()]

    def predict(images: Tensor) -> dict[str, Tensor]:
        answers = session.run(names, {INPUT: images.contiguous().numpy()})
        return {name: torch.from_numpy(answer) for name, answer in zip(names, answers, strict=True)}

    return predict


def openvino_predictor(files: Mapping[str, bytes], precision: Precision = "float32", image_px: int | None = None) -> Predictor:
    """Return what OpenVINO predicts with the files of either format, on as many threads as torch has.

    With `image_px` it takes square images of that side alone, which is faster for small networks.
    """
    import openvino

    core = _core(openvino)
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
    # An output may go by more names than ours.
    found = {name for output in compiled.outputs for name in output.get_names()}
    names = [name for name in OUTPUTS if name in found]

    def predict(images: Tensor) -> dict[str, Tensor]:
        answers = compiled({INPUT: images.contiguous().numpy()}, share_inputs=True)
        return {name: torch.from_numpy(answers[name].copy()) for name in names}

    return predict
