"""Compare what two forms of one network predict on real images.

Legend: B images, S side of the square network input in pixels.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.errors import DataError
from yolor_ray.inference.dataset_images import images_of
from yolor_ray.inference.detect import to_input
from yolor_ray.inference.runtimes import Predictor
from yolor_ray.model.network import Yolor

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
    task_error: float
    """Of what other tasks answer: of probabilities and embeddings, of keypoints as a fraction of the side, of the numbers that masks are
    made of as a fraction of the largest."""

    @property
    def max_error(self) -> float:
        """Largest difference of a prediction: of a score, of a box corner as a fraction of the input's side, or of another task's answer.

        Corners count as fractions because fp32 itself resolves only 6e-5 px at 640 px.
        """
        return _max_error(self.score_error, self.box_error_px, self.task_error, self.image_px)


@torch.inference_mode()
def compare(network: Yolor, fused: Yolor, written: Predictor, dataset: Dataset, *, image_px: int, images: int) -> Parity:
    """Compare a network with its fused copy and with what was written, on the data set's first images.

    Raises:
        DataError: the data set is empty.
    """
    seen, worst = 0, torch.zeros(4, dtype=torch.float64)
    for pixels in _first_images(dataset, image_px, images):
        raw, raw_fused = network(pixels), fused(pixels)
        expected = network.decode(raw)
        raw_gap = torch.stack([_largest(a, b) for task in raw for a, b in zip(raw[task], raw_fused[task], strict=True)]).max()
        # torch.maximum keeps a NaN, Python's max may lose it.
        gap = torch.maximum(_gap(expected, fused.decode(raw_fused), image_px), _gap(expected, written(pixels), image_px))
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
        difference(exact.decode(exact(pixels.double())), network.decode(network(pixels)), image_px)
        for pixels in _first_images(dataset, image_px, images)
    ]
    return torch.tensor(found).max().item()


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], image_px: int) -> float:
    """Return the largest difference of what two predictors answer, as `Parity.max_error` measures it.

    NaN where one holds NaN, infinity where names or shapes differ.
    """
    if {name: part.shape for name, part in expected.items()} != {name: part.shape for name, part in found.items()}:
        return math.inf
    score_error, box_error_px, task_error = _gap(expected, found, image_px).tolist()
    return _max_error(score_error, box_error_px, task_error, image_px)


def _max_error(score_error: float, box_error_px: float, task_error: float, image_px: int) -> float:
    # torch's max keeps a NaN, Python's may lose it.
    return torch.tensor((score_error, box_error_px / image_px, task_error), dtype=torch.float64).max().item()


def _gap(a: Mapping[str, Tensor], b: Mapping[str, Tensor], image_px: int) -> Tensor:
    """Return the largest differences of scores, of boxes and of other tasks' answers."""
    others = [_task_gap(name, a[name], b[name], image_px) for name in a if name not in ("boxes_xyxy", "scores")]
    task_gap = torch.stack(others).max() if others else torch.zeros((), dtype=torch.float64)
    return torch.stack((_largest(a["scores"], b["scores"]), _largest(a["boxes_xyxy"], b["boxes_xyxy"]), task_gap))


def _task_gap(name: str, a: Tensor, b: Tensor, image_px: int) -> Tensor:
    """Return the largest difference of one output in units in which 1 is as much as there can be."""
    if name == "keypoints":
        return torch.maximum(_largest(a[..., :2], b[..., :2]) / image_px, _largest(a[..., 2], b[..., 2]))
    gap = _largest(a, b)
    return gap / a.double().abs().max().clamp(min=1) if name in ("coefficients", "prototypes") else gap


def _largest(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b.double()).abs().max().cpu()


def _first_images(dataset: Dataset, image_px: int, count: int) -> Iterator[Tensor]:
    """Yield batches of letterboxed images, `count` images in all or as many as there are."""
    for batch in images_of(dataset, dataset.row_groups, image_px, BATCH):
        pixels = to_input(torch.from_numpy(batch.images[:count]), torch.device("cpu"))
        yield pixels
        count -= len(pixels)
        if count == 0:
            return
