"""Start a run from pretrained weights: take their anchors and transfer their tensors.

Legend: L levels, A anchors per cell.
"""

import logging

import numpy as np

from yolor_ray.class_names import ClassNames
from yolor_ray.config import NetworkConfig, OptimConfig
from yolor_ray.errors import ConfigError
from yolor_ray.io.weights_url import BUILTIN, absolute_weights
from yolor_ray.model.transfer import differing_settings, load_trainable, transfer_weights
from yolor_ray.model.weights import load_weights
from yolor_ray.train.learner import Learner

logger = logging.getLogger(__name__)


def resolve_pretrained(optim: OptimConfig, network: NetworkConfig) -> str:
    """Return the absolute URL of the pretrained weights, `builtin`, or an empty text for random weights.

    The `builtin` weights give way to random weights if the network is of another shape.

    Raises:
        ConfigError: a part of random weights would be frozen.
    """
    if optim.pretrained != BUILTIN:
        return absolute_weights(optim.pretrained)
    differences = differing_settings(load_weights(BUILTIN)[0].config, network)
    if not differences:
        return BUILTIN
    if optim.freeze != "none":
        found = f"found {BUILTIN!r}, which does not fit the network: {'; '.join(differences)}"
        raise ConfigError(f"optim.pretrained: {found}; expected fitting weights, as optim.freeze is {optim.freeze}")
    logger.info("event=random_weights reason='the built-in weights do not fit: %s'", "; ".join(differences))
    return ""


def pretrained_anchors(url: str, config: NetworkConfig) -> np.ndarray | None:
    """Return the (L, A, 2) anchors, in pixels, of pretrained weights; None of weights without anchors.

    Raises:
        WeightsError: the weights do not fit the network of `config`.
    """
    network, _ = load_trainable(url, config)
    return network.head.anchors.numpy() if network.config.head == "anchors" else None


def load_pretrained(url: str, learner: Learner, names: ClassNames) -> None:
    """Copy pretrained weights into the network and its weight average, and log the tensors that start fresh."""
    source, info = load_trainable(url, learner.network.config)
    report = transfer_weights(learner.network, names, source, info)
    learner.average.network.load_state_dict(learner.network.state_dict())
    logger.info(
        "event=pretrained url=%s tensors=%d partly=%d fresh=%d classes_kept='%s' classes_fresh='%s'",
        *(url, report.copied, len(report.partial), len(report.fresh), ", ".join(report.shared_classes)),
        ", ".join(name for name in names.classes if name not in report.shared_classes),
    )
    if report.partial:
        logger.info("event=outputs_reinitialised tensors='%s' kept='boxes, objectness and known classes'", " ".join(report.partial))
    if report.fresh:
        logger.info("event=reinitialised tensors='%s'", " ".join(report.fresh))
