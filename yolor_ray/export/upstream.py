"""Import a published checkpoint as weights: the network, and what its classes are called."""

import logging
from typing import Any

from yolor_ray.errors import ConfigError
from yolor_ray.model.network import Yolor
from yolor_ray.model.upstream.coco_names import COCO
from yolor_ray.model.upstream.importer import UpstreamModel, load_upstream
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.pack.annotations.yolo import read_names

logger = logging.getLogger(__name__)


def upstream_weights(url: str, names: str = "") -> tuple[Yolor, WeightsInfo, dict[str, Any]]:
    """Return the network of a published file, what it is, and `network`, `layout` and number of `classes` for the job's result.

    Classes are called as the file `names` says, or else as the checkpoint does, or else as COCO's where there are 80.

    Raises:
        ConfigError: `names` has another number of names than the network has classes.
        WeightsError: the file cannot be used; see `load_published`.
    """
    found = load_upstream(url)
    classes = _classes(found, names)
    return (
        found.network,
        WeightsInfo(found.title, classes, found.image_px),
        {
            "network": found.title,
            "layout": found.layout,
            "classes": len(classes),
        },
    )


def _classes(found: UpstreamModel, names: str) -> tuple[str, ...]:
    count = found.network.classes
    if names:
        given = read_names(names)
        if len(given) != count:
            raise ConfigError(f"names: found {len(given)} in {names}, expected {count}, as many as the network has classes")
        return given
    if found.classes or count == len(COCO):
        return found.classes or COCO
    logger.warning("event=unnamed_classes classes=%d reason='no names in the file; give them by names'", count)
    return tuple(f"class{label}" for label in range(count))
