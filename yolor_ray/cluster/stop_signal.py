"""Stop signals of a training run; a preempted machine sends SIGTERM."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

StopSignal = Callable[[], str]
"""Returns the reason to stop training after a checkpoint; empty while training may continue."""


def never_stop() -> str:
    """Return no reason to stop."""
    return ""


class SigtermStopSignal:
    """Stop signal that SIGTERM sets while the block runs in the main thread; a second SIGTERM ends the process at once."""

    def __init__(self) -> None:
        self._received = threading.Event()
        self._previous_handler: Any = None

    def __call__(self) -> str:
        """Return the reason to stop training; empty while training may continue."""
        return "SIGTERM" if self._received.is_set() else ""

    def __enter__(self) -> "SigtermStopSignal":
        """Install the handler; outside of the main thread, where Python allows no handlers, do nothing."""
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous handler."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received.is_set():
            raise SystemExit(128 + number)
        self._received.set()
