"""Move the external data of an ONNX graph into the graph.

A tensor of an ONNX file may name another file that holds its numbers. A runtime would open the file at that path, wherever the path leads.
After `inline_external_data` the graph names no file.
"""

from collections.abc import Callable, Iterator
from typing import Any

from yolor_ray.errors import WeightsError

TENSOR = "onnx.TensorProto"
"""Name of the protobuf message of a tensor."""


def inline_external_data(model: Any, read: Callable[[str], bytes]) -> bool:
    """Put the numbers of all tensors into an `onnx.ModelProto`, in place; return True if some were in other files.

    Args:
        model: graph with its subgraphs, functions and attributes.
        read: returns the content of a file by the path that a tensor names; raises WeightsError for a path that it refuses.

    Raises:
        WeightsError: a file is refused or shorter than a tensor says.
    """
    tensors = [tensor for tensor in _tensors(model) if tensor.data_location == tensor.EXTERNAL or tensor.external_data]
    files: dict[str, bytes] = {}
    for tensor in tensors:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        location = fields.get("location", "")
        if location not in files:
            files[location] = read(location)
        tensor.raw_data = _part(tensor.name, fields, files[location])
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return bool(tensors)


def _tensors(message: Any) -> Iterator[Any]:
    """Yield the tensors in a protobuf message, at any depth: protobuf itself bounds the depth."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in value if field.is_repeated else [value]:
            if field.message_type.full_name == TENSOR:
                yield inner
            else:
                yield from _tensors(inner)


def _part(name: str, fields: dict[str, str], data: bytes) -> bytes:
    """Return the bytes of a tensor."""
    try:
        start = int(fields.get("offset", 0))
        end = start + int(fields["length"]) if "length" in fields else len(data)
    except ValueError as error:
        raise WeightsError(f"tensor {name!r:.200}: found {error}, expected offset and length in bytes") from error
    if not 0 <= start <= end <= len(data):
        found = f"external data from byte {start} to {end} of {fields['location']!r:.200}"
        raise WeightsError(f"tensor {name!r:.200}: found {found}, expected a part of its {len(data)} bytes")
    return data[start:end]
