"""Views of an encoded image in the network's input: the image as a whole, or its tiles, and the way back to detections of the image.

Prediction and serving both come through here. Legend: S side of the square network input in pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from yolor_ray.data.images.decode import MAX_PIXELS, decode
from yolor_ray.data.images.header import read_header
from yolor_ray.data.images.letterbox import Letterbox, letterbox
from yolor_ray.inference.postprocess import ImageDetections
from yolor_ray.inference.tiles import Tile, cut_tiles, merge_tiles


@dataclass(frozen=True)
class View:
    """An image, or a tile of it, in the network's input."""

    pixels: np.ndarray
    """(S, S, 3) uint8 RGB."""
    letterbox: Letterbox
    """Position in the input."""
    tile: Tile | None = None
    """Rectangle of the image; None for the whole image."""


@dataclass(frozen=True)
class Tiling:
    """Wish to cut images that are larger than a tile."""

    tile_px: int = 0
    """Side of the square tiles, pixels of the image; 0 fits each image as a whole into the network's input."""
    overlap: float = 0.2
    """Share of a tile that its neighbour covers too."""
    with_whole: bool = False
    """Look at the whole image, too: labels of a whole image cannot come from its tiles."""

    def tiles(self, width: int, height: int) -> list[Tile | None]:
        """Return the tiles of an image in pixels of the displayed image; None stands for the whole image."""
        if not 0 < self.tile_px < max(width, height):
            return [None]
        tiles: list[Tile | None] = [*cut_tiles(width, height, self.tile_px, self.overlap)]
        return [*tiles, None] if self.with_whole else tiles


@dataclass(frozen=True)
class OpenImage:
    """Decoded image with its views."""

    width: int
    """Pixels of the displayed image."""
    height: int
    """Pixels of the displayed image."""
    views: Iterator[View]
    """The views. A tile is made when it is taken: all tiles of a large image would take several times its memory."""
    view_count: int


def open_image(data: bytes, side: int, tiling: Tiling, *, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS) -> OpenImage:
    """Decode an image and cut it into views; raises ImageError.

    Args:
        data: the encoded image.
        side: S.
        tiling: whether and how to cut.
        size: width and height of the displayed image, where the encoded one was scaled down from it; None takes its own.
        max_pixels: pixels above which the image is refused before it is decoded.
    """
    header = read_header(data)
    width, height = size or (header.width, header.height)
    tiles = tiling.tiles(width, height)
    is_tiled = tiles != [None]
    pixels = decode(data, fit_px=None if is_tiled else side, max_pixels=max_pixels)
    if not is_tiled:
        return OpenImage(width, height, iter([make_view(pixels, width, height, side)]), 1)
    height, width = pixels.shape[:2]
    tiles = tiling.tiles(width, height)
    views = (_tile_view(pixels, side, tile) if tile else make_view(pixels, width, height, side) for tile in tiles)
    return OpenImage(width, height, views, len(tiles))


def make_view(pixels: np.ndarray, width: int, height: int, side: int) -> View:
    """Fit decoded pixels (h, w, 3), those of an image of width x height, into the network's input."""
    out = np.empty((side, side, 3), np.uint8)
    return View(out, letterbox(pixels, width, height, out))


def _tile_view(pixels: np.ndarray, side: int, tile: Tile) -> View:
    part = np.ascontiguousarray(pixels[tile.top : tile.bottom, tile.left : tile.right])
    return replace(make_view(part, part.shape[1], part.shape[0], side), tile=tile)


def merge_views(
    found: Sequence[tuple[Tile | None, ImageDetections]], width: int, height: int, *, iou: float, max_detections: int
) -> ImageDetections:
    """Return the detections of an image from those of its views; of a tiled image seen as a whole, only the labels count.

    Args:
        found: tile of each view, and the detections in pixels of the tile.
        width: pixels of the image.
        height: pixels of the image.
        iou: boxes of one class that overlap more than this are one object.
        max_detections: most detections of the image.
    """
    tiles = [(tile, detections) for tile, detections in found if tile is not None]
    whole = next((detections for tile, detections in found if tile is None), None)
    if not tiles:
        assert whole is not None
        return whole
    merged = merge_tiles(tiles, width, height, iou=iou, max_detections=max_detections)
    return replace(merged, image_labels=whole.image_labels) if whole else merged
