"""Write the epochs of a run as TensorBoard events."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from yolor_ray.io import storage
from yolor_ray.train.loggers.epoch_logger import Outcome

EVENTS_FOLDER = "tensorboard"


class TensorBoardLogger:
    """Events of a run in its folder `tensorboard`, anew from the first epoch in each job."""

    id = ""

    def __init__(self, run: str) -> None:
        """Write to the folder of the run at this URL."""
        self._run, self._logged_epochs = run, 0
        self._folder = tempfile.TemporaryDirectory(prefix="yolor-events-")
        # TensorBoard then leaves out the events of earlier jobs.
        self._events = SummaryWriter(self._folder.name, purge_step=1)

    def log_epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write new epochs, and copy the events to the run's folder."""
        new_rows = [row for row in rows if row["epoch"] > self._logged_epochs]
        if not new_rows:
            return
        for row in new_rows:
            for name, value in row.items():
                if name != "epoch":
                    self._events.add_scalar(name, value, row["epoch"])
        self._logged_epochs = new_rows[-1]["epoch"]
        self._events.flush()
        for events in Path(self._folder.name).iterdir():
            storage.write_bytes(storage.join(self._run, EVENTS_FOLDER, events.name), events.read_bytes())

    def finish(self, outcome: Outcome, files: Path) -> None:
        """Free the local files; the report and the weights are beside the events already."""
        self._events.close()
        self._folder.cleanup()
