"""Write ONNX files and execute them with ONNX Runtime.

The packages onnx and onnxruntime are optional and imported where they are used.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from yolor_ray.inference.runtimes.graph import INPUT, graph_config, metadata_texts, trace_onnx
from yolor_ray.inference.runtimes.torch_runtime import Predictor
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import CONFIG_FILE, WeightsInfo

ONNX_FILE = "model.onnx"


def onnx_files(network: Yolor, info: WeightsInfo) -> dict[str, bytes]:
    """Return `model.onnx` and `config.json`; the graph takes any number of images, with sides of any multiple of the coarsest stride."""
    import onnx

    config = graph_config(network, info)
    model = onnx.load_from_string(trace_onnx(network))
    for name, value in metadata_texts(config).items():
        model.metadata_props.add(key=name, value=value)
    return {ONNX_FILE: model.SerializeToString(), CONFIG_FILE: json.dumps(config, indent=1).encode()}


def onnx_predictor(files: Mapping[str, bytes]) -> Predictor:
    """Make a predictor of ONNX Runtime from the files of `onnx_files`: CPU, float32, as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Spinning threads take the cores from the threads that decode the next images; on a busy machine spinning halves the speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(files[ONNX_FILE], options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def predict(images: Tensor) -> dict[str, Tensor]:
        outputs = session.run(names, {INPUT: images.contiguous().numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return predict
