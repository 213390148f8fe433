"""Schemas of the service's responses; OpenAPI is generated from them.

A task that the network has not learned, or that a request switched off, is absent from the response and never null.
"""

from typing import Any

from pydantic import BaseModel, Field
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from yolor_ray.serve.http import errors


def _drop_default(schema: JsonDict) -> None:
    del schema["default"]


def _optional(description: str) -> Any:
    """Return a field that is absent from some responses."""
    return Field(None, description=description, json_schema_extra=_drop_default)


class Model(BaseModel):
    """Name and version of the weights."""

    name: str
    version: str = Field(description="First 12 hexadecimal digits of the SHA-256 of the weights.")
    release: str | SkipJsonSchema[None] = _optional("Version in the release folder, such as 0007-3f9a1c2d2b10; absent without one.")


class ModelCard(Model):
    """Description of the served weights."""

    classes: list[str]
    tasks: list[str] = Field(description="Tasks that the network has learned: detect, classify, embed, segment, pose.")
    image_classes: list[str] | SkipJsonSchema[None] = _optional("Labels of whole images; absent without the task classify.")
    keypoint_names: list[str] | SkipJsonSchema[None] = _optional("Keypoints of all classes together; absent without the task pose.")
    class_keypoints: dict[str, list[str]] | SkipJsonSchema[None] = _optional(
        "Keypoints of each class that has some; absent without the task pose."
    )
    embedding_numbers: int | SkipJsonSchema[None] = _optional("Numbers of an embedding; absent without the task embed.")
    image_px: int = Field(description="Side of the network's square input.")
    fused: bool = Field(description="Whether batch norm and implicit vectors are folded away.")
    engine: str = Field(description="Engine that executes the network on the replica that answered: torch, onnxruntime or openvino.")
    precision: str = Field(description="Precision of the arithmetic: float32 or bfloat16.")
    metrics: dict[str, float] = Field(description="Metrics on the validation set, where known.")
    thresholds: dict[str, float] = Field(description="Confidence with the best F1 score on the validation set, by class, where known.")
    fallback_confidence: float = Field(description="Confidence that `confidence=best` takes for a class without a threshold.")
    max_images: int = Field(description="Most images of one request: 32, or all that the queue of a replica takes.")
    defaults: dict[str, float | str] = Field(description="Values of the query parameters that a request leaves out.")


class Candidate(BaseModel):
    """Version of a model under comparison with the one before."""

    version: str
    release: str
    before: str = Field(description="Version in the release folder that it is compared with.")
    stage: str = Field(description="shadow: answers no request; share: a quarter of the requests; all: every request.")


class ListedModel(BaseModel):
    """Model of the list, as the replica that answers knows it."""

    name: str
    default: bool = Field(description="Whether the model answers where a request names none.")
    loaded: bool = Field(description="Whether the model is loaded; the first request for another one loads it.")
    version: str | SkipJsonSchema[None] = _optional("Version of the weights; absent before the first load.")
    release: str | SkipJsonSchema[None] = _optional("Version in the release folder; absent without one, and while the model is not loaded.")
    candidate: Candidate | SkipJsonSchema[None] = _optional("Newer version under comparison; absent without one.")
    classes: list[str] | SkipJsonSchema[None] = _optional("Absent before the first load.")
    tasks: list[str] | SkipJsonSchema[None] = _optional("Tasks that the network has learned; absent before the first load.")
    fault: str | SkipJsonSchema[None] = _optional("Reason for which requests of the model are refused now; absent without one.")


class ModelNames(BaseModel):
    """Models of the service, in the order of their file."""

    models: list[ListedModel]


class Size(BaseModel):
    """Pixels of the displayed image (EXIF orientation applied)."""

    width: int
    height: int


class RunLengths(BaseModel):
    """A mask in the run-length format of COCO's tools."""

    size: list[int] = Field(description="Height and width of the displayed image.", min_length=2, max_length=2)
    counts: str = Field(description="Compressed run lengths, columns first.")


class Mask(BaseModel):
    """The pixels of one object."""

    rle: RunLengths
    polygons: list[list[float]] = Field(
        description="Outer outline of each connected part, x1, y1, x2, y2, … in pixels of the displayed image; the first covers 0 to 1, "
        "as for boxes. Corners lie on the middles of pixel sides; outlines are simplified by less than half a pixel; holes are filled."
    )
    area: int = Field(description="Pixels of the mask; 0 where the box holds no mask.")


class Keypoint(BaseModel):
    """One keypoint of an object."""

    name: str
    x: float = Field(description="Pixels of the displayed image; may lie outside.")
    y: float = Field(description="Pixels of the displayed image; may lie outside.")
    confidence: float = Field(description="Probability that the keypoint is visible.")


class Detection(BaseModel):
    """One object."""

    box: list[float] = Field(description="x1, y1, x2, y2 in pixels of the displayed image.", min_length=4, max_length=4)
    class_name: str = Field(alias="class")
    class_id: int
    confidence: float
    mask: Mask | SkipJsonSchema[None] = _optional("Absent without the task segment, or with masks=false.")
    keypoints: list[Keypoint] | SkipJsonSchema[None] = _optional(
        "All those of the class, so the list may be empty; absent without the task pose, or with keypoints=false."
    )
    embedding: str | SkipJsonSchema[None] = _optional(
        "Base64 of little-endian float32 numbers, a unit vector: the dot product of two embeddings is the cosine of their angle, "
        "high for views of one individual. Absent without the task embed, or with embeddings=false."
    )


class ImageLabel(BaseModel):
    """One label of the whole image with its probability."""

    label: str
    label_id: int
    confidence: float = Field(description="Probability; several labels may hold.")


class Identified(BaseModel):
    """Request and model of an answer."""

    request_id: str
    model: Model


class Detected(BaseModel):
    """Detections in one image, most confident first."""

    image: Size
    detections: list[Detection]
    labels: list[ImageLabel] | SkipJsonSchema[None] = _optional("All of them; absent without the task classify, or with labels=false.")
    timing_ms: dict[str, float] = Field(
        description="Milliseconds per stage: body, decode, queue, network; with other tasks than detect also answer, which encodes masks; "
        "load where the request waited for its model."
    )


class Answer(Detected, Identified):
    """Detections in one image, most confident first."""


class NamedAnswer(Detected):
    """Detections in one image of a batch."""

    name: str = Field(description="File name of the part.")


class Fault(BaseModel):
    """Error of one image."""

    code: str = Field(description="Stable; one of those of an error response.")
    message: str


class NamedFault(BaseModel):
    """Image of a batch that could not be used."""

    name: str = Field(description="File name of the part.")
    error: Fault


class BatchAnswer(Identified):
    """Answers to the images of a request, in the order of its parts."""

    results: list[NamedAnswer | NamedFault]


class ErrorBody(BaseModel):
    """Error response."""

    code: str = Field(description="Stable; one of " + ", ".join(errors.STATUS) + ".")
    message: str
    request_id: str


class ProtocolErrorBody(ErrorBody):
    """Error response of the Open Inference Protocol."""

    error: str = Field(description="The message.")
