"""Describe what the service answers; OpenAPI is made from these schemas.

What a network has not learned, and what a request switched off, is absent from its answer, never null.
"""

from typing import Any

from pydantic import BaseModel, Field
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from yolor_ray.serve.http import errors


def _without_default(schema: JsonDict) -> None:
    del schema["default"]


def _maybe(description: str) -> Any:
    """Describe a field that is absent from some answers."""
    return Field(None, description=description, json_schema_extra=_without_default)


class Model(BaseModel):
    """Which weights answered."""

    name: str
    version: str = Field(description="First 12 hexadecimal digits of the SHA-256 of the weights.")


class ModelCard(Model):
    """What is served."""

    classes: list[str]
    tasks: list[str] = Field(description="What the network has learned: detect, classify, embed, segment, pose.")
    image_classes: list[str] | SkipJsonSchema[None] = _maybe("Labels of whole images; absent without the task classify.")
    keypoint_names: list[str] | SkipJsonSchema[None] = _maybe("Keypoints of each object; absent without the task pose.")
    embedding_numbers: int | SkipJsonSchema[None] = _maybe("Numbers of an embedding; absent without the task embed.")
    image_px: int = Field(description="Side of the network's square input.")
    fused: bool = Field(description="Whether batch norm and implicit vectors are folded away.")
    engine: str = Field(description="What runs the network on the replica that answered: torch, onnxruntime or openvino.")
    precision: str = Field(description="What it computes in: float32 or bfloat16.")
    metrics: dict[str, float] = Field(description="What was measured on the validation set, where known.")
    defaults: dict[str, float] = Field(description="Parameters of a detection that are used when a request names none.")


class Size(BaseModel):
    """Pixels of the displayed image (EXIF orientation applied)."""

    width: int
    height: int


class RunLengths(BaseModel):
    """A mask as COCO's tools read and write it."""

    size: list[int] = Field(description="Height and width of the displayed image.", min_length=2, max_length=2)
    counts: str = Field(description="Compressed run lengths, columns first.")


class Mask(BaseModel):
    """The pixels of one object."""

    rle: RunLengths
    polygons: list[list[float]] = Field(
        description="Outer outline of each part, x1, y1, x2, y2, … in pixels of the displayed image, of which the first covers 0 to 1, "
        "as for boxes. Corners lie on the middles of pixel sides; simplified by less than half a pixel; holes are filled."
    )
    area: int = Field(description="Pixels of the mask; 0 where the box holds no mask.")


class Keypoint(BaseModel):
    """One keypoint of an object."""

    name: str
    x: float = Field(description="Pixels of the displayed image; may lie outside.")
    y: float = Field(description="Pixels of the displayed image; may lie outside.")
    confidence: float = Field(description="Probability that it is there to be seen.")


class Detection(BaseModel):
    """One object."""

    box: list[float] = Field(description="x1, y1, x2, y2 in pixels of the displayed image.", min_length=4, max_length=4)
    class_name: str = Field(alias="class")
    class_id: int
    confidence: float
    mask: Mask | SkipJsonSchema[None] = _maybe("Absent without the task segment, or with masks=false.")
    keypoints: list[Keypoint] | SkipJsonSchema[None] = _maybe("All of them; absent without the task pose, or with keypoints=false.")
    embedding: str | SkipJsonSchema[None] = _maybe(
        "Base64 of little-endian float32 numbers, of length 1 together: the dot product of two is the cosine of the angle between them, "
        "high for one individual. Absent without the task embed, or with embeddings=false."
    )


class ImageLabel(BaseModel):
    """How sure it is that a label holds for the whole image."""

    label: str
    label_id: int
    confidence: float = Field(description="Probability; several labels may hold.")


class Answer(BaseModel):
    """What is in one image, best first."""

    request_id: str
    model: Model
    image: Size
    detections: list[Detection]
    labels: list[ImageLabel] | SkipJsonSchema[None] = _maybe("All of them; absent without the task classify, or with labels=false.")
    timing_ms: dict[str, float] = Field(
        description="Milliseconds per stage: body, decode, queue, network; and answer, which makes masks, where there is more than boxes."
    )


class ErrorBody(BaseModel):
    """Why there is no answer."""

    code: str = Field(description="Stable; one of " + ", ".join(errors.STATUS) + ".")
    message: str
    request_id: str
