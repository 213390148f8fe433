"""Count the updates without a finite gradient on the device, where they change no weight, and end a run of nothing else."""

import logging
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from yolor_ray.errors import NonFiniteLossError
from yolor_ray.train.precision import update_scale

logger = logging.getLogger(__name__)

MAX_BAD_UPDATES = 20
"""Consecutive updates with a non-finite gradient that end the run; updates that a lower loss scale may cure do not count."""
CHECKED_UPDATES = 20
"""Updates from one reading of the counts to the next: the device finishes its work before a number is read."""


@dataclass
class FiniteCheck:
    """Counts of bad updates, those with a non-finite gradient; they stay on the device until they are read."""

    scaler: torch.amp.GradScaler
    """Scale of the loss."""
    _bad: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long))
    """Bad updates since the last reading."""
    _in_a_row: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long))
    """Last updates that are bad, without those that a lower loss scale may cure."""
    _updates: int = 0

    def add(self, is_bad: Bool[Tensor, ""]) -> None:
        """Count an update, and update the scale of the loss."""
        counted = ~update_scale(self.scaler, is_bad.device) if self.scaler.is_enabled() else 1
        self._bad = self._bad.to(is_bad.device) + is_bad
        self._in_a_row = (self._in_a_row.to(is_bad.device) + counted) * is_bad
        self._updates += 1

    @property
    def is_due(self) -> bool:
        """True if the counts are to be read after this update."""
        return self._updates % CHECKED_UPDATES == 0

    def read(self, step: int) -> None:
        """Log the bad updates since the last reading.

        Raises:
            NonFiniteLossError: the last `MAX_BAD_UPDATES` updates were bad, at a loss scale of 1 or less.
        """
        bad, in_a_row = torch.stack((self._bad, self._in_a_row)).tolist()
        self._bad = torch.zeros_like(self._bad)
        if bad:
            scale = self.scaler.get_scale()
            logger.warning("event=gradient_not_finite step=%d in_a_row=%d updates=%d scale=%g", step, in_a_row, bad, scale)
        if in_a_row >= MAX_BAD_UPDATES:
            raise NonFiniteLossError(f"step {step}: {in_a_row} updates in a row had no finite gradient; try a lower optim.lr")
