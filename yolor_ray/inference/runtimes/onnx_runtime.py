"""Write ONNX files, read them, and execute them with ONNX Runtime.

The packages onnx and onnxruntime are optional and imported where they are used.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from yolor_ray.inference.runtimes.external_data import inline_external_data
from yolor_ray.inference.runtimes.graph import INPUT, Graph, graph_config, metadata_texts, trace_onnx
from yolor_ray.inference.runtimes.torch_runtime import Predictor
from yolor_ray.io.weights_url import CONFIG_FILE, ONNX_FILE
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo


def onnx_files(network: Yolor, info: WeightsInfo) -> dict[str, bytes]:
    """Return `model.onnx` and `config.json`; the graph takes any number of images, with sides of any multiple of the coarsest stride."""
    import onnx

    config = graph_config(network, info)
    model = onnx.load_from_string(trace_onnx(network))
    for name, value in metadata_texts(config).items():
        model.metadata_props.add(key=name, value=value)
    return {ONNX_FILE: model.SerializeToString(), CONFIG_FILE: json.dumps(config, indent=1).encode()}


def read_onnx(files: Mapping[str, bytes], read_beside: Callable[[str], bytes]) -> Graph:
    """Read the ONNX file of an export, and move its external data into it.

    Args:
        files: `model.onnx`.
        read_beside: returns the content of another file of the export by its path in the folder.

    Raises:
        WeightsError: external data are no file of the export, or shorter than the file says.
    """
    import onnx

    data = files[ONNX_FILE]
    # Any: the messages of protobuf have no static types.
    model: Any = onnx.load_from_string(data)
    if inline_external_data(model, read_beside):
        data = model.SerializeToString()
    values = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: _shape(value) for value in model.graph.input if value.name not in values}
    metadata = {item.key: item.value for item in model.metadata_props}
    outputs = frozenset(value.name for value in model.graph.output)
    return Graph(inputs, outputs, metadata, lambda precision, image_px: onnx_predictor({ONNX_FILE: data}))


def _shape(value: Any) -> tuple[int | None, ...]:
    return tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in value.type.tensor_type.shape.dim)


def onnx_predictor(files: Mapping[str, bytes]) -> Predictor:
    """Make a predictor of ONNX Runtime from the files of `onnx_files`: CPU, float32, as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Spinning threads take the cores from the threads that decode the next images; on a busy machine spinning halves the speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without this entry the bytes decide, and another format than the one that was checked could be read.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    session = onnxruntime.InferenceSession(files[ONNX_FILE], options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def predict(images: Tensor) -> dict[str, Tensor]:
        outputs = session.run(names, {INPUT: images.contiguous().numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return predict
