"""Hear that training is to end soon: a preempted machine is told by SIGTERM."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

StopSignal = Callable[[], str]
"""Returns why training is to end after a checkpoint; empty while it may go on."""


def never_stop() -> str:
    """Never ask training to end."""
    return ""


class SigtermStopSignal:
    """Take SIGTERM for a notice while the block runs, in the main thread; a second one ends the process at once."""

    def __init__(self) -> None:
        self._heard = threading.Event()
        self._before: Any = None

    def __call__(self) -> str:
        """Return why training is to end; empty while it may go on."""
        return "SIGTERM" if self._heard.is_set() else ""

    def __enter__(self) -> "SigtermStopSignal":
        """Begin to listen; elsewhere than in the main thread, where Python allows no handlers, hear nothing."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave SIGTERM to whoever had it before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._heard.is_set():
            raise SystemExit(128 + number)
        self._heard.set()
