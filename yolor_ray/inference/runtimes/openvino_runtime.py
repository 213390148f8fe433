"""Write OpenVINO models and execute them.

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
from yolor_ray.inference.runtimes.graph import INPUT, OUTPUTS, graph_config, metadata_texts, trace_onnx
from yolor_ray.inference.runtimes.onnx_runtime import ONNX_FILE
from yolor_ray.inference.runtimes.torch_runtime import Predictor
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import CONFIG_FILE, WeightsInfo

OPENVINO_FILES = ("model.xml", "model.bin")
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
    import openvino

    core = _shared_core(openvino)
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
    # An output of OpenVINO may have further names beside ours.
    graph_names = {name for output in compiled.outputs for name in output.get_names()}
    names = [name for name in OUTPUTS if name in graph_names]

    def predict(images: Tensor) -> dict[str, Tensor]:
        outputs = compiled({INPUT: images.contiguous().numpy()}, share_inputs=True)
        return {name: torch.from_numpy(outputs[name].copy()) for name in names}

    return predict
