"""Requests and answers inside a service, from the received body to the fields of the response."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from starlette.requests import Request

from yolor_ray.errors import ImageError
from yolor_ray.inference.views import OpenImage
from yolor_ray.serve.http.errors import ApiError
from yolor_ray.serve.response import Json
from yolor_ray.serve.rollout.models import Model


@dataclass
class ReceivedRequest:
    """Request whose body has arrived."""

    request: Request
    body: bytes
    body_s: float
    """Seconds until the body was complete."""
    model: Model
    """Model that answers all images of the request."""
    is_repeated: bool = False
    """A candidate failed, and the model before answers."""


@dataclass(frozen=True)
class DetectedImage:
    """Answer to one image."""

    fields: Json
    """Response, without request id and model."""
    tiles: int

    @property
    def detections(self) -> int:
        """Return the number of objects."""
        return len(self.fields["detections"])


ImageResult: TypeAlias = DetectedImage | ApiError | ImageError


@dataclass(frozen=True)
class LargeImage:
    """Encoded image whose pixels count in the budget."""

    open: Callable[[], OpenImage]
    pixels: int
    is_tiled: bool
    """The pixels stay until the last tile is cut."""
