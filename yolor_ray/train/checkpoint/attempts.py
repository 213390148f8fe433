"""Attempts of a run: `attempts.jsonl` has one row per attempt, with the cost of the stop before it.

Only the attempt in the last row may write. An attempt that was partitioned sees a newer row and stops. A heartbeat every 3 s
records the last step.
"""

import json
import logging
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from yolor_ray.config import renamed
from yolor_ray.errors import IntegrityError, NotFoundError, StorageError, SupersededError
from yolor_ray.io import storage
from yolor_ray.io.json_lines import parse_json_lines

logger = logging.getLogger(__name__)

ATTEMPTS_FILE, HEARTBEAT_FILE = "attempts.jsonl", "heartbeat.json"
HEARTBEAT_S = 3.0
"""Seconds between heartbeats: about the error of `downtime_s`, and of `lost_steps` in seconds of training."""
LAST_HEARTBEAT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class AttemptRecord:
    """Row of `attempts.jsonl`: the beginning of an attempt."""

    attempt: int
    """Number from 1."""
    started_at: str
    """UTC time in ISO format."""
    workers: int
    """Workers that share each step."""
    restart_reason: str
    """End of the previous attempt; empty for the first."""
    from_step: int = 0
    """Step of the checkpoint that the attempt resumed from."""
    lost_steps: int = 0
    """Steps that the previous attempt took after that checkpoint, and that this attempt repeats."""
    downtime_s: float = 0.0
    """Seconds from the last heartbeat of the previous attempt, or else from its start, to the first step of this attempt."""
    fencing_token: str = ""
    """Random id that distinguishes attempts with the same number, which started at the same time."""


def read_attempts(run: str) -> list[AttemptRecord]:
    """Return the attempts of a run so far.

    Raises:
        IntegrityError: a line is no attempt.

    """
    url = storage.join(run, ATTEMPTS_FILE)
    return [_parse_attempt(url, row) for row in parse_json_lines(url, _read_file(run, ATTEMPTS_FILE))]


def _parse_attempt(url: str, row: dict[str, Any]) -> AttemptRecord:
    values = renamed.current_record(row)
    try:
        record = AttemptRecord(**values)
        datetime.fromisoformat(record.started_at)
    except (TypeError, ValueError) as error:
        raise IntegrityError(f"{url}: found {row!r}, expected an attempt ({error}); restore the file or delete the line") from error
    numbers = record.attempt, record.workers, record.from_step, record.lost_steps
    if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(record.fencing_token, str):
        raise IntegrityError(f"{url}: found {row!r}, expected whole numbers from 0 and a text; restore the file or delete the line")
    return record


def _read_file(run: str, name: str) -> bytes:
    """Return the content of a file of a run's folder, or else of its file of version 0.1; empty where neither exists."""
    try:
        return storage.read_bytes(storage.join(run, name))
    except NotFoundError:
        pass
    old = renamed.FILES[name]
    try:
        content = storage.read_bytes(storage.join(run, old))
    except NotFoundError:
        return b""
    logger.warning("event=file_renamed old=%s new=%s advice='version 0.3 ignores the old file'", old, name)
    return content


def last_step(run: str) -> int:
    """Return the step of a run's last heartbeat, 0 before the first step."""
    heartbeat = _read_heartbeat(run)
    return heartbeat[1] if heartbeat else 0


def _read_heartbeat(run: str) -> tuple[int, int, float] | None:
    """Return attempt, step and time of the last heartbeat; None without one, or if it is damaged, as it serves only to count costs."""
    content = _read_file(run, HEARTBEAT_FILE)
    if not content:
        return None
    try:
        values = renamed.current_record(json.loads(content))
        return int(values["attempt"]), int(values["step"]), float(values["at"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        logger.warning("event=heartbeat_damaged url=%s error='%r'", storage.join(run, HEARTBEAT_FILE), error)
        return None


class RunAttempt:
    """One attempt of a run, owned by rank 0: fences earlier attempts, writes heartbeats."""

    def __init__(self, run: str, workers: int, restart_reason: str) -> None:
        """Append the attempt's row, which fences earlier attempts; raises SupersededError if another attempt starts at the same time."""
        self._run = run
        self._earlier = read_attempts(run)
        self._previous_end = self._read_previous_end()
        reason = (restart_reason or "another driver goes on with the run") if self._earlier else ""
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.record = AttemptRecord(len(self._earlier) + 1, started_at, workers, reason, fencing_token=uuid.uuid4().hex)
        self._write_rows()
        if self._earlier:
            # An attempt of version 0.1 that still runs reads only its own file, and stops when the file is gone.
            storage.delete(storage.join(run, renamed.FILES[ATTEMPTS_FILE]))
        self.check()
        self._step = self._written_step = -1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_heartbeats, name="yolor-heartbeat", daemon=True)

    def check(self) -> None:
        """Raise SupersededError if another attempt of this run has started since; unreachable storage is only logged."""
        try:
            rows = read_attempts(self._run)
        except StorageError as error:
            logger.warning("event=attempt_log_unreadable error='%s'", error)
            return
        if not rows or rows[-1].fencing_token != self.record.fencing_token:
            newest = f"attempt {rows[-1].attempt} of {rows[-1].started_at}" if rows else "none"
            raise SupersededError(
                f"{self._run}: attempt {self.record.attempt} of {self.record.started_at} found {newest} in the last row of "
                f"{ATTEMPTS_FILE}, expected itself; another job continues the run"
            )

    def record_step(self, step: int) -> None:
        """Record a step; the first step ends the downtime, and raises SupersededError as `check` does."""
        is_first, self._step = self._step < 0, step
        if not is_first:
            return
        if self._previous_end:
            last_step, ended_at = self._previous_end
            lost_steps, downtime_s = max(last_step - (step - 1), 0), round(max(time.time() - ended_at, 0.0), 1)
        else:
            lost_steps, downtime_s = 0, 0.0
        self.record = replace(self.record, from_step=step - 1, lost_steps=lost_steps, downtime_s=downtime_s)
        self.check()
        try:
            self._write_rows()
        except StorageError as error:
            logger.warning("event=attempt_log_unwritable error='%s'", error)
        row = self.record
        logger.info(
            "event=attempt attempt=%d workers=%d from_step=%d lost_steps=%d downtime_s=%.1f restart_reason='%s'",
            *(row.attempt, row.workers, row.from_step, row.lost_steps, row.downtime_s, row.restart_reason),
        )

    def _write_rows(self) -> None:
        rows = [*self._earlier, self.record]
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        storage.write_bytes(storage.join(self._run, ATTEMPTS_FILE), lines.encode())

    def _read_previous_end(self) -> tuple[int, float] | None:
        """Return step and time of the previous attempt's last heartbeat, or else of its start; None for the first attempt."""
        if not self._earlier:
            return None
        previous = self._earlier[-1]
        heartbeat = _read_heartbeat(self._run)
        # A partitioned attempt may have written heartbeats after the attempt that replaced it took its first steps.
        if not heartbeat or (heartbeat[0] < previous.attempt and previous.from_step > 0):
            return previous.from_step, datetime.fromisoformat(previous.started_at).timestamp()
        return heartbeat[1:]

    def _write_heartbeats(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            self._write_heartbeat()
        self._write_heartbeat()

    def _write_heartbeat(self) -> None:
        step = self._step
        if step == self._written_step or step < 0:
            return
        heartbeat = json.dumps({"attempt": self.record.attempt, "step": step, "at": time.time()})
        try:
            storage.write_bytes(storage.join(self._run, HEARTBEAT_FILE), heartbeat.encode())
            self._written_step = step
        except StorageError as error:
            logger.warning("event=heartbeat_failed error='%s'", error)

    def __enter__(self) -> "RunAttempt":
        """Start the heartbeat."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop with a last heartbeat, unless storage is out of reach."""
        self._stop.set()
        self._thread.join(LAST_HEARTBEAT_TIMEOUT_S)
