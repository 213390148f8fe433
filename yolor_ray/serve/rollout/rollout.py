"""Bring the versions of a release folder to the requests of one replica, in a thread beside its event loop.

A new version is loaded, compared on images of requests that the version before answers (shadow), given a share of the requests, and then
all of them. It is accepted when it has kept all bounds on enough images. Otherwise it is rejected, for all replicas.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from yolor_ray.data.synthetic.scenes import scene
from yolor_ray.errors import IntegrityError, StorageError, UserError
from yolor_ray.inference.views import Tiling, View, open_image
from yolor_ray.io.release_folder import Event, ReleaseFolder, Releases
from yolor_ray.serve.engine import DetectOptions, Engine
from yolor_ray.serve.rollout.comparison import Comparison, Found, found_in
from yolor_ray.serve.rollout.models import Model, SampledImage
from yolor_ray.serve.service import Service

POLL_S = 5.0
"""Seconds between two readings of the release folder."""
RETRY_S = 60.0
"""Seconds until a version whose loading failed is loaded again, if it is not rejected for the failure."""
STAGE_LIMIT_S = 120.0
"""Longest time in shadow, and with a share: a service with little traffic comes to the new version within minutes. The comparison goes on
with the images that come later, and the version before stays loaded until there are enough of them."""
SHADOW_IMAGES = 64
"""Images that are compared before the new version answers a request."""
SHARE, SHARE_IMAGES = 0.25, 128
"""Share of the requests that the new version answers at first, and the number of compared images after which it answers all."""
MAX_STALL, MIN_STALL_S = 10.0, 0.1
"""Seconds of an image that reject a version before its comparison, as a multiple of the other version's; fewer seconds never do."""
PAUSES = 3
"""Pause after the comparison of an image, as a multiple of its seconds: comparisons take at most a quarter of the network's time."""

logger = logging.getLogger(__name__)


class Stage(Enum):
    """Stage of a new version."""

    SHADOW = "shadow"
    SHARE = "share"
    ALL = "all"


@dataclass
class Trial:
    """New version under comparison."""

    model: Model
    comparison: Comparison
    began_s: float
    """Time at which the stage began."""
    stage: Stage = Stage.SHADOW


class Rollout:
    """Way of each release to the requests of one replica."""

    def __init__(
        self, service: Service, folder: ReleaseFolder, load: Callable[[str], Engine], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with the version that the service answers with.

        Args:
            service: service of the replica, whose model has the name of a version of the folder.
            folder: release folder.
            load: loads and warms the engine of a version, given by its name; it may raise any exception.
            clock: seconds of a clock that never goes back.
        """
        self._service, self._folder, self._load, self._clock = service, folder, load, clock
        self._models = service.models
        self._trial: Trial | None = None
        self._retry_at_s: dict[str, float] = {}
        self._rejected: dict[str, str] = {}
        """Versions that this replica rejected, with the reasons, until the folder has them."""

    def start(self) -> None:
        """Follow the release folder in a thread that ends with the process."""

        def follow() -> None:
            poll_at_s = self._clock()
            while True:
                try:
                    if self._clock() >= poll_at_s:
                        poll_at_s = self._clock() + POLL_S
                        self.poll()
                    self.advance(max(poll_at_s - self._clock(), 0.01))
                except Exception:  # the service goes on with the version that it has
                    logger.exception("event=rollout_failed folder=%s", self._folder.url)
                    time.sleep(POLL_S)

        threading.Thread(target=follow, name="rollout", daemon=True).start()

    def poll(self) -> None:
        """Read the release folder, and begin, finish or drop a version; a folder that cannot be read changes nothing."""
        self._write_rejections()
        try:
            releases = self._folder.read().without(self._rejected)
        except UserError as error:
            logger.warning("event=releases_unreadable folder=%s next='the present version stays' error='%s'", self._folder.url, error)
            return
        target = releases.target
        if self._trial and (target is None or target.version != self._trial.model.release):
            reason = releases.rejected.get(self._trial.model.release, "another version was released, or a user went back")
            logger.info("event=version_dropped version=%s reason='%s'", self._trial.model.release, reason)
            self._models.drop(self._trial.model)
            self._trial = None
        if target is None:
            return
        if self._trial:
            if releases.is_proven(target):
                self._finish(self._trial.model)
        elif target.version != self._models.stable.release and self._clock() >= self._retry_at_s.get(target.version, 0.0):
            self._begin(target, releases)

    def advance(self, wait_s: float) -> None:
        """Compare one image, if one comes in time, and judge the version under comparison."""
        trial = self._trial
        if trial is None:
            time.sleep(wait_s)
            return
        image = self._models.next_sample(min(wait_s, POLL_S))
        reason = self._models.failure or (self._compare(trial, image) if image else None) or trial.comparison.fault()
        if reason:
            self._reject(trial.model.release, reason)
        elif self._models.candidate is trial.model:
            self._advance_stage(trial)

    def _begin(self, event: Event, releases: Releases) -> None:
        version, is_proven, before = event.version, releases.is_proven(event), self._models.stable
        logger.info("event=version_found version=%s proven=%s", version, is_proven)
        try:
            model = self._service.add_model(self._load(version), version)
            problem = None if is_proven or event.allow_changes else _lost_tasks(before, model) or self._stall(before, model)
        except Exception as error:  # noqa: BLE001 - a broken version may raise anything, and must not reach the requests
            found = error if isinstance(error, UserError) else f"found {type(error).__name__}: {error}, expected weights that can be loaded"
            reason = f"loading: {found}"
            is_storage_failure = isinstance(error, StorageError) and not isinstance(error, IntegrityError)
            if is_proven or is_storage_failure:
                # Of a proven version, the failure is one of this replica.
                logger.warning("event=version_not_loaded version=%s retry_s=%g reason='%s'", version, RETRY_S, reason)
                self._retry_at_s[version] = self._clock() + RETRY_S
            else:
                self._reject(version, reason)
            return
        if problem:
            self._reject(version, problem)
        elif is_proven:
            self._finish(model)
        else:
            _log_classes(before, model)
            self._trial = Trial(model, Comparison(before.info, model.info, event.allow_changes), self._clock())
            self._models.start(model)
            logger.info("event=version_shadows version=%s before=%s", version, before.release)

    def _stall(self, before: Model, new: Model) -> str | None:
        """Return the seconds of a version that is so slow that its comparison would hold up requests, in words."""
        settings, data = self._service.settings, scene(0).image
        image = SampledImage(data, DetectOptions(settings.confidence, settings.iou, settings.max_detections))
        found = self._found_before(before, image)
        # Not in the thread of the network, where requests would wait.
        [result] = new.engine.detect([_view(new, image)])
        allowed_s = max(MAX_STALL * found.seconds, MIN_STALL_S) if found else math.inf
        if result.seconds <= allowed_s:
            return None
        return f"latency: found {result.seconds:.2f} s for an image, expected at most {allowed_s:.2f} s"

    def _compare(self, trial: Trial, image: SampledImage) -> str | None:
        """Run both versions on an image; return the failure of the new one."""
        before = self._found_before(self._models.stable, image)
        if before is None:
            return None
        try:
            new = self._found(trial.model, image)
        except Exception as error:  # noqa: BLE001 - a broken version may raise anything, and must not reach the requests
            return f"comparison: found {type(error).__name__}: {error}, expected detections"
        trial.comparison.add(before, new)
        time.sleep(min(PAUSES * (before.seconds + new.seconds), POLL_S))
        return None

    def _found_before(self, before: Model, image: SampledImage) -> Found | None:
        """Run the version before; return None if it fails, which is no fault of the new one."""
        try:
            return self._found(before, image)
        except Exception as error:  # noqa: BLE001 - a release may be the way out of a broken version
            logger.warning("event=image_not_compared version=%s reason='%s: %s'", before.release, type(error).__name__, error)
            return None

    def _found(self, model: Model, image: SampledImage) -> Found:
        """Run a version on an image as a whole, between two batches of requests."""
        [result] = self._service.run_alone(model.engine.detect, [_view(model, image)])
        return found_in(result.detections, model.info.classes, result.seconds)

    def _advance_stage(self, trial: Trial) -> None:
        """Begin the next stage after enough images, or after the time limit."""
        images, version, seconds = trial.comparison.images, trial.model.release, self._clock() - trial.began_s
        is_over = seconds >= STAGE_LIMIT_S
        if trial.stage is Stage.SHADOW and (images >= SHADOW_IMAGES or is_over):
            trial.stage, share = Stage.SHARE, SHARE
        elif trial.stage is Stage.SHARE and (images >= SHARE_IMAGES or is_over):
            trial.stage, share = Stage.ALL, 1.0
        else:
            if trial.stage is Stage.ALL and trial.comparison.is_complete:
                self._accept(trial)
            return
        trial.began_s = self._clock()
        self._models.give(trial.model, share)
        logger.info("event=version_share version=%s share=%g images=%d stage_s=%.1f", version, share, images, seconds)

    def _accept(self, trial: Trial) -> None:
        self._finish(trial.model)
        self._record(Event("accepted", trial.model.release))

    def _finish(self, model: Model) -> None:
        """Give all requests to a version, and forget the one before."""
        before, images = self._models.stable.release, self._trial.comparison.images if self._trial else 0
        self._trial = None
        self._models.replace(model)
        logger.info("event=version_serves version=%s before=%s images=%d", model.release, before, images)

    def _reject(self, version: str, reason: str) -> None:
        if self._trial:
            self._models.drop(self._trial.model)
            self._trial = None
        self._service.metrics.count("yolor_rejected_versions")
        logger.warning("event=version_rejected version=%s serves=%s reason='%s'", version, self._models.stable.release, reason)
        self._rejected[version] = reason
        self._write_rejections()

    def _write_rejections(self) -> None:
        """Tell the other replicas what this one rejected; what cannot be written counts here, and is written later."""
        for version, reason in list(self._rejected.items()):
            if self._record(Event("rejected", version, reason)):
                del self._rejected[version]

    def _record(self, event: Event) -> bool:
        """Append an event to the folder; return False if the storage refuses it."""
        try:
            self._folder.add(event)
        except UserError as error:
            logger.warning("event=version_not_recorded version=%s kind=%s error='%s'", event.version, event.kind, error)
            return False
        return True


def _view(model: Model, image: SampledImage) -> tuple[View, DetectOptions]:
    """Return the image as a whole in the input of a model."""
    [view] = open_image(image.data, model.info.image_px, Tiling()).views
    return view, replace(image.options, tile=0)


def _lost_tasks(before: Model, new: Model) -> str | None:
    lost = [task for task in before.info.tasks if task not in new.info.tasks]
    if not lost:
        return None
    return f"tasks: found {', '.join(new.info.tasks)}, expected also {', '.join(lost)}, which the version before answers"


def _log_classes(before: Model, new: Model) -> None:
    removed = [name for name in before.info.classes if name not in new.info.classes]
    added = [name for name in new.info.classes if name not in before.info.classes]
    if removed or added:
        logger.warning(
            "event=version_classes_differ version=%s removed='%s' added='%s' next='only common classes are compared'",
            *(new.release, ", ".join(removed), ", ".join(added)),
        )
