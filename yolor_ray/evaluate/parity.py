"""Compare what two forms of one network predict on real images.

Legend: B images, S side of the square network input in pixels.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolor_ray.data.shards import Dataset
from yolor_ray.errors import DataError
from yolor_ray.evaluate.predictions import images_of
from yolor_ray.model.graph import Predictor, decode
from yolor_ray.model.network import Yolor
from yolor_ray.model.predict import to_input

BATCH = 4


@dataclass(frozen=True)
class Parity:
    """Hold the largest absolute differences over all images and predictions; NaN where a network gave NaN."""

    images: int
    image_px: int
    raw_error: float
    """Of raw outputs, before the sigmoid, fused against unfused: for information, as fp32 alone moves those of a deep network."""
    score_error: float
    """Of scores, 0 to 1."""
    box_error_px: float
    """Of box corners, pixels of the network input."""

    @property
    def max_error(self) -> float:
        """Largest difference of a prediction: of a score, or of a box corner as a fraction of the input's side.

        Corners count as fractions because fp32 itself resolves only 6e-5 px at 640 px.
        """
        return _max_error(self.score_error, self.box_error_px, self.image_px)


@torch.inference_mode()
def compare(network: Yolor, fused: Yolor, written: Predictor, dataset: Dataset, *, image_px: int, images: int) -> Parity:
    """Compare a network with its fused copy and with what was written, on the data set's first images.

    Raises:
        DataError: the data set is empty.
    """
    seen, worst = 0, torch.zeros(3, dtype=torch.float64)
    for pixels in _first_images(dataset, image_px, images):
        raw, raw_fused = network(pixels), fused(pixels)
        expected = decode(network, raw)
        raw_gap = torch.stack([_largest(a, b) for a, b in zip(raw, raw_fused, strict=True)]).max()
        # torch.maximum keeps a NaN, Python's max may lose it.
        gap = torch.maximum(_gap(expected, decode(fused, raw_fused)), _gap(expected, written(pixels)))
        worst = torch.maximum(worst, torch.cat((raw_gap[None], gap)))
        seen += len(pixels)
    if seen == 0:
        raise DataError(f"{dataset.url}: found no images, expected one or more to check the export on")
    return Parity(seen, image_px, *worst.tolist())


@torch.inference_mode()
def rounding(network: Yolor, dataset: Dataset, *, image_px: int, images: int) -> float:
    """Return the `max_error` of the network's own arithmetic: the same network, on the same images, in float64.

    No form of a network can be told from another more finely than this.
    """
    exact = copy.deepcopy(network).double()
    found = [
        difference(decode(exact, exact(pixels.double())), decode(network, network(pixels)), image_px)
        for pixels in _first_images(dataset, image_px, images)
    ]
    return torch.tensor(found).max().item()


def difference(expected: Sequence[Tensor], found: Sequence[Tensor], image_px: int) -> float:
    """Return the largest difference of (boxes_xyxy, scores): of a score, or of a corner as a fraction of the side.

    NaN where one holds NaN, infinity where the shapes differ.
    """
    if [part.shape for part in expected] != [part.shape for part in found]:
        return math.inf
    score_error, box_error_px = _gap(expected, found).tolist()
    return _max_error(score_error, box_error_px, image_px)


def _max_error(score_error: float, box_error_px: float, image_px: int) -> float:
    # torch's max keeps a NaN, Python's may lose it.
    return torch.tensor((score_error, box_error_px / image_px), dtype=torch.float64).max().item()


def _gap(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the largest differences of (boxes, scores) pairs: of scores, then of boxes."""
    (boxes_a, scores_a), (boxes_b, scores_b) = a, b
    return torch.stack((_largest(scores_a, scores_b), _largest(boxes_a, boxes_b)))


def _largest(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b.double()).abs().max()


def _first_images(dataset: Dataset, image_px: int, count: int) -> Iterator[Tensor]:
    """Yield batches of letterboxed images, `count` images in all or as many as there are."""
    for batch in images_of(dataset, dataset.row_groups, image_px, BATCH):
        pixels = to_input(torch.from_numpy(batch.images[:count]), torch.device("cpu"))
        yield pixels
        count -= len(pixels)
        if count == 0:
            return
