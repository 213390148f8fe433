"""Keep account of an epoch: which records were learned from, by whom of the workers, and that none was taken twice."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from yolor_ray.errors import LedgerError


class Ledger:
    """Count what this worker has learned from since the last merge, beside what all workers together had by then."""

    def __init__(self, seen: np.ndarray) -> None:
        """Begin with the records, (images,) bool, that were learned from in earlier lives of this epoch."""
        self.seen = seen
        self._own = np.zeros(len(seen), np.uint8)

    def take(self, records: np.ndarray) -> None:
        """Write down the records of a step."""
        np.add.at(self._own, records, 1)

    @property
    def own(self) -> np.ndarray:
        """(images,) uint8: how often this worker has learned from each record since the last merge."""
        return self._own

    def merge(self, counts: Sequence[np.ndarray]) -> None:
        """Add what all workers have learned from, this one included.

        Raises:
            LedgerError: a record was learned from twice.

        """
        total = np.sum(counts, axis=0, dtype=np.int64) + self.seen
        self.seen = total > 0
        self._own = np.zeros(len(total), np.uint8)
        twice = np.flatnonzero(total > 1)
        if len(twice):
            raise LedgerError(f"epoch: found {len(twice)} records learned from twice, such as {twice[0]}; expected each once")

    def close(self) -> int:
        """Return how many records the epoch learned from; every one of the data set.

        Raises:
            LedgerError: a record was left out.

        """
        missed = np.flatnonzero(~self.seen)
        if len(missed):
            raise LedgerError(f"epoch: found {len(missed)} records not learned from, such as {missed[0]}; expected each once")
        return len(self.seen)


def to_json(seen: np.ndarray) -> dict[str, Any]:
    """Return one bit per record as text."""
    return {"records": len(seen), "bits": base64.b64encode(np.packbits(seen).tobytes()).decode()}


def from_json(content: dict[str, Any]) -> np.ndarray:
    """Return what `to_json` was given."""
    packed = np.frombuffer(base64.b64decode(content["bits"]), np.uint8)
    return np.unpackbits(packed, count=content["records"]).astype(bool)
