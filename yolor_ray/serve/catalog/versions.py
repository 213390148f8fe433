"""Load the versions of a named model for its rollout, within the memory of all models."""

import contextlib
from typing import TYPE_CHECKING

from yolor_ray.errors import UserError
from yolor_ray.serve.catalog.named_model import NamedModel
from yolor_ray.serve.catalog.room import Place
from yolor_ray.serve.engine import Engine
from yolor_ray.serve.rollout.models import Models

if TYPE_CHECKING:
    from yolor_ray.serve.catalog.catalog import Catalog, Loader

JOIN_S = 10.0
"""Longest wait for the end of the rollout of a model that was unloaded for a candidate."""


class NamedVersions:
    """Versions of a loaded model. The thread of its rollout calls the methods."""

    def __init__(self, catalog: "Catalog", loader: "Loader", named: NamedModel, models: Models, place: Place) -> None:
        self._catalog, self._loader, self._named, self._models, self._place = catalog, loader, named, models, place
        self._room = catalog.room

    def load(self, version: str, is_proven: bool) -> Engine | None:
        """Return the engine of a version, beside the one that answers; None if there is no room for both.

        A proven version is loaded all the same: the way back is never closed.
        """
        source = self._loader.source(self._named.name, version)
        size_bytes = source.size_bytes
        has_room = (is_proven or self._leaves_room(size_bytes)) and self._reserve(size_bytes)
        if not has_room and not (is_proven and self._room.reserve(self._place, size_bytes, beyond=True)):
            return None
        return self._loader.load(source, self._models.stable.engine.name)

    def promote(self) -> None:
        """Free the room of the version before, whose requests the last version that was loaded has taken."""
        self._room.promote(self._place)
        self._catalog.wake()

    def drop(self) -> None:
        """Free the room of the last version that was loaded."""
        self._room.drop(self._place)
        self._catalog.wake()

    def close(self) -> None:
        """Free the room of the model, which is unloaded."""
        self._room.close(self._place)
        self._catalog.wake()

    def _reserve(self, size_bytes: int) -> bool:
        if self._room.reserve(self._place, size_bytes):
            return True
        for rollout in self._catalog.unload_others(self._place, size_bytes):
            rollout.join(JOIN_S)
        return self._room.reserve(self._place, size_bytes)

    def _leaves_room(self, size_bytes: int) -> bool:
        """Return False if the default and a candidate would keep another model out: the default is never unloaded for it."""
        if self._named is not self._catalog.default:
            return True
        others = [0]
        for name in self._loader.names:
            # A model that cannot be read is no reason to keep a version of another one back.
            with contextlib.suppress(UserError):
                others += [self._loader.source(name).size_bytes] if name != self._named.name else []
        return self._place.stable_bytes + size_bytes + max(others) <= self._room.budget_bytes
