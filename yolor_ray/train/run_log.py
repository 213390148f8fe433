"""Progress of a run: log lines on standard error, and metrics and curves in the run's folder."""

import json
import logging
import time
from datetime import timedelta
from typing import Any

from yolor_ray.config.renamed import current_metrics
from yolor_ray.errors import StorageError
from yolor_ray.io import storage
from yolor_ray.io.json_lines import parse_json_lines

logger = logging.getLogger(__name__)

LOG_EVERY_S = 20.0
SHOW_EVERY_S = 1.0
"""Seconds between log lines inside an epoch for a terminal, which asks for them by the level DEBUG of this logger."""
METRICS_FILE = "metrics.jsonl"


def read_metrics(run: str) -> list[dict[str, Any]]:
    """Return the metrics of each finished epoch of a run, in order; none where no run is.

    Raises:
        IntegrityError: a line is no JSON object.

    """
    url = storage.join(run, METRICS_FILE)
    return [current_metrics(row) for row in parse_json_lines(url, storage.read_bytes(url))] if storage.exists(url) else []


class RunLogger:
    """Log of a run on rank 0; speeds and times are those of this process."""

    def __init__(self, run: str, rows: list[dict[str, Any]], epochs: int) -> None:
        """Continue after the rows of earlier epochs; `rows` itself grows with each epoch, and checkpoints hold it."""
        self._run, self._rows, self._epochs = run, rows, epochs
        self._started_at, self._first_epoch = time.monotonic(), float(len(rows))
        self._logged_at = time.monotonic()

    def log_progress(self, epoch: float, loss: float, images_per_s: float) -> None:
        """Log the position inside an epoch, such as 2.25 for a quarter of the third epoch."""
        self._logged_at = time.monotonic()
        logger.info(
            "event=progress epoch=%.2f/%d loss=%.4f images_per_s=%.1f eta='%s'", epoch, self._epochs, loss, images_per_s, self._eta(epoch)
        )

    @property
    def is_due(self) -> bool:
        """True if the last log line is older than LOG_EVERY_S, or than SHOW_EVERY_S for a terminal."""
        interval_s = min(SHOW_EVERY_S, LOG_EVERY_S) if logger.isEnabledFor(logging.DEBUG) else LOG_EVERY_S
        return time.monotonic() - self._logged_at > interval_s

    def log_epoch(self, row: dict[str, Any], *, draw: bool, is_last: bool) -> None:
        """Log and save the metrics of a finished epoch; `draw` updates the curves as well.

        A failed write before the last epoch is logged, and repeated with the next epoch.
        """
        self._rows.append(row)
        metrics = " ".join(f"{name}={value:.4g}" for name, value in row.items() if name != "epoch")
        logger.info("event=epoch epoch=%d/%d %s eta='%s'", row["epoch"], self._epochs, metrics, self._eta(row["epoch"]))
        self._logged_at = time.monotonic()
        try:
            self._save(draw)
        except StorageError as error:
            if is_last:
                raise
            logger.error("event=metrics_not_saved epoch=%d error='%s'", row["epoch"], error)

    def _save(self, draw: bool) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self._rows)
        storage.write_bytes(storage.join(self._run, METRICS_FILE), lines.encode())
        if draw:
            self._draw()

    def _draw(self) -> None:
        # Workers other than rank 0 start sooner without matplotlib.
        from yolor_ray.report.curves import curves_png

        storage.write_bytes(storage.join(self._run, "curves.png"), curves_png(self._rows))

    def _eta(self, epoch: float) -> str:
        epochs_done = epoch - self._first_epoch
        left_s = (self._epochs - epoch) * (time.monotonic() - self._started_at) / max(epochs_done, 1e-9)
        return str(timedelta(seconds=round(left_s)))
