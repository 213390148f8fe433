"""Requests and answers inside a service, from the received body to the fields of the response."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from starlette.requests import Request

from yolor_ray import config
from yolor_ray.data.images.decode import decoded_pixels
from yolor_ray.data.images.header import read_header
from yolor_ray.errors import ConfigError, ImageError
from yolor_ray.inference.detect import check_classes
from yolor_ray.inference.views import OpenImage, Tiling, open_image
from yolor_ray.serve.catalog.named_model import NamedModel
from yolor_ray.serve.engine import DetectOptions
from yolor_ray.serve.http.api_keys import ApiKeys
from yolor_ray.serve.http.errors import ApiError
from yolor_ray.serve.response import Json
from yolor_ray.serve.rollout.models import Model, Models

MAX_TILES = 256
"""Most tiles of one image: a batch of other images passes between two batches of its tiles."""
SMALL_PIXELS = 4_000_000
"""Pixels up to which an image that is not cut into tiles is decoded at once: of these, no more than `decode_threads` are in memory."""


@dataclass
class ReceivedRequest:
    """Request whose body has arrived."""

    request: Request
    body: bytes
    body_s: float
    """Seconds until the body was complete."""
    load_s: float
    """Seconds until the model was loaded; 0 if it was loaded already."""
    named: NamedModel
    """Model that the request names, or the default."""
    models: Models
    """Versions of that model."""
    model: Model
    """Version that answers all images of the request; the stable one until `choose`."""
    is_repeated: bool = False
    """A candidate failed, and the model before answers."""

    def choose(self, options: DetectOptions) -> None:
        """Take the version that the options name, or else the one whose turn it is.

        Raises:
            ApiError: the named version is not loaded, or the version has not learned a class of the options.
        """
        release, model = options.release, self.models.choose(options.release)
        if model is None:
            loaded = [item.release for item in (self.models.stable, self.models.candidate) if item and item.release]
            expected = f"one of the loaded versions {', '.join(loaded)}" if loaded else "none, as the model has no release folder"
            raise ApiError("bad_parameter", f"release: found {release[:80]!r}, expected {expected}")
        try:
            check_classes(options.classes, model.info)
        except ConfigError as error:
            raise ApiError("bad_parameter", str(error)) from None
        self.model = model


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


def open_received(
    received: ReceivedRequest, read: Callable[[], bytes], options: DetectOptions, settings: config.ServeConfig, keys: ApiKeys | None
) -> OpenImage | LargeImage:
    """Decode an image of a request, unless its pixels count in the budget; raises ApiError or ImageError.

    Args:
        received: request of the image.
        read: returns the encoded image.
        options: options of the image.
        settings: settings of the service.
        keys: keys of the service, which charge the pixels to the client; None without keys.
    """
    info, data = received.model.info, read()
    header = read_header(data)
    max_pixels = int(settings.max_megapixels * 1e6)
    tiling = Tiling(options.tile, options.overlap, with_whole="classify" in info.tasks and options.labels)
    open_ = functools.partial(open_image, data, info.image_px, tiling, max_pixels=max_pixels)
    # An image over the limit is refused without decoding.
    if header.width * header.height > max_pixels:
        return open_()
    tile_count = len(tiling.tiles(header.width, header.height))
    if tile_count > MAX_TILES:
        advice = "send a smaller image, or ask for larger tiles"
        raise ApiError("too_many_tiles", f"found {tile_count} tiles, expected at most {MAX_TILES}: {advice}")
    if keys is not None and not received.is_repeated:
        keys.charge_pixels(received.request.state.api_key, header.width * header.height)
    pixels = decoded_pixels(header, info.image_px if tile_count == 1 else None)
    return LargeImage(open_, pixels, tile_count > 1) if tile_count > 1 or pixels > SMALL_PIXELS else open_()
