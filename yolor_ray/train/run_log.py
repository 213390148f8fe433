"""Show a run: a line per epoch on standard error, and metrics, TensorBoard events and curves in the run's folder."""

import json
import logging
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from yolor_ray.errors import StorageError
from yolor_ray.io import storage

logger = logging.getLogger(__name__)

LOG_EVERY_S = 20.0
METRICS_FILE = "metrics.jsonl"


def read_metrics(run: str) -> list[dict[str, Any]]:
    """Return the metrics of each finished epoch of a run, in order; none where there is no such run."""
    place = storage.join(run, METRICS_FILE)
    return [json.loads(line) for line in storage.read_bytes(place).splitlines()] if storage.exists(place) else []


class RunLogger:
    """Report progress of the leading worker; times are of this process alone."""

    def __init__(self, run: str, rows: list[dict[str, Any]], epochs: int) -> None:
        """Go on from the rows of earlier epochs."""
        # Here, as only the leading worker has a board, and the others start sooner without TensorBoard and matplotlib.
        from torch.utils.tensorboard import SummaryWriter

        self._run, self._rows, self._epochs = run, rows, epochs
        self._folder = tempfile.TemporaryDirectory(prefix="yolor-events-")
        self._events = SummaryWriter(self._folder.name, purge_step=len(rows) + 1)
        self._start, self._start_epoch = time.monotonic(), float(len(rows))
        self._last_line = time.monotonic()

    def beat(self, epoch: float, loss: float, images_per_s: float) -> None:
        """Say where inside an epoch the run is."""
        self._last_line = time.monotonic()
        line = "epoch=%.2f/%d loss=%.4f images_per_s=%.1f eta=%s"
        logger.info(line, epoch, self._epochs, loss, images_per_s, self._eta(epoch))

    @property
    def due(self) -> bool:
        """Tell whether nothing was said for a while."""
        return time.monotonic() - self._last_line > LOG_EVERY_S

    def add(self, row: dict[str, Any], *, draw: bool) -> None:
        """Keep and show the metrics of a finished epoch; `draw` brings events and curves up to date as well.

        What cannot be written before the last epoch is told, and written with the next one's.
        """
        self._rows.append(row)
        for name, value in row.items():
            if name != "epoch":
                self._events.add_scalar(name, value, row["epoch"])
        shown = " ".join(f"{name}={value:.4g}" for name, value in row.items() if name != "epoch")
        logger.info("epoch=%d/%d %s eta=%s", row["epoch"], self._epochs, shown, self._eta(row["epoch"]))
        self._last_line = time.monotonic()
        try:
            self._save(draw)
        except StorageError as error:
            if row["epoch"] == self._epochs:
                raise
            logger.error("event=metrics_unsaved epoch=%d error='%s'", row["epoch"], error)

    def _save(self, draw: bool) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self._rows)
        storage.write_bytes(storage.join(self._run, METRICS_FILE), lines.encode())
        if draw:
            self._draw()

    def _eta(self, epoch: float) -> str:
        done = epoch - self._start_epoch
        left = (self._epochs - epoch) * (time.monotonic() - self._start) / max(done, 1e-9)
        return str(timedelta(seconds=round(left)))

    def _draw(self) -> None:
        from yolor_ray.report.curves import curves_png

        self._events.flush()
        storage.write_bytes(storage.join(self._run, "curves.png"), curves_png(self._rows))
        for events in Path(self._folder.name).iterdir():
            storage.write_bytes(storage.join(self._run, "tensorboard", events.name), events.read_bytes())

    def __enter__(self) -> "RunLogger":
        """Return the board; all that is added is saved at once, so leaving only frees what it holds."""
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._events.close()
        self._folder.cleanup()
