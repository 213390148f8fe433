"""Hold the named models of a replica: the default, which is always loaded, and others, which requests load within a budget of memory.

Ray Serve's model multiplexing (`serve.multiplexed`) does not fit. Ray's handles and its Python proxy choose replicas by model, but HAProxy
passes a request to any replica, unless the application has a router of its own. The cache of a replica counts models and not bytes,
unloads models with images in work, loads a broken model again for every request, and sets no limit to the requests that wait.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

from yolor_ray.errors import UserError
from yolor_ray.io.redact import redact
from yolor_ray.io.release_folder import ReleaseFolder
from yolor_ray.serve.catalog.model_list import Source, check_budget
from yolor_ray.serve.catalog.named_model import LoadFailure, NamedModel
from yolor_ray.serve.catalog.room import Place, Room
from yolor_ray.serve.catalog.versions import NamedVersions
from yolor_ray.serve.engine import Engine
from yolor_ray.serve.http.errors import ApiError, overloaded
from yolor_ray.serve.rollout.models import Model, Models
from yolor_ray.serve.rollout.rollout import Rollout

if TYPE_CHECKING:
    from yolor_ray.serve.service import Service

RETRY_S = 60.0
"""Seconds until a model that could not be loaded, or whose engine is broken, is loaded again for a request."""
UNLOAD_S = 10.0
"""Longest wait of a rollout for the event loop, which unloads models for a candidate."""

logger = logging.getLogger(__name__)


class Loader(Protocol):
    """Source of the models of a list; its methods block, and may raise any exception."""

    names: tuple[str, ...]

    def source(self, name: str, release: str = "") -> Source:
        """Return the weights of a model; of a release folder, those of `release`, by default of the latest proven version."""

    def load(self, source: Source, engine: str | None = None) -> Engine:
        """Return the engine of weights; `engine` is that of another model, which is taken where the settings leave the choice."""


class Catalog:
    """Models of a replica by name.

    All methods run on the event loop, but `waiting`, which the thread of the network reads, and `unload_others` and `wake`, which are for
    the threads of rollouts.
    """

    def __init__(self, default: Models, loader: Loader | None, service: "Service", budget_bytes: float, max_waiting: int) -> None:
        """Begin with the default model alone, and follow its release folder if it has one.

        Args:
            default: versions of the default model.
            loader: loads the other models, and other versions of all; None if there are none.
            service: gives an engine its queue, and compares versions.
            budget_bytes: most bytes of the files of all loaded models.
            max_waiting: most requests that wait for models to be loaded. The other places of the queue are for loaded models.

        Raises:
            ConfigError: the default model alone exceeds the budget.
            StorageError: the size of the default model cannot be read.
        """
        name = default.current.info.name
        self.named = {other: NamedModel(other) for other in (loader.names if loader else (name,))}
        for other in self.named:
            service.metrics.show("yolor_rejected_versions", model=other)
        self.default = self.named[name]
        self.default.models = self._default_models = default
        self.room = Room(budget_bytes)
        self._loader, self._service, self._max_waiting = loader, service, max_waiting
        # Known from the first load of another model on: before, there is nothing to unload.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._requests = itertools.count(1)
        self._waiting_requests = 0
        # One load at a time: two would take the room that one of them needs.
        self._turn = asyncio.Lock()
        self._idle = asyncio.Event()
        if loader:
            source = loader.source(name, default.current.release)
            check_budget({name: source.size_bytes}, budget_bytes)
            place = self.room.open(source.size_bytes)
            assert place is not None, "the default has all the room"
            self._keep(self.default, default, source, place)

    @property
    def waiting(self) -> int:
        """Return the number of images of all models that wait for a batch."""
        loaded = [named.models for named in self.named.values()]
        return sum(models.waiting for models in loaded if models)

    @property
    def seconds_of_work(self) -> float:
        """Return the seconds that the network takes for the images in work, by the mean of each model."""
        return sum(named.in_work * named.models.current.batcher.seconds_per_item for named in self.named.values() if named.models)

    def find(self, name: str | None) -> NamedModel:
        """Return the model of a name, and the default for None; raises ApiError for an unknown name."""
        if name is None:
            return self.default
        if name not in self.named:
            one_of = "one of " if len(self.named) > 1 else ""
            raise ApiError("not_found", f"found the model {name[:80]!r} in the path, expected {one_of}{', '.join(map(repr, self.named))}")
        return self.named[name]

    def fault(self, named: NamedModel) -> LoadFailure | None:
        """Return the failure for which requests of a model are refused now."""
        return named.failure if named.failure and time.monotonic() < named.failure.retry_at_s else None

    def check_usable(self, named: NamedModel) -> None:
        """Raise ApiError if a model could not be loaded a short time ago, or if its engine is broken."""
        if named.models and named is not self.default and named.models.current.health.is_broken:
            self._fail(named, "its network failed several times in a row")
            self._unload(named)
        fault = self.fault(named)
        if fault:
            wait_s = math.ceil(fault.retry_at_s - time.monotonic())
            message = f"the model {named.name} cannot be used: {fault.reason}; it is loaded again by a request after {wait_s} s"
            raise ApiError("model_unavailable", message, {"Retry-After": str(wait_s)})

    @contextlib.contextmanager
    def hold(self, named: NamedModel, count: int = 1) -> Iterator[None]:
        """Keep a model loaded inside the block, for a number of images."""
        named.in_work += count
        named.last_use = next(self._requests)
        try:
            yield
        finally:
            named.in_work -= count
            if not named.in_work:
                self._idle.set()

    async def current(self, name: str, limit_s: float) -> Model:
        """Return the model of a name, loaded within a time limit; raises ApiError."""
        named = self.find(name)
        try:
            async with asyncio.timeout(limit_s):
                with self.hold(named):
                    return (await self.load(named)).current
        except TimeoutError:
            raise named.timeout(limit_s) from None

    async def load(self, named: NamedModel) -> Models:
        """Return the versions of a model, loaded now if they were not; inside a block of `hold`.

        Raises:
            ApiError: the model cannot be loaded, its engine is broken, or too many requests wait for models.
        """
        self.check_usable(named)
        while named.models is None:
            if self._waiting_requests >= self._max_waiting:
                raise overloaded(f"{self._waiting_requests} requests that wait for models to be loaded, expected fewer")
            named.loading = named.loading or asyncio.create_task(self._load(named))
            self._waiting_requests += 1
            try:
                # The load goes on for others, and for later requests, when this request ends.
                await asyncio.shield(named.loading)
            finally:
                self._waiting_requests -= 1
            self.check_usable(named)
        return named.models

    async def _load(self, named: NamedModel) -> None:
        """Load a model, or note its failure; a model for which no request waits any more when its turn comes is not loaded."""
        assert self._loader is not None, "without a list, the only model is loaded"
        self._loop = asyncio.get_running_loop()
        try:
            async with self._turn:
                if not named.in_work:
                    return
                started, engine_name = time.monotonic(), self._default_models.current.engine.name
                source = await asyncio.to_thread(self._loader.source, named.name)
                size_bytes, default = source.size_bytes, self.default.place
                check_budget({self.default.name: default.stable_bytes if default else 0, named.name: size_bytes}, self.room.budget_bytes)
                place = await self._make_room(named, size_bytes)
                if place is None:
                    return
                try:
                    engine = await asyncio.to_thread(self._loader.load, source, engine_name)
                    self._keep(named, Models(self._service.add_model(engine, source.release)), source, place)
                except BaseException:
                    self.room.close(place)
                    raise
            seconds = time.monotonic() - started
            logger.info("event=model_loaded model=%s mb=%.1f seconds=%.1f", named.name, size_bytes / 1e6, seconds)
        except UserError as error:
            self._fail(named, str(error))
        except Exception as error:  # a broken model may raise anything, and must not hurt the others
            # Text of an unknown error is for the log alone.
            logger.exception("event=model_load_crashed model=%s", named.name)
            self._fail(named, f"found {type(error).__name__}, expected weights that can be loaded; the log has the error")
        finally:
            named.loading = None

    def _fail(self, named: NamedModel, reason: str) -> None:
        named.failure = LoadFailure(redact(reason), time.monotonic() + RETRY_S)
        logger.warning("event=model_unavailable model=%s retry_s=%g reason='%s'", named.name, RETRY_S, reason)

    def _keep(self, named: NamedModel, models: Models, source: Source, place: Place) -> None:
        """Answer requests with a loaded model, and follow its release folder if it has one."""
        assert self._loader is not None, "without a list, no model is loaded"
        if source.release_folder:
            versions = NamedVersions(self, self._loader, named, models, place)
            named.rollout = Rollout(self._service, models, ReleaseFolder(source.release_folder), versions)
            named.rollout.start()
        named.models, named.place, named.known = models, place, models.current.info

    async def _make_room(self, named: NamedModel, size_bytes: int) -> Place | None:
        """Unload models until another one has room, and wait for those that have work; return None if nobody waits for it any more."""
        while (place := self.room.open(size_bytes)) is None:
            idle = self._idle_models()
            if idle and self.room.soon_free_bytes < size_bytes:
                self._unload(idle[0])
                continue
            logger.warning("event=model_waits_for_room model=%s mb=%.1f", named.name, size_bytes / 1e6)
            self._idle.clear()
            await self._idle.wait()
            if not named.in_work:
                return None
        return place

    def _idle_models(self) -> list[NamedModel]:
        """Return the models that may be unloaded, least recently used first."""
        idle = [other for other in self.named.values() if other.models and not other.in_work and other is not self.default]
        return sorted(idle, key=lambda other: other.last_use)

    def unload_others(self, place: Place, size_bytes: int) -> Sequence[Rollout]:
        """Unload models for a candidate of the one of a place, if that makes room for it; return the rollouts that end for that.

        For the thread of a rollout, which waits for the event loop. The event loop never waits for a rollout.
        """
        done: Future[list[Rollout]] = Future()

        def unload() -> None:
            idle, ended = [other for other in self._idle_models() if other.place is not place], []
            most_bytes = self.room.soon_free_bytes + sum(other.place.size_bytes for other in idle if other.place)
            is_enough = most_bytes >= size_bytes and not place.is_closing
            while idle and is_enough and self.room.soon_free_bytes < size_bytes:
                ended.append(idle[0].rollout)
                self._unload(idle.pop(0))
            done.set_result([rollout for rollout in ended if rollout])

        # The event loop may have ended.
        with contextlib.suppress(RuntimeError, TimeoutError):
            if self._loop:
                self._loop.call_soon_threadsafe(unload)
                return done.result(UNLOAD_S)
        return ()

    def wake(self) -> None:
        """Tell a load that waits for room that some is free; for the thread of a rollout."""
        if self._loop:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._idle.set)

    def stop(self) -> None:
        """End the rollouts of all models; none judges a version any more."""
        for named in self.named.values():
            if named.rollout:
                named.rollout.stop()

    def _unload(self, named: NamedModel) -> None:
        """Forget the engine of a model, whose memory is free when its requests and its rollout have ended."""
        rollout, place = named.rollout, named.place
        named.models = named.rollout = named.place = None
        assert place is not None, "a model that can be unloaded has a place"
        if rollout:
            # The rollout may be in a load, and closes the place when it ends.
            self.room.begin_close(place)
            rollout.stop()
        else:
            self.room.close(place)
        logger.info("event=model_unloaded model=%s", named.name)


def summary(catalog: Catalog, named: NamedModel) -> dict[str, Any]:
    """Return the entry of a model in the list of models."""
    known = (
        {} if named.info is None else {"version": named.info.version, "classes": list(named.info.classes), "tasks": list(named.info.tasks)}
    )
    fault = catalog.fault(named)
    state = {"name": named.name, "default": named is catalog.default, "loaded": named.models is not None}
    versions = named.models.summary if named.models else {}
    return {**state, **known, **versions, **({"fault": fault.reason} if fault else {})}
