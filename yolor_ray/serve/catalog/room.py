"""Count the bytes of the files of all models in memory, within a budget."""

import threading
from dataclasses import dataclass


@dataclass(eq=False)
class Place:
    """Bytes of the files of a loaded model. A `Room` alone changes them."""

    stable_bytes: int
    """Files of the version that has proved itself."""
    candidate_bytes: int = 0
    """Files of the version that is loaded or compared beside it."""
    is_closing: bool = False
    """The model is unloaded, and its rollout has not ended."""

    @property
    def size_bytes(self) -> int:
        """Return the bytes of both versions."""
        return self.stable_bytes + self.candidate_bytes


class Room:
    """Budget of bytes for all models of a replica. All threads may call its methods, which wait for nothing."""

    def __init__(self, budget_bytes: float) -> None:
        self.budget_bytes = budget_bytes
        self._places: set[Place] = set()
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> float:
        """Return the bytes that are free now."""
        with self._lock:
            return self._free_bytes

    @property
    def soon_free_bytes(self) -> float:
        """Return the bytes that are free when the rollouts of unloaded models have ended."""
        with self._lock:
            return self._free_bytes + sum(place.size_bytes for place in self._places if place.is_closing)

    @property
    def _free_bytes(self) -> float:
        return self.budget_bytes - sum(place.size_bytes for place in self._places)

    def open(self, size_bytes: int) -> Place | None:
        """Return a place for a model; None if it has no room."""
        with self._lock:
            if size_bytes > self._free_bytes:
                return None
            place = Place(size_bytes)
            self._places.add(place)
            return place

    def reserve(self, place: Place, size_bytes: int, *, beyond: bool = False) -> bool:
        """Give a model's candidate room, also beyond the budget if asked for; return False if there is none."""
        with self._lock:
            if size_bytes > self._free_bytes + place.candidate_bytes and not beyond:
                return False
            place.candidate_bytes = size_bytes
            return True

    def promote(self, place: Place) -> None:
        """Free the room of the stable version, whose place the candidate takes."""
        with self._lock:
            place.stable_bytes, place.candidate_bytes = place.candidate_bytes, 0

    def drop(self, place: Place) -> None:
        """Free the room of the candidate."""
        with self._lock:
            place.candidate_bytes = 0

    def begin_close(self, place: Place) -> None:
        """Count the room of a model among the one that is free soon."""
        with self._lock:
            place.is_closing = True

    def close(self, place: Place) -> None:
        """Free the room of a model."""
        with self._lock:
            self._places.discard(place)
