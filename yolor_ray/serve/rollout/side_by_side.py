"""Run two versions of a model on the same images, between two batches of requests."""

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.inference.views import Tiling, View, open_image
from yolor_ray.serve.engine import DetectOptions
from yolor_ray.serve.rollout.comparison import Found, found_in
from yolor_ray.serve.rollout.models import Model, SampledImage

if TYPE_CHECKING:
    from yolor_ray.serve.service import Service

MAX_STALL, MIN_STALL_S = 10.0, 0.1
"""Seconds of an image that reject a version before its comparison, as a multiple of the other version's; fewer seconds never do."""

logger = logging.getLogger(__name__)


def find(service: "Service", model: Model, image: SampledImage) -> Found:
    """Return the boxes of a version in an image as a whole; raises any exception of a broken version."""
    [result] = service.run_alone(model.engine.detect, [_view(model, image)])
    return found_in(result.detections, model.info.classes, result.seconds)


def find_before(service: "Service", before: Model, image: SampledImage) -> Found | None:
    """Return the boxes of the version before; None if it fails, which is no fault of the new one."""
    try:
        return find(service, before, image)
    except Exception as error:  # noqa: BLE001 - a release may be the way out of a broken version
        logger.warning(
            "event=image_not_compared model=%s version=%s reason='%s: %s'",
            *(before.info.name, before.release, type(error).__name__, error),
        )
        return None


def stall(service: "Service", before: Model, new: Model) -> str | None:
    """Return the seconds of a version that is so slow that its comparison would hold up requests, in words."""
    settings, data = service.settings, scene(0).image
    image = SampledImage(data, DetectOptions(settings.confidence, settings.iou, settings.max_detections))
    found = find_before(service, before, image)
    # Not in the thread of the network, where requests would wait.
    [result] = new.engine.detect([_view(new, image)])
    allowed_s = max(MAX_STALL * found.seconds, MIN_STALL_S) if found else math.inf
    if result.seconds <= allowed_s:
        return None
    return f"latency: found {result.seconds:.2f} s for an image, expected at most {allowed_s:.2f} s"


def lost_tasks(before: Model, new: Model) -> str | None:
    """Return the tasks of the version before that the new one misses, in words."""
    lost = [task for task in before.info.tasks if task not in new.info.tasks]
    if not lost:
        return None
    return f"tasks: found {', '.join(new.info.tasks)}, expected also {', '.join(lost)}, which the version before answers"


def log_classes(before: Model, new: Model) -> None:
    """Log the classes that only one of two versions has."""
    removed = [name for name in before.info.classes if name not in new.info.classes]
    added = [name for name in new.info.classes if name not in before.info.classes]
    if removed or added:
        logger.warning(
            "event=version_classes_differ model=%s version=%s removed='%s' added='%s' next='only common classes are compared'",
            *(new.info.name, new.release, ", ".join(removed), ", ".join(added)),
        )


def _view(model: Model, image: SampledImage) -> tuple[View, DetectOptions]:
    """Return the image as a whole in the input of a model."""
    [view] = open_image(image.data, model.info.image_px, Tiling()).views
    return view, replace(image.options, tile=0)
