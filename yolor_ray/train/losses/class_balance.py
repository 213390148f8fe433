"""Weights of the classes in the class loss, against the neglect of rare classes.

The weight is the inverse square root of the class frequency, as in the resampling of Mahajan et al. (arXiv 1805.00932) and of LVIS
(arXiv 1908.03195). Weights, unlike resampling, keep the epochs exact: every image counts once.
"""

import numpy as np

MAX_WEIGHT_RATIO = 10.0
"""Largest weight relative to that of the most frequent class; reached at a hundredth of its boxes."""


def balanced_weights(boxes_per_class: np.ndarray) -> np.ndarray:
    """Return the weight of each class, (K,) float32; the mean over all boxes is 1, and so is the weight of a class without boxes.

    Args:
        boxes_per_class: (K,) numbers of boxes in the training set.
    """
    known = boxes_per_class > 0
    weights = np.ones(len(boxes_per_class))
    if known.any():
        boxes = boxes_per_class[known]
        ratios = np.minimum(np.sqrt(boxes.max() / boxes), MAX_WEIGHT_RATIO)
        weights[known] = ratios * boxes.sum() / (ratios * boxes).sum()
    return weights.astype(np.float32)
