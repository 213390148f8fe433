"""Parameters of a detection: in the query of `/v1/detect`, and in the JSON of the Open Inference Protocol."""

from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from yolor_ray import config
from yolor_ray.config.serve import SERVED_RANGES
from yolor_ray.serve.engine import DetectOptions


def _limit(name: str) -> Any:
    """Return the field of a limit with the range of SERVED_RANGES."""
    limit = SERVED_RANGES[name]
    at_least, above = (None, limit.low) if limit.above_low else (limit.low, None)
    return Field(ge=at_least, gt=above, le=limit.high, allow_inf_nan=False)


class DetectParams(BaseModel):
    """The parameters of a detection."""

    model_config = ConfigDict(extra="forbid")
    confidence: Annotated[float, _limit("confidence")] | Literal["best"] | None = Field(
        None, description="Least confidence of a returned box; `best` takes that of the model's `thresholds` for each class."
    )
    iou: Annotated[float, _limit("iou")] | None = Field(None, description="Overlap above which two boxes are one object.")
    max_detections: Annotated[int, _limit("max_detections")] | None = Field(None, description="Most boxes.")
    classes: tuple[str, ...] = Field((), description="Names of the only classes to detect, the parameter once for each; absent = all.")
    masks: bool = Field(True, description="Whether to answer the mask of each object.")
    keypoints: bool = Field(True, description="Whether to answer the keypoints of each object.")
    labels: bool = Field(True, description="Whether to answer the labels of the whole image.")
    embeddings: bool = Field(True, description="Whether to answer the embedding of each object.")
    tile: Annotated[int, _limit("tile")] | None = Field(
        None, description="Side of the tiles, in pixels of the image, that a larger image is cut into; absent = the image as a whole."
    )
    overlap: Annotated[float, _limit("overlap")] = Field(0.2, description="Share of a tile that its neighbour covers too.")

    release: str = Field("", description="Loaded version in the release folder that answers; absent = the one whose turn it is.")

    def options(self, settings: config.ServeConfig) -> DetectOptions:
        """Return the options of the request, with the service's settings for absent parameters."""
        return DetectOptions(**{**default_limits(settings), **self.model_dump(exclude_none=True)})


def read_query(request: Request) -> DetectParams:
    """Return the parameters in the query of a request; raises RequestValidationError.

    FastAPI would read them field by field, which takes more CPU.
    """
    query = request.query_params
    return check_params({name: query.getlist(name) if name == "classes" else query[name] for name in query}, "query")


def check_params(fields: dict[str, Any], place: str) -> DetectParams:
    """Return parameters that stand at a place of a request; raises RequestValidationError."""
    try:
        return DetectParams.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": (place, *fault["loc"])} for fault in error.errors()]) from None


def query_schema() -> list[dict[str, Any]]:
    """Return the `parameters` of OpenAPI that `read_query` reads."""
    schema = DetectParams.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": field, "description": field["description"]}
        for name, field in schema.items()
    ]


def default_limits(settings: config.ServeConfig) -> dict[str, Any]:
    """Return the values of the limits that a request leaves out."""
    return {name: getattr(settings, name) for name in ("confidence", "iou", "max_detections")}


def in_words(name: str) -> str:
    """Return the allowed values of a parameter, as error messages write them."""
    if name in ("classes", "release"):
        return "names of classes" if name == "classes" else "the name of a version"
    if name not in SERVED_RANGES:
        return "true or false"
    number = "a whole number" if name in ("max_detections", "tile") else "a number"
    limit = SERVED_RANGES[name]
    words = f"{number} {'' if limit.above_low else 'from '}{limit}"
    return f"{words}, or best" if name == "confidence" else words
