"""Evaluation refuses an input side that does not fit the strides of the network."""

import pytest
import torch

from yolor_ray.config import EvaluateConfig, NetworkConfig
from yolor_ray.errors import ConfigError
from yolor_ray.evaluate.run import evaluate
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights

FOUR_LEVELS = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16, 16), depths=(1, 1, 1, 1, 1), neck_depth=1, levels=4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_side_that_is_no_multiple_of_the_coarsest_stride_is_refused(tmp_path, squares, precision):
    weights = str(tmp_path / "weights")
    network = Yolor(FOUR_LEVELS, 2, torch.rand(4, 3, 2) + 8)
    save_weights(weights, network, WeightsInfo("four", squares.classes, image_px=64))
    with pytest.raises(ConfigError, match="image_px: found 96, expected a multiple of the coarsest stride, 64"):
        evaluate(EvaluateConfig(weights=weights, data=squares.url, image_px=96, precision=precision))
