"""Letterbox: fit a decoded image into the square network input, and convert boxes between the image and the input."""

from dataclasses import dataclass

import cv2
import numpy as np

from yolor_ray.data.images.decode import FILL


@dataclass(frozen=True)
class Letterbox:
    """Position and scale of an image inside the square network input."""

    scale: float
    """Input pixels per image pixel."""
    pad_x: int
    """Input pixels left of the image."""
    pad_y: int
    """Input pixels above the image."""
    width: int
    """Pixels of the displayed image."""
    height: int
    """Pixels of the displayed image."""

    def to_input(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Convert boxes (..., 4) from pixels of the image to pixels of the input."""
        return boxes_xyxy * self._factors() + np.array((self.pad_x, self.pad_y) * 2)

    def to_image(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Convert boxes (..., 4) from pixels of the input to pixels of the image, clipped to the image."""
        boxes_xyxy = (boxes_xyxy - np.array((self.pad_x, self.pad_y) * 2)) / self._factors()
        return np.clip(boxes_xyxy, 0, np.array((self.width, self.height) * 2))

    def _factors(self) -> np.ndarray:
        """Return input pixels per image pixel along x, y, x, y: `scale`, except that the sides are rounded to whole pixels."""
        inner_width, inner_height = _inner_size(self.width, self.height, self.scale)
        return np.array((inner_width / self.width, inner_height / self.height) * 2)


def _inner_size(width: int, height: int, scale: float) -> tuple[int, int]:
    return max(1, round(width * scale)), max(1, round(height * scale))


def letterbox(image: np.ndarray, width: int, height: int, out: np.ndarray) -> Letterbox:
    """Fit a decoded image, centred, into `out` and return its position and scale; the bars are grey 114.

    Args:
        image: (h, w, 3) uint8; the displayed image, full size or scaled down by `decode(fit_px=…)`.
        width: pixels of the displayed image at full size.
        height: pixels of the displayed image at full size.
        out: (S, S, 3) uint8, overwritten.
    """
    side = out.shape[0]
    scale = side / max(width, height)
    inner_width, inner_height = _inner_size(width, height, scale)
    left, top = (side - inner_width) // 2, (side - inner_height) // 2
    inside = out[top : top + inner_height, left : left + inner_width]
    out[:top], out[top + inner_height :] = FILL, FILL
    out[:, :left], out[:, left + inner_width :] = FILL, FILL
    if image.shape == inside.shape:
        inside[:] = image
    else:
        # Not INTER_AREA: after DCT scaling the remaining factor is below two, where INTER_AREA gains nothing and is slow.
        cv2.resize(image, (inner_width, inner_height), dst=inside, interpolation=cv2.INTER_LINEAR)
    return Letterbox(scale, left, top, width, height)
