"""Start a run from trained weights: on which anchors, from which tensors, and what starts fresh."""

import logging

import numpy as np

from yolor_ray.class_names import ClassNames
from yolor_ray.config import NetworkConfig
from yolor_ray.model.transfer import load_trainable, transfer_weights
from yolor_ray.train.learner import Learner

logger = logging.getLogger(__name__)


def pretrained_anchors(url: str, config: NetworkConfig) -> np.ndarray:
    """Return the (L, A, 2) anchors, pixels, of weights that fit the network; raises WeightsError where they do not."""
    network, _ = load_trainable(url, config)
    return network.head.anchors.numpy()


def start_from(url: str, learner: Learner, names: ClassNames) -> None:
    """Take the weights over into the network and its average, and log what starts fresh."""
    source, info = load_trainable(url, learner.network.config)
    taken = transfer_weights(learner.network, names, source, info)
    learner.average.network.load_state_dict(learner.network.state_dict())
    logger.info(
        "event=pretrained url=%s tensors=%d partly=%d fresh=%d classes_kept='%s' classes_fresh='%s'",
        *(url, taken.tensors, len(taken.partial), len(taken.fresh), ", ".join(taken.known_classes)),
        ", ".join(name for name in names.classes if name not in taken.known_classes),
    )
    if taken.partial:
        logger.info("event=outputs_reinitialised tensors='%s' kept='boxes, objectness and known classes'", " ".join(taken.partial))
    if taken.fresh:
        logger.info("event=reinitialised tensors='%s'", " ".join(taken.fresh))
