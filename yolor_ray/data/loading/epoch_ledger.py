"""Ledger of an epoch: the records that the workers have learned from, each exactly once."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from yolor_ray.errors import LedgerError


class Ledger:
    """Records taken by this worker since the last merge, and by all workers together before the merge."""

    def __init__(self, seen: np.ndarray) -> None:
        """Start from the records, (images,) bool, that earlier attempts took in this epoch."""
        self.seen = seen
        self.counts = np.zeros(len(seen), np.uint8)
        """(images,) uint8: how often this worker took each record since the last merge."""

    def take(self, records: np.ndarray) -> None:
        """Count the records of a step."""
        np.add.at(self.counts, records, 1)

    def merge(self, counts: Sequence[np.ndarray]) -> None:
        """Merge the counts of all workers, this one included.

        Raises:
            LedgerError: a record was taken twice.

        """
        total = self.seen.astype(np.uint32)
        for of_worker in counts:
            total += of_worker
        self.seen = total > 0
        self.counts = np.zeros(len(total), np.uint8)
        repeated = np.flatnonzero(total > 1)
        if len(repeated):
            raise LedgerError(f"epoch: found {len(repeated)} records learned from twice, such as {repeated[0]}; expected each once")

    def close(self) -> int:
        """Close the epoch and return the number of records; every record of the dataset must be taken.

        Raises:
            LedgerError: a record was left out.

        """
        missed = np.flatnonzero(~self.seen)
        if len(missed):
            raise LedgerError(f"epoch: found {len(missed)} records not learned from, such as {missed[0]}; expected each once")
        return len(self.seen)


def to_json(seen: np.ndarray) -> dict[str, Any]:
    """Convert seen records, (images,) bool, to JSON with one bit per record."""
    return {"records": len(seen), "bits": base64.b64encode(np.packbits(seen).tobytes()).decode()}


def from_json(content: dict[str, Any]) -> np.ndarray:
    """Convert the JSON of `to_json` back to seen records, (images,) bool.

    Raises:
        ValueError: the content is not of that form.

    """
    try:
        packed, records = np.frombuffer(base64.b64decode(content["bits"], validate=True), np.uint8), content["records"]
    except (TypeError, KeyError) as error:
        raise ValueError(f"found {content!r}, expected records and bits") from error
    if type(records) is not int or len(packed) != -(-records // 8):
        raise ValueError(f"found {len(packed)} bytes of bits for {records!r} records, expected one bit per record")
    return np.unpackbits(packed, count=records).astype(bool)
