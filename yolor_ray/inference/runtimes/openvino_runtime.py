"""Write OpenVINO models, read them, and execute them.

The package openvino is optional and imported where it is used.
"""

import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from yolor_ray.config.network import Precision
from yolor_ray.errors import WeightsError
from yolor_ray.inference.runtimes.graph import INPUT, OUTPUTS, Graph, graph_config, metadata_texts, trace_onnx
from yolor_ray.inference.runtimes.torch_runtime import Predictor
from yolor_ray.io.weights_url import CONFIG_FILE, ONNX_FILE, OPENVINO_FILES
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo

XML_START = b"<?xml"
OPENVINO_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def openvino_files(network: Yolor, info: WeightsInfo) -> dict[str, bytes]:
    """Return `model.xml` and `model.bin` in float32, for inputs like those of `onnx_files`, and `config.json`.

    On CPUs that compute in bfloat16, OpenVINO uses bfloat16 unless INFERENCE_PRECISION_HINT is f32.
    """
    import openvino

    config = graph_config(network, info)
    model = _shared_core(openvino).read_model(trace_onnx(network))
    for name, value in metadata_texts(config).items():
        model.set_rt_info(value, ["model_info", name])
    with tempfile.TemporaryDirectory(prefix="yolor_ray_openvino_") as folder:
        openvino.save_model(model, Path(folder) / OPENVINO_FILES[0], compress_to_fp16=False)
        files = {name: (Path(folder) / name).read_bytes() for name in OPENVINO_FILES}
    return {**files, CONFIG_FILE: json.dumps(config, indent=1).encode()}


@functools.cache
def _shared_core(openvino: ModuleType) -> Any:
    """Return the single OpenVINO core of this process, which is never freed.

    Each core installs an alternate signal stack for its thread, and on destruction restores the stack from before it. Two cores that
    are not destroyed in reverse order leave a freed stack installed. The next signal then ends the process with a segmentation fault
    (OpenVINO 2026.4).
    """
    return openvino.Core()


def openvino_predictor(files: Mapping[str, bytes], precision: Precision = "float32", image_px: int | None = None) -> Predictor:
    """Make a predictor of OpenVINO from the files of either format: CPU, as many threads as torch has.

    With `image_px` the predictor takes square images of that side alone, which is faster for small networks.
    """
    return _compile(_read_model(files), precision, image_px)


def read_openvino(files: Mapping[str, bytes]) -> Graph:
    """Read the OpenVINO model of an export; raises WeightsError if `model.xml` is no XML."""
    xml = files[OPENVINO_FILES[0]]
    # OpenVINO reads other formats, too. Some of them, such as ONNX, name further files, which it would open.
    if not xml.startswith(XML_START):
        raise WeightsError(f"{OPENVINO_FILES[0]}: found {xml[:8]!r} at its start, expected {XML_START!r}")
    model = _read_model(files)
    inputs = {name: _shape(port) for port in model.inputs for name in port.get_names()}
    # An output of OpenVINO may have further names beside ours.
    outputs = frozenset(_name(port.get_names()) for port in model.outputs)
    texts = model.get_rt_info("model_info").value if model.has_rt_info("model_info") else {}
    metadata = {name: str(text) for name, text in texts.items()}
    return Graph(inputs, outputs, metadata, lambda precision, image_px: _compile(model, precision, image_px))


def _name(names: set[str]) -> str:
    """Return the name of an output that is ours, or else any."""
    return next((name for name in OUTPUTS if name in names), min(names, default=""))


def _shape(port: Any) -> tuple[int | None, ...]:
    return tuple(axis.get_length() if axis.is_static else None for axis in port.partial_shape)


def _read_model(files: Mapping[str, bytes]) -> Any:
    import openvino

    return _shared_core(openvino).read_model(*(files[name] for name in (ONNX_FILE, *OPENVINO_FILES) if name in files))


def _compile(model: Any, precision: Precision, image_px: int | None) -> Predictor:
    import openvino

    if image_px:
        model.reshape([-1, 3, image_px, image_px])
    options = {
        "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        # Pinned threads of several replicas would share the machine's first cores.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = _shared_core(openvino).compile_model(model, "CPU", options)
    graph_names = {name for output in compiled.outputs for name in output.get_names()}
    names = [name for name in OUTPUTS if name in graph_names]

    def predict(images: Tensor) -> dict[str, Tensor]:
        outputs = compiled({INPUT: images.contiguous().numpy()}, share_inputs=True)
        return {name: torch.from_numpy(outputs[name].copy()) for name in names}

    return predict
