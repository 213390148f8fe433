"""Take the events of a worker out of the lines that Ray prints on the driver's standard error."""

import logging
import re
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

ANSI = re.compile(r"\x1b\[[0-9;]*m")
WORKER_EVENT = re.compile(r"\(RayTrainWorker pid=[^)]*\) ([A-Z]+) (event=.*)")
"""Level and text of an event, after the prefix that Ray gives to a worker's lines."""


class WorkerLines:
    """Standard error of the driver: events of workers go to a log handler, everything else to the terminal."""

    def __init__(self, terminal: TextIO, console: Console, view: logging.Handler) -> None:
        """Write to `terminal` through `console`, which moves the lines above its bar."""
        self._terminal, self._console, self._view = terminal, console, view
        self._rest = ""

    def write(self, text: str) -> int:
        """Write text; the beginning of a worker's line waits for the end of the line."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._write_line(line)
        if self._rest and not ANSI.sub("", self._rest).startswith("("):
            # Progress bars of other libraries have no line end.
            self._terminal.write(self._rest)
            self._rest = ""
        return len(text)

    def _write_line(self, line: str) -> None:
        event = WORKER_EVENT.fullmatch(ANSI.sub("", line).rstrip("\r"))
        if event:
            level = logging.getLevelNamesMapping().get(event[1], logging.INFO)
            self._view.handle(logging.LogRecord(__name__, level, __file__, 0, event[2], None, None))
        else:
            self._console.print(Text.from_ansi(line), soft_wrap=True)

    def __getattr__(self, name: str) -> Any:
        """Return another attribute of the terminal, such as `fileno`."""
        return getattr(self._terminal, name)
