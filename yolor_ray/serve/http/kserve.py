"""Routes of the Open Inference Protocol, version 2 of KServe's: encoded images in a tensor of bytes, detections in tensors.

The protocol does not say how bytes travel in JSON. Here an image is a base64 text, and bytes of outputs are UTF-8 text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

import yolor_ray
from yolor_ray.config.serve import MAX_IMAGES
from yolor_ray.serve.http.api_keys import KEYED
from yolor_ray.serve.http.body import decode_base64, parse_json, time_limit_s
from yolor_ray.serve.http.errors import ApiError
from yolor_ray.serve.http.parameters import DetectParams, check_params
from yolor_ray.serve.http.schemas import ProtocolErrorBody
from yolor_ray.serve.http.tensors import EXTENSION, JSON_LENGTH, Tensor, read_elements, split_body, tensors_response
from yolor_ray.serve.requests import DetectedImage, ImageResult
from yolor_ray.serve.response import Json
from yolor_ray.serve.service import Service

INPUT = "images"
OUTPUTS = {"boxes": "FP32", "scores": "FP32", "labels": "BYTES", "image_index": "INT64", "detections": "BYTES"}
"""Datatypes of the outputs."""
BODY_SCHEMA = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "Repeated in the answer."},
        "parameters": {"type": "object", "description": "The query parameters of /v1/detect; binary_data_output for outputs as bytes."},
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "description": f'name "{INPUT}", datatype "BYTES", shape [N], N up to {MAX_IMAGES}, and data: N encoded images as base64',
                "required": ["name", "datatype", "shape"],
            },
        },
        "outputs": {"type": "array", "items": {"type": "object", "description": f"name, one of {', '.join(OUTPUTS)}"}},
    },
}
BODY = {"required": True, "content": {"application/json": {"schema": BODY_SCHEMA}}}
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {"model": ProtocolErrorBody} for code in (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504)
}
MODEL_ERRORS: dict[int | str, dict[str, Any]] = {code: ERROR_RESPONSES[code] for code in (401, 403, 404, 429, 503, 504)}

router = APIRouter()


class InputParameters(BaseModel):
    """Parameters of an input."""

    model_config = ConfigDict(extra="forbid")
    binary_data_size: Annotated[int, Field(ge=0)] | None = None


class RequestInput(BaseModel):
    """Input tensor of a request."""

    name: str
    datatype: str
    shape: list[int]
    parameters: InputParameters = InputParameters()
    data: list[str] | None = None


class OutputParameters(BaseModel):
    """Parameters of an output."""

    model_config = ConfigDict(extra="forbid")
    binary_data: bool | None = None


class RequestOutput(BaseModel):
    """Output tensor that a request asks for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferBody(BaseModel):
    """JSON of a request; other fields, such as `model_name`, repeat the path."""

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[RequestInput]
    outputs: list[RequestOutput] = [RequestOutput(name=name) for name in OUTPUTS]


@dataclass(frozen=True)
class InferRequest:
    """Request of an inference."""

    id: str | None
    images: list[bytes]
    params: DetectParams
    outputs: list[str]
    """Names of the outputs that the answer has."""
    as_bytes: list[str]
    """Names of those that follow the JSON as bytes."""


@router.get("/v2", dependencies=KEYED, responses={code: ERROR_RESPONSES[code] for code in (401, 403, 429)})
async def server() -> dict[str, str | list[str]]:
    """Return name, version and extensions of the server."""
    return {"name": "yolor_ray", "version": yolor_ray.__version__, "extensions": [EXTENSION]}


@router.get("/v2/health/live")
async def live() -> dict[str, bool]:
    """Return 200 as long as the process runs."""
    return {"live": True}


@router.get("/v2/health/ready", responses={503: ERROR_RESPONSES[503]})
async def ready(request: Request) -> dict[str, bool]:
    """Return 200 while the weights are loaded and the network works, else 503."""
    request.app.state.service.check_ready()
    return {"ready": True}


@router.get("/v2/models/{name}/ready", responses={code: ERROR_RESPONSES[code] for code in (404, 503)})
async def model_ready(request: Request, name: str) -> dict[str, str | bool]:
    """Return 200 while the network works and the weights of this name are, or can be, loaded; else 404 or 503."""
    service: Service = request.app.state.service
    service.catalog.check_usable(service.catalog.find(name))
    service.check_ready()
    return {"name": name, "ready": True}


@router.get("/v2/models/{name}", dependencies=KEYED, responses=MODEL_ERRORS)
async def model(request: Request, name: str) -> dict[str, Any]:
    """Return the inputs and outputs of the served weights."""
    service: Service = request.app.state.service
    current = await service.catalog.current(name, time_limit_s(request, service.settings.request_timeout_s))
    outputs = [
        {"name": output, "datatype": datatype, "shape": [-1, 4] if output == "boxes" else [-1]} for output, datatype in OUTPUTS.items()
    ]
    inputs = [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]
    return {"name": name, "platform": f"yolor_ray_{current.engine.name}", "inputs": inputs, "outputs": outputs}


@router.post("/v2/models/{name}/infer", dependencies=KEYED, responses=ERROR_RESPONSES, openapi_extra={"requestBody": BODY})
async def infer(request: Request, name: str) -> Response:
    """Detect objects in a tensor of encoded images; an image that cannot be used refuses the request."""
    service: Service = request.app.state.service
    async with service.receive(request, name) as received:
        asked = await service.in_decoder(read_request, received.body, request.headers.get(JSON_LENGTH), service.max_images)
        results = await service.detect_images(received, asked.images, asked.params.options(service.settings))
    answers = [_answer_of(index, result) for index, result in enumerate(results)]
    fields: Json = {"model_name": name, "model_version": received.model.info.version}
    if asked.id is not None:
        fields["id"] = asked.id
    if received.model.release:
        fields["parameters"] = {"release": received.model.release}
    return tensors_response(fields, [tensor for tensor in output_tensors(answers) if tensor.name in asked.outputs], asked.as_bytes)


def read_request(body: bytes, json_length: str | None, max_images: int) -> InferRequest:
    """Return the request in a body; raises ApiError or RequestValidationError."""
    document, binary = split_body(body, json_length)
    try:
        fields = InferBody.model_validate(parse_json(document, "an inference request"))
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        raise ApiError("bad_json", f"{'.'.join(map(str, fault['loc']))[:200] or 'body'}: {fault['msg'][:200]}") from None
    parameters = dict(fields.parameters)
    all_as_bytes = parameters.pop("binary_data_output", False)
    if not isinstance(all_as_bytes, bool):
        raise ApiError("bad_tensor", f"parameters.binary_data_output: found {str(all_as_bytes)[:80]!r}, expected true or false")
    params = check_params(parameters, "parameters")
    for output in fields.outputs:
        if output.name not in OUTPUTS:
            raise ApiError("bad_tensor", f"outputs: found {output.name[:80]!r}, expected some of {', '.join(OUTPUTS)}")
    kinds = {output.name: output.parameters.binary_data for output in fields.outputs}
    as_bytes = [name for name, is_binary in kinds.items() if is_binary or (is_binary is None and all_as_bytes)]
    return InferRequest(fields.id, _images(fields.inputs, binary, max_images), params, list(kinds), as_bytes)


def _images(inputs: Sequence[RequestInput], binary: bytes, max_images: int) -> list[bytes]:
    """Return the encoded images of the input."""
    if [(tensor.name, tensor.datatype) for tensor in inputs] != [(INPUT, "BYTES")]:
        found = ", ".join(f"{tensor.name[:40]!r} of {tensor.datatype[:40]}" for tensor in inputs[:8]) or "none"
        raise ApiError("bad_tensor", f"inputs: found {found}, expected one, {INPUT!r} of BYTES")
    [tensor] = inputs
    size = tensor.parameters.binary_data_size
    if (size is None) != (tensor.data is not None) or (size or 0) != len(binary):
        found = f"{'no ' if tensor.data is None else ''}data, binary_data_size {size} and {len(binary)} bytes after the JSON"
        raise ApiError("bad_tensor", f"{INPUT}: found {found}, expected data, or binary_data_size, the number of bytes after the JSON")
    images = read_elements(binary) if tensor.data is None else [decode_base64(text) for text in tensor.data]
    if tensor.shape != [len(images)] or not 1 <= len(images) <= max_images:
        raise ApiError(
            "bad_tensor",
            f"{INPUT}: found {len(images)} images of shape {tensor.shape[:8]}, expected shape [N] and N images, 1 to {max_images}",
        )
    return images


def output_tensors(answers: Sequence[Json]) -> list[Tensor]:
    """Return the OUTPUTS for the answers to the images; boxes of all images stand in one tensor."""
    found = [(index, detection) for index, answer in enumerate(answers) for detection in answer["detections"]]
    data = {
        "boxes": [edge for _, detection in found for edge in detection["box"]],
        "scores": [detection["confidence"] for _, detection in found],
        "labels": [detection["class"] for _, detection in found],
        "image_index": [index for index, _ in found],
        "detections": [json.dumps(answer) for answer in answers],
    }
    shapes = {"boxes": (len(found), 4), "detections": (len(answers),)}
    return [Tensor(name, datatype, shapes.get(name, (len(found),)), data[name]) for name, datatype in OUTPUTS.items()]


def _answer_of(index: int, result: ImageResult) -> Json:
    # Tensors have no place for the error of one image, and an image without boxes would be a wrong answer.
    if not isinstance(result, DetectedImage):
        raise ApiError(result.code, f"{INPUT}[{index}]: {result}", getattr(result, "headers", None))
    return result.fields
