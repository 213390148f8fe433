"""Stop signals of a training run: SIGTERM of a preempted machine, SIGINT of Ctrl-C, SIGHUP of a closed terminal."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

StopSignal = Callable[[], str]
"""Returns the reason to stop training after a checkpoint; empty while training may continue."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
"""Signals that stop training."""


def never_stop() -> str:
    """Return no reason to stop."""
    return ""


class ProcessStopSignal:
    """Stop signal that a signal of `SIGNALS` sets while the block runs in the main thread; a second one ends the process at once."""

    def __init__(self, other: StopSignal = never_stop) -> None:
        """Prepare for signals to this process; `other` is one more stop signal."""
        self._received, self._other = "", other
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __call__(self) -> str:
        """Return the name of the first signal, or else the reason of the other stop signal; empty while training may continue."""
        return self._received or self._other()

    def __enter__(self) -> "ProcessStopSignal":
        """Install the handlers; outside of the main thread, where Python allows no handlers, do nothing.

        A signal that the process ignores, such as SIGHUP under nohup, stays ignored.
        """
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self._received = signal.Signals(number).name
        # A handler may interrupt a write of the logger, whose stream must not be entered twice.
        with contextlib.suppress(OSError, ValueError):
            text = f"\nevent=stop_signal signal={self._received} next='a checkpoint, then the end; a second signal ends training at once'\n"
            os.write(sys.stderr.fileno(), text.encode())
