"""State of a named model of a replica."""

import asyncio
from dataclasses import dataclass

from yolor_ray.model.weights import WeightsInfo
from yolor_ray.serve.catalog.room import Place
from yolor_ray.serve.http.errors import ApiError
from yolor_ray.serve.rollout.models import Models
from yolor_ray.serve.rollout.rollout import Rollout


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
    place: Place | None = None
    """Bytes of its files, while it is loaded; None without a list."""
    rollout: Rollout | None = None
    """Follows the release folder of the model, while it is loaded; None without one."""
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
