"""Show the log of a training on a terminal: a line per epoch, a bar, and the accuracy of each class at the end.

The view is a log handler. It shows the same events that are written as key=value lines where standard error is no terminal.
"""

import contextlib
import json
import logging
import math
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from yolor_ray.errors import StorageError
from yolor_ray.io import storage
from yolor_ray.train.progress.worker_lines import WorkerLines

FIELD = re.compile(r"(\w[\w/]*)=(?:'(.*?)'|(.*?))(?=\s+\w[\w/]*=|\s*$)")
"""A field of a log line: key=value or key='several words'; values may hold spaces and apostrophes, as paths and class names do."""
COLUMNS = {"epoch": 9, "loss": 8, "val_loss": 9, "AP": 7, "AP50": 7, "images_per_s": 9, "eta": 10, "memory_gb": 8}
"""Fields of an epoch in its line, and their widths in characters."""
TITLES = {"images_per_s": "images/s", "memory_gb": "memory", "eta": "left"}
FURTHER = ("box", "objectness", "cls", "classify", "embed", "segment", "pose", "segment/AP", "pose/AP", "classify/mAP", "embed/mAP")
"""Fields that stand in the line where the terminal is wide enough."""
FURTHER_WIDTH = 13
HIDDEN = {"checkpoint"}
"""Events that come so often that they would stand between the lines of the epochs."""
HEADER_EVERY = 20
"""Epochs between two headers."""
MAX_CLASSES = 40
"""Rows of the table of classes."""
STYLES = ((logging.ERROR, "bold red"), (logging.WARNING, "yellow"))


def is_terminal() -> bool:
    """Return True if standard error is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


@contextlib.contextmanager
def shown_on_terminal() -> Iterator[None]:
    """Show the log of the block on standard error in place of the lines of the root logger's handlers."""
    root, events = logging.getLogger(), logging.getLogger("yolor_ray.train.run_log")
    handlers, level = root.handlers, events.level
    console = Console(file=sys.stderr, highlight=False)
    view = TerminalView(console)
    root.handlers = [view]
    # The position inside an epoch is then logged every second.
    events.setLevel(logging.DEBUG)
    try:
        with contextlib.redirect_stderr(cast(TextIO, WorkerLines(sys.stderr, console, view))):
            yield
    finally:
        view.close()
        root.handlers = handlers
        events.setLevel(level)


class TerminalView(logging.Handler):
    """View of a training: its bar, and the number of epochs shown so far."""

    def __init__(self, console: Console) -> None:
        """Show events on a console."""
        super().__init__()
        self._console = console
        text = TextColumn("{task.description}")
        note = TextColumn("{task.fields[note]}")
        # Standard error is redirected to `WorkerLines` already.
        options: dict[str, Any] = {"console": console, "transient": True, "redirect_stderr": False, "refresh_per_second": 2}
        self._bar = Progress(TextColumn("epoch"), text, BarColumn(24), note, **options)
        self._task = self._bar.add_task("", total=1.0, note="")
        self._shown_epochs = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Show an event; text that is no event is shown as it is."""
        try:
            event, fields = parse_event(record.getMessage())
            if event == "progress":
                self._show_progress(fields)
            elif event == "epoch":
                self._show_epoch(fields)
            elif event == "done":
                self._remove_bar()
                show_result(self._console, fields)
            elif event not in HIDDEN or record.levelno >= logging.WARNING:
                self._show_line(record.levelno, event, fields, record.getMessage())
        except OSError:
            # A closed terminal takes no text, and must not end the training.
            self.handleError(record)

    def _show_progress(self, fields: Mapping[str, str]) -> None:
        position, _, epochs = fields["epoch"].partition("/")
        note = f"loss {_number(fields['loss'])}  {float(fields['images_per_s']):.0f} images/s  {fields['eta']} left"
        self._bar.update(self._task, description=f"{position}/{epochs}", completed=float(position), total=float(epochs), note=note)
        self._bar.start()

    def _show_epoch(self, fields: Mapping[str, str]) -> None:
        columns = _columns(fields, self._console.width)
        if self._shown_epochs % HEADER_EVERY == 0:
            header = "".join(TITLES.get(name, name).rjust(width) for name, width in columns.items())
            self._console.print(f"[bold]{header}[/]", overflow="crop", no_wrap=True)
        self._shown_epochs += 1
        line = "".join(_cell(name, fields).rjust(width) for name, width in columns.items())
        self._console.print(escape(line), overflow="crop", no_wrap=True)
        epoch, _, epochs = fields["epoch"].partition("/")
        self._bar.update(self._task, description=f"{epoch}/{epochs}", completed=float(epoch), total=float(epochs), note="")

    def _show_line(self, level: int, event: str, fields: Mapping[str, str], message: str) -> None:
        style = next((style for least, style in STYLES if level >= least), "dim")
        text = f"{event.replace('_', ' ')}: {'  '.join(f'{key}={value}' for key, value in fields.items())}" if event else message
        self._console.print(f"[{style}]{escape(text)}[/]")

    def close(self) -> None:
        """Remove the bar."""
        with contextlib.suppress(OSError):
            self._remove_bar()
        super().close()

    def _remove_bar(self) -> None:
        # A bar that was never shown would leave an empty line.
        if self._bar.live.is_started:
            self._bar.stop()


def parse_event(message: str) -> tuple[str, dict[str, str]]:
    """Return the name of a log line's event and its fields; an empty name for text that is no event."""
    fields = {key: quoted or plain for key, quoted, plain in FIELD.findall(message)}
    return (fields.pop("event"), fields) if message.startswith("event=") else ("", {})


def _columns(fields: Mapping[str, str], width: int) -> dict[str, int]:
    """Return the columns of the epochs' lines that fit the terminal, with their widths."""
    columns = {name: size for name, size in COLUMNS.items() if name in fields or name in ("val_loss", "AP", "AP50")}
    for name in FURTHER:
        if name in fields and sum(columns.values()) + FURTHER_WIDTH < width:
            columns[name] = FURTHER_WIDTH
    return columns


def _cell(name: str, fields: Mapping[str, str]) -> str:
    """Return a field as text; a dash for a metric of epochs without a validation."""
    if name in ("epoch", "eta"):
        return fields[name]
    if name not in fields:
        return "–"
    if name == "memory_gb":
        return f"{float(fields[name]):.1f} GB"
    return f"{float(fields[name]):.0f}" if name == "images_per_s" else _number(fields[name])


def _number(text: str) -> str:
    """Return a number with three decimals below 10, and fewer above; a dash for a metric that has nothing to measure."""
    value = float(text)
    if value < 0 or math.isnan(value):
        return "–"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def show_result(console: Console, fields: Mapping[str, str]) -> None:
    """Show the accuracy of each class, the places of the pictures, and commands to go on with, of a finished run."""
    report, weights = fields["report"], fields["weights"]
    with contextlib.suppress(StorageError):
        console.print(class_table(json.loads(storage.read_bytes(storage.join(report, "metrics.json")))))
    run = report.rsplit("/", 1)[0]
    pictures = [storage.join(report, "index.html"), storage.join(report, "predictions.png"), storage.join(run, "curves.png")]
    quoted = shlex.quote(weights)
    jobs = {"serve": "", "evaluate": " --data URL", "export": " --output URL"}
    commands = [f"yolor-ray {job} --weights {quoted}{flags}" for job, flags in jobs.items()]
    blocks = {"weights": [weights], "report": pictures, "next": commands}
    for title, lines in blocks.items():
        console.print(f"[bold]{title}[/]")
        for line in lines:
            # A URL or a command in one piece can be copied.
            console.print(f"  {escape(line)}", soft_wrap=True)


def class_table(metrics: Mapping[str, Any]) -> Table:
    """Return the table of the classes, from the content of the report's `metrics.json`: most objects first."""
    title = f"best epoch {metrics['epoch']}: AP {_text(metrics['AP'])}, AP50 {_text(metrics['AP50'])} on {metrics['images']} images"
    classes = sorted(metrics["classes"].items(), key=lambda item: -item[1]["objects"])
    caption = f"{len(classes) - MAX_CLASSES} more in metrics.json" if len(classes) > MAX_CLASSES else None
    table = Table(title=title, caption=caption, title_justify="left", title_style="bold")
    table.add_column("class", overflow="fold")
    for name in ("objects", "AP", "AP50", "confidence"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, numbers in classes[:MAX_CLASSES]:
        table.add_row(escape(name), str(numbers["objects"]), *(_text(numbers[key]) for key in ("AP", "AP50", "confidence")))
    return table


def _text(number: float | None) -> str:
    return "–" if number is None else f"{number:.3f}"
