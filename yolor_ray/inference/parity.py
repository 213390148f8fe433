"""Compare the predictions of two forms of one network on real images.

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
from yolor_ray.inference.dataset_images import image_batches
from yolor_ray.inference.detect import to_input
from yolor_ray.inference.runtimes.torch_runtime import Predictor
from yolor_ray.model.network import Yolor

BATCH = 4


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences over all images and predictions; NaN where a network gave NaN."""

    images: int
    image_px: int
    raw_error: float
    """Of raw outputs, before the sigmoid, fused against unfused. For information: float32 alone moves raw outputs of a deep network."""
    score_error: float
    """Of scores, 0 to 1."""
    box_error_px: float
    """Of box corners, pixels of the network input."""
    task_error: float
    """Of the other tasks' outputs. Keypoints count as a fraction of the input's side, mask coefficients and prototypes as a fraction of
    the largest value, probabilities and embeddings unscaled."""

    @property
    def max_error(self) -> float:
        """Largest difference of a prediction: of a score, of a box corner as a fraction of the input's side, or of another task's output.

        Corners count as fractions because float32 itself resolves only 6e-5 px at 640 px.
        """
        return _max_error(self.score_error, self.box_error_px, self.task_error, self.image_px)


@torch.inference_mode()
def compare(network: Yolor, fused: Yolor, written: Predictor, dataset: Dataset, *, image_px: int, images: int) -> Parity:
    """Compare a network with its fused copy and with the predictor of the written files, on the dataset's first images.

    Raises:
        DataError: the dataset is empty.
    """
    count, worst = 0, torch.zeros(4, dtype=torch.float64)
    for pixels in _first_images(dataset, image_px, images):
        raw, raw_fused = network(pixels), fused(pixels)
        expected = network.decode(raw)
        raw_error = torch.stack([_largest(a, b) for task in raw for a, b in zip(raw[task], raw_fused[task], strict=True)]).max()
        # torch.maximum keeps a NaN, Python's max may lose it.
        errors = torch.maximum(_errors(expected, fused.decode(raw_fused), image_px), _errors(expected, written(pixels), image_px))
        worst = torch.maximum(worst, torch.cat((raw_error[None], errors)))
        count += len(pixels)
    if count == 0:
        raise DataError(f"{dataset.url}: found no images, expected one or more to check the export on")
    return Parity(count, image_px, *worst.tolist())


@torch.inference_mode()
def rounding_error(network: Yolor, dataset: Dataset, *, image_px: int, images: int) -> float:
    """Return the `max_error` of the network's own float32 arithmetic, against the same network on the same images in float64.

    No comparison of two forms of a network can be finer than this error.
    """
    exact = copy.deepcopy(network).double()
    errors = [
        difference(exact.decode(exact(pixels.double())), network.decode(network(pixels)), image_px)
        for pixels in _first_images(dataset, image_px, images)
    ]
    return torch.tensor(errors).max().item()


def difference(expected: Mapping[str, Tensor], outputs: Mapping[str, Tensor], image_px: int) -> float:
    """Return the largest difference between the outputs of two predictors, as `Parity.max_error` measures it.

    NaN where an output holds NaN, infinity where names or shapes differ.
    """
    if {name: output.shape for name, output in expected.items()} != {name: output.shape for name, output in outputs.items()}:
        return math.inf
    score_error, box_error_px, task_error = _errors(expected, outputs, image_px).tolist()
    return _max_error(score_error, box_error_px, task_error, image_px)


def _max_error(score_error: float, box_error_px: float, task_error: float, image_px: int) -> float:
    # torch's max keeps a NaN, Python's may lose it.
    return torch.tensor((score_error, box_error_px / image_px, task_error), dtype=torch.float64).max().item()


def _errors(a: Mapping[str, Tensor], b: Mapping[str, Tensor], image_px: int) -> Tensor:
    """Return the largest differences of scores, of boxes and of the other tasks' outputs."""
    task_errors = [_task_error(name, a[name], b[name], image_px) for name in a if name not in ("boxes_xyxy", "scores")]
    task_error = torch.stack(task_errors).max() if task_errors else torch.zeros((), dtype=torch.float64)
    return torch.stack((_largest(a["scores"], b["scores"]), _largest(a["boxes_xyxy"], b["boxes_xyxy"]), task_error))


def _task_error(name: str, a: Tensor, b: Tensor, image_px: int) -> Tensor:
    """Return the largest difference of one output, in units of its full scale."""
    if name == "keypoints":
        return torch.maximum(_largest(a[..., :2], b[..., :2]) / image_px, _largest(a[..., 2], b[..., 2]))
    error = _largest(a, b)
    return error / a.double().abs().max().clamp(min=1) if name in ("coefficients", "prototypes") else error


def _largest(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b.double()).abs().max().cpu()


def _first_images(dataset: Dataset, image_px: int, count: int) -> Iterator[Tensor]:
    """Yield batches of letterboxed images: the first `count` images of the dataset, or all if there are fewer."""
    for batch in image_batches(dataset, dataset.row_groups, image_px, BATCH):
        pixels = to_input(torch.from_numpy(batch.images[:count]), torch.device("cpu"))
        yield pixels
        count -= len(pixels)
        if count == 0:
            return
