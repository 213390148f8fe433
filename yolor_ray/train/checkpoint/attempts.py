"""Keep a run's lives apart: `attempts.jsonl` has a row for each start, with what the stop before it cost.

The last row is the life that may write: one that was cut off and goes on alone finds another's row there, and ends. A beat
every few seconds tells the next life how far this one came.
"""

import json
import logging
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from yolor_ray.errors import NotFoundError, StorageError, SupersededError
from yolor_ray.io import storage

logger = logging.getLogger(__name__)

ATTEMPTS_FILE, HEARTBEAT_FILE = "attempts.jsonl", "heartbeat.json"
HEARTBEAT_S = 3.0
"""Seconds between beats: about how much an outage's length and the steps that it cost may be off."""
LAST_HEARTBEAT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class AttemptRecord:
    """Say how a life began."""

    attempt: int
    """Number from 1."""
    started_at: str
    """When, in UTC."""
    workers: int
    """Workers that share each step."""
    restart_reason: str
    """Why the life before it ended; empty for the first."""
    from_step: int = 0
    """Step of the checkpoint that it goes on from."""
    lost_steps: int = 0
    """Steps that the life before it took after that checkpoint; they are taken again."""
    downtime_s: float = 0.0
    """From the last beat of the life before it, or from its beginning if it had none, to its own first step."""
    fencing_token: str = ""
    """Tells lives apart that begin at once and so count alike."""


def read_attempts(run: str) -> list[AttemptRecord]:
    """Return the lives of a run so far."""
    try:
        lines = storage.read_bytes(storage.join(run, ATTEMPTS_FILE)).splitlines()
    except NotFoundError:
        return []
    return [AttemptRecord(**json.loads(line)) for line in lines]


class RunAttempt:
    """Be one life of a run, in the process that writes its files."""

    def __init__(self, run: str, workers: int, restart_reason: str) -> None:
        """Add the life's row, from which on no earlier life may write; raises SupersededError if another one begins at once."""
        self._run = run
        self._earlier = read_attempts(run)
        self._before = self._last_beat()
        why = (restart_reason or "the job was gone") if self._earlier else ""
        began = datetime.now(UTC).isoformat(timespec="seconds")
        self.record = AttemptRecord(len(self._earlier) + 1, began, workers, why, fencing_token=uuid.uuid4().hex)
        self._write()
        self.check()
        self._step = self._written = -1
        self._stop = threading.Event()
        self._pulse = threading.Thread(target=self._beat_on, name="yolor-beat", daemon=True)

    def check(self) -> None:
        """Raise SupersededError if another life of this run has begun since; storage that is out of reach does not tell."""
        try:
            rows = read_attempts(self._run)
        except StorageError as error:
            logger.warning("event=attempt_log_unreadable error='%s'", error)
            return
        if not rows or rows[-1].fencing_token != self.record.fencing_token:
            found = f"found {f'life {rows[-1].attempt} of {rows[-1].started_at}' if rows else 'none'}, expected to be the last itself"
            raise SupersededError(
                f"{self._run}: life {self.record.attempt} of {self.record.started_at} {found}; another job goes on with it"
            )

    def record_step(self, step: int) -> None:
        """Note that a step was taken; the first one ends the outage, unless another life has begun: see `check`."""
        first, self._step = self._step < 0, step
        if not first:
            return
        if self._before:
            reached, at = self._before
            lost, downtime_s = max(reached - (step - 1), 0), round(max(time.time() - at, 0.0), 1)
        else:
            lost, downtime_s = 0, 0.0
        self.record = replace(self.record, from_step=step - 1, lost_steps=lost, downtime_s=downtime_s)
        self.check()
        try:
            self._write()
        except StorageError as error:
            logger.warning("event=attempt_log_unwritable error='%s'", error)
        shown = "event=attempt life=%d workers=%d from_step=%d lost_steps=%d downtime_s=%.1f after='%s'"
        row = self.record
        logger.info(shown, row.attempt, row.workers, row.from_step, row.lost_steps, row.downtime_s, row.restart_reason)

    def _write(self) -> None:
        rows = [*self._earlier, self.record]
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        storage.write_bytes(storage.join(self._run, ATTEMPTS_FILE), lines.encode())

    def _last_beat(self) -> tuple[int, float] | None:
        """Return step and time of the last beat of the life before this one, or of its beginning if it had none; None for the first."""
        if not self._earlier:
            return None
        before = self._earlier[-1]
        try:
            beat = json.loads(storage.read_bytes(storage.join(self._run, HEARTBEAT_FILE)))
        except NotFoundError:
            beat = {}
        # One that was cut off may have gone on beating after the life that took its place had taken steps.
        if not beat or (beat["attempt"] < before.attempt and before.from_step > 0):
            return before.from_step, datetime.fromisoformat(before.started_at).timestamp()
        return int(beat["step"]), float(beat["at"])

    def _beat_on(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            self._beat()
        self._beat()

    def _beat(self) -> None:
        step = self._step
        if step == self._written or step < 0:
            return
        beat = json.dumps({"attempt": self.record.attempt, "step": step, "at": time.time()})
        try:
            storage.write_bytes(storage.join(self._run, HEARTBEAT_FILE), beat.encode())
            self._written = step
        except StorageError as error:
            logger.warning("event=heartbeat_failed error='%s'", error)

    def __enter__(self) -> "RunAttempt":
        """Begin to beat."""
        self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End with a last beat, unless storage is out of reach."""
        self._stop.set()
        self._pulse.join(LAST_HEARTBEAT_TIMEOUT_S)
