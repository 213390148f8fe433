"""Import a checkpoint of the authors (upstream) as weights: the network and its class names."""

import logging
from typing import Any

from yolor_ray.errors import ConfigError
from yolor_ray.model.network import Yolor
from yolor_ray.model.upstream.coco_names import COCO_CLASSES
from yolor_ray.model.upstream.importer import UpstreamModel, load_upstream
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.pack.annotations.yolo.names import read_names

logger = logging.getLogger(__name__)


def upstream_weights(url: str, names: str = "") -> tuple[Yolor, WeightsInfo, dict[str, Any]]:
    """Return the network of an upstream checkpoint, its description, and `network`, `layout` and number of `classes` for the job's result.

    Class names come from the file `names`, or else from the checkpoint, or else from COCO for 80 classes.

    Raises:
        ConfigError: `names` has another number of names than the network has classes.
        WeightsError: the file cannot be used; see `load_upstream`.
    """
    model = load_upstream(url)
    classes = _classes(model, names)
    info = WeightsInfo(model.name, classes, model.image_px)
    return model.network, info, {"network": model.name, "layout": model.layout, "classes": len(classes)}


def _classes(model: UpstreamModel, names_url: str) -> tuple[str, ...]:
    count = model.network.classes
    if names_url:
        names = read_names(names_url).classes
        if len(names) != count:
            raise ConfigError(f"names: found {len(names)} in {names_url}, expected {count}, as many as the network has classes")
        return names
    if model.classes or count == len(COCO_CLASSES):
        return model.classes or COCO_CLASSES
    logger.warning("event=unnamed_classes classes=%d reason='no names in the file; give them by names'", count)
    return tuple(f"class{label}" for label in range(count))
