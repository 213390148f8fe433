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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from yolor_ray.errors import UserError
from yolor_ray.io.redact import redact
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.serve.catalog.model_list import check_budget
from yolor_ray.serve.engine import Engine
from yolor_ray.serve.http.errors import ApiError, overloaded
from yolor_ray.serve.rollout.models import Model, Models

RETRY_S = 60.0
"""Seconds until a model that could not be loaded, or whose engine is broken, is loaded again for a request."""

logger = logging.getLogger(__name__)


class Loader(Protocol):
    """Source of the models of a list; its methods block, and may raise any exception."""

    names: tuple[str, ...]

    def size_bytes(self, name: str) -> int:
        """Return the bytes of a model's files."""

    def load(self, name: str, engine: str | None = None) -> Engine:
        """Return the engine of a model; `engine` is that of the default model, which is taken where the settings leave the choice."""


@dataclass(frozen=True)
class LoadFailure:
    """Failure of a model."""

    reason: str
    retry_at_s: float
    """Time from which a request loads the model again."""


@dataclass(eq=False)
class NamedModel:
    """Model of a name, loaded or not; it belongs to the event loop."""

    name: str
    models: Models | None = None
    """Versions of the model; None while it is not loaded."""
    size_bytes: int = 0
    """Bytes of its files, while it is loaded."""
    known: WeightsInfo | None = None
    """Description of the weights that were loaded last."""
    in_work: int = 0
    """Images of requests that have begun."""
    last_use: int = 0
    """Number of the last request; later requests have larger numbers."""
    loading: asyncio.Task[None] | None = None
    failure: LoadFailure | None = None

    @property
    def info(self) -> WeightsInfo | None:
        """Return the description of the weights; None before the first load."""
        return self.models.current.info if self.models else self.known

    @property
    def identity(self) -> dict[str, str]:
        """Return the field `model` of an answer; without a version while the model is not loaded."""
        return self.models.current.identity if self.models else {"name": self.name}

    def timeout(self, limit_s: float) -> ApiError:
        """Return the error of a request that was not answered within its time limit."""
        reason = "the service is slow or overloaded" if self.models else f"the model {self.name} is still being loaded"
        return ApiError("timeout", f"no answer within {limit_s:g} s; {reason}")


class Catalog:
    """Models of a replica by name. All methods run on the event loop; `waiting` may also be read by the thread of the network."""

    def __init__(
        self, default: Models, loader: Loader | None, make_model: Callable[[Engine], Model], budget_bytes: int, max_waiting: int
    ) -> None:
        """Begin with the default model alone.

        Args:
            default: versions of the default model.
            loader: loads the other models; None if there are none.
            make_model: gives an engine its queue.
            budget_bytes: most bytes of the files of all loaded models.
            max_waiting: most requests that wait for models to be loaded. The other places of the queue are for loaded models.

        Raises:
            ConfigError: the default model alone exceeds the budget.
            StorageError: the size of the default model cannot be read.
        """
        name = default.current.info.name
        self.named = {other: NamedModel(other) for other in (loader.names if loader else (name,))}
        self.default = self.named[name]
        self.default.models = self._default_models = default
        self._loader, self._make_model, self._budget_bytes, self._max_waiting = loader, make_model, budget_bytes, max_waiting
        if loader:
            self.default.size_bytes = loader.size_bytes(name)
            check_budget({name: self.default.size_bytes}, budget_bytes)
        self._requests = itertools.count(1)
        self._waiting_requests = 0
        # One load at a time: two would take the room that one of them needs.
        self._turn = asyncio.Lock()
        self._idle = asyncio.Event()

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
        try:
            async with self._turn:
                if not named.in_work:
                    return
                started, engine_name = time.monotonic(), self._default_models.current.engine.name
                size_bytes = await asyncio.to_thread(self._loader.size_bytes, named.name)
                check_budget({self.default.name: self.default.size_bytes, named.name: size_bytes}, self._budget_bytes)
                if not await self._make_room(named, size_bytes):
                    return
                engine = await asyncio.to_thread(self._loader.load, named.name, engine_name)
                named.models, named.size_bytes, named.known = Models(self._make_model(engine)), size_bytes, engine.info
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

    async def _make_room(self, named: NamedModel, size_bytes: int) -> bool:
        """Unload models until another one has room, and wait for those that have work; return False if nobody waits for it any more."""
        while sum(other.size_bytes for other in self.named.values()) + size_bytes > self._budget_bytes:
            idle = [other for other in self.named.values() if other.models and not other.in_work and other is not self.default]
            if idle:
                self._unload(min(idle, key=lambda other: other.last_use))
                continue
            logger.warning("event=model_waits_for_room model=%s mb=%.1f", named.name, size_bytes / 1e6)
            self._idle.clear()
            await self._idle.wait()
            if not named.in_work:
                return False
        return True

    def _unload(self, named: NamedModel) -> None:
        """Forget the engine of a model, whose memory is free when its requests have ended."""
        named.models, named.size_bytes = None, 0
        logger.info("event=model_unloaded model=%s", named.name)


def summary(catalog: Catalog, named: NamedModel) -> dict[str, Any]:
    """Return the entry of a model in the list of models."""
    known = (
        {} if named.info is None else {"version": named.info.version, "classes": list(named.info.classes), "tasks": list(named.info.tasks)}
    )
    fault = catalog.fault(named)
    state = {"name": named.name, "default": named is catalog.default, "loaded": named.models is not None}
    return {**state, **known, **({"fault": fault.reason} if fault else {})}
