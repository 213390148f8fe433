"""Bring the versions of a release folder to the requests for one model of a replica, in a thread beside its event loop.

A new version is loaded, compared on images of requests that the version before answers (shadow), given a share of the requests, and then
all of them. It is accepted when it has kept all bounds on enough images. Otherwise it is rejected, for all replicas.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from yolor_ray.errors import IntegrityError, StorageError, UserError
from yolor_ray.io.release_folder import Event, ReleaseFolder, Releases
from yolor_ray.serve.engine import Engine
from yolor_ray.serve.rollout.comparison import Comparison
from yolor_ray.serve.rollout.models import Model, Models, SampledImage, Stage
from yolor_ray.serve.rollout.side_by_side import find, find_before, log_classes, lost_tasks, stall

if TYPE_CHECKING:
    from yolor_ray.serve.service import Service

POLL_S = 5.0
"""Seconds between two readings of the release folder."""
RETRY_S = 60.0
"""Seconds until a version whose loading failed, or that had no room, is loaded again, if it is not rejected for the failure."""
STAGE_LIMIT_S = 120.0
"""Longest time in shadow, and with a share: a service with little traffic comes to the new version within minutes. The comparison goes on
with the images that come later, and the version before stays loaded until there are enough of them."""
SHADOW_IMAGES = 64
"""Images that are compared before the new version answers a request."""
SHARE, SHARE_IMAGES = 0.25, 128
"""Share of the requests that the new version answers at first, and the number of compared images after which it answers all."""
PAUSES = 3
"""Pause after the comparison of an image, as a multiple of its seconds: the comparisons of all models take at most a quarter of the
network's time."""

logger = logging.getLogger(__name__)


class Versions(Protocol):
    """Versions of a model and their memory. The thread of the rollout calls the methods, which may block."""

    def load(self, version: str, is_proven: bool) -> Engine | None:
        """Return the warm engine of a version, for which it reserves memory; None if there is none. It may raise any exception."""

    def promote(self) -> None:
        """Free the memory of the version before the one that was loaded last."""

    def drop(self) -> None:
        """Free the memory of the version that was loaded last, if any is reserved."""

    def close(self) -> None:
        """Free the memory of all versions."""


@dataclass
class Trial:
    """New version under comparison."""

    model: Model
    comparison: Comparison
    began_s: float
    """Time at which the stage began."""
    stage: Stage = Stage.SHADOW


class Rollout:
    """Way of each release to the requests for one model of a replica."""

    def __init__(
        self, service: "Service", models: Models, folder: ReleaseFolder, versions: Versions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with the version that answers.

        Args:
            service: service of the replica.
            models: versions of the model in the service; the stable one has the name of a version of the folder.
            folder: release folder.
            versions: loads the versions of the folder.
            clock: seconds of a clock that never goes back.
        """
        self._service, self._models, self._folder, self._versions, self._clock = service, models, folder, versions, clock
        self._name = models.stable.info.name
        self._trial: Trial | None = None
        self._retry_at_s: dict[str, float] = {}
        self._waiting = ""
        """Version that has no room."""
        self._rejected: dict[str, str] = {}
        """Versions that this replica rejected, with the reasons, until the folder has them."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"rollout-{self._name}", daemon=True)

    def start(self) -> None:
        """Follow the release folder in a thread that ends with `stop`, or with the process."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end, after the load or the image that it is busy with; judge and change nothing any more. Never blocks."""
        self._stopped.set()
        self._models.wake()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread."""
        self._thread.join(timeout_s)

    def _follow(self) -> None:
        poll_at_s = self._clock()
        while not self._stopped.is_set():
            try:
                if self._clock() >= poll_at_s:
                    poll_at_s = self._clock() + POLL_S
                    self.poll()
                self.advance(max(poll_at_s - self._clock(), 0.01))
            except Exception:  # the service goes on with the version that it has
                logger.exception("event=rollout_failed model=%s folder=%s", self._name, self._folder.url)
                self._stopped.wait(POLL_S)
        self._drop()
        self._versions.close()
        logger.info("event=rollout_stopped model=%s", self._name)

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
            logger.info("event=version_dropped model=%s version=%s reason='%s'", self._name, self._trial.model.release, reason)
            self._drop()
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
            self._stopped.wait(wait_s)
            return
        pause_s = self._service.compare_at_s - time.monotonic()
        if pause_s > 0:
            self._stopped.wait(min(wait_s, pause_s))
            return
        image = self._models.next_sample(min(wait_s, POLL_S))
        reason = self._models.failure or (self._compare(trial, image) if image else None) or trial.comparison.fault()
        if self._stopped.is_set():
            return
        if reason:
            self._reject(trial.model.release, reason)
        elif self._models.candidate is trial.model:
            self._advance_stage(trial)

    def _begin(self, event: Event, releases: Releases) -> None:
        version, is_proven, before = event.version, releases.is_proven(event), self._models.stable
        if version != self._waiting:
            logger.info("event=version_found model=%s version=%s proven=%s", self._name, version, is_proven)
        try:
            engine = self._versions.load(version, is_proven)
            if engine is None:
                self._wait_for_room(version)
                return
            model = self._service.add_model(engine, version)
            problem = None if is_proven or event.allow_changes else lost_tasks(before, model) or stall(self._service, before, model)
        except Exception as error:  # noqa: BLE001 - a broken version may raise anything, and must not reach the requests
            self._note_failed_load(version, is_proven, error)
            return
        self._waiting = ""
        if self._stopped.is_set():
            return
        if problem:
            self._reject(version, problem)
        elif is_proven:
            self._finish(model)
        else:
            log_classes(before, model)
            self._trial = Trial(model, Comparison(before.info, model.info, event.allow_changes), self._clock())
            self._models.start(model)
            logger.info("event=version_shadows model=%s version=%s before=%s", self._name, version, before.release)

    def _wait_for_room(self, version: str) -> None:
        """Try again later; the model that answers, and models in work, are not unloaded for a candidate."""
        self._retry_at_s[version] = self._clock() + RETRY_S
        if version != self._waiting:
            logger.warning(
                "event=version_waits_for_room model=%s version=%s serves=%s retry_s=%g next='raise max_model_mb'",
                *(self._name, version, self._models.stable.release, RETRY_S),
            )
        self._waiting = version

    def _note_failed_load(self, version: str, is_proven: bool, error: Exception) -> None:
        """Reject a version that cannot be loaded, or try again later."""
        self._drop()
        if self._stopped.is_set():
            return
        found = error if isinstance(error, UserError) else f"found {type(error).__name__}: {error}, expected weights that can be loaded"
        reason = f"loading: {found}"
        is_storage_failure = isinstance(error, StorageError) and not isinstance(error, IntegrityError)
        if is_proven or is_storage_failure:
            # Of a proven version, the failure is one of this replica.
            logger.warning(
                "event=version_not_loaded model=%s version=%s retry_s=%g reason='%s'",
                *(self._name, version, RETRY_S, reason),
            )
            self._retry_at_s[version] = self._clock() + RETRY_S
        else:
            self._reject(version, reason)

    def _compare(self, trial: Trial, image: SampledImage) -> str | None:
        """Run both versions on an image; return the failure of the new one."""
        before = find_before(self._service, self._models.stable, image)
        if before is None:
            return None
        try:
            new = find(self._service, trial.model, image)
        except Exception as error:  # noqa: BLE001 - a broken version may raise anything, and must not reach the requests
            return f"comparison: found {type(error).__name__}: {error}, expected detections"
        trial.comparison.add(before, new)
        # Rollouts of other models wait, too.
        pause_s = min(PAUSES * (before.seconds + new.seconds), POLL_S)
        self._service.compare_at_s = max(self._service.compare_at_s, time.monotonic()) + pause_s
        return None

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
        logger.info("event=version_share model=%s version=%s share=%g images=%d stage_s=%.1f", self._name, version, share, images, seconds)

    def _accept(self, trial: Trial) -> None:
        self._finish(trial.model)
        self._record(Event("accepted", trial.model.release))

    def _finish(self, model: Model) -> None:
        """Give all requests to a version, and forget the one before."""
        before, images = self._models.stable.release, self._trial.comparison.images if self._trial else 0
        self._trial = None
        self._models.replace(model)
        self._versions.promote()
        logger.info("event=version_serves model=%s version=%s before=%s images=%d", self._name, model.release, before, images)

    def _drop(self) -> None:
        """Take the requests of the version under comparison away, and free the memory of the version that was loaded last."""
        if self._trial:
            self._models.drop(self._trial.model)
            self._trial = None
        self._versions.drop()

    def _reject(self, version: str, reason: str) -> None:
        self._drop()
        self._service.metrics.count("yolor_rejected_versions", model=self._name)
        logger.warning(
            "event=version_rejected model=%s version=%s serves=%s reason='%s'",
            *(self._name, version, self._models.stable.release, reason),
        )
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
            logger.warning(
                "event=version_not_recorded model=%s version=%s kind=%s error='%s'",
                *(self._name, event.version, event.kind, error),
            )
            return False
        return True
