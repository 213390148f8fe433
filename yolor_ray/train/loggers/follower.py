"""Hand the epochs of a run to its loggers while it trains, and its report and weights at its end.

The process of the job reads the run's `metrics.jsonl`. So workers need neither the libraries nor the keys of the loggers, and a server
that does not answer neither slows nor ends a training.
"""

import contextlib
import importlib.util
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from yolor_ray.config import TrainConfig
from yolor_ray.errors import ConfigError, IntegrityError, Preempted
from yolor_ray.io import manifest, storage
from yolor_ray.io.weights_url import WEIGHTS_FOLDER
from yolor_ray.train.loggers.epoch_logger import EpochLogger, Outcome
from yolor_ray.train.progress.run_page import REPORT_FOLDER
from yolor_ray.train.run_log import read_metrics

logger = logging.getLogger(__name__)

LOGGERS_FILE = "loggers.json"
"""File of a run's folder: for each logger with a server, the id of the run there, and whether the run there is complete."""
POLL_S = 10.0
"""Time between two readings of `metrics.jsonl` (s)."""


def check_loggers(names: Sequence[str]) -> None:
    """Raise ConfigError if the library of a logger is not installed."""
    for name in names:
        spec = importlib.util.find_spec(name)
        # A folder of that name in the working directory has no origin: W&B writes one.
        if spec is None or spec.origin is None:
            expected = "expected it; install with: pip install -r requirements-loggers.txt"
            raise ConfigError(f"run.loggers: found {name}, and no package {name}, {expected}")


@contextlib.contextmanager
def logged(config: TrainConfig, run: str) -> Iterator[None]:
    """Log the training of the block with `run.loggers`; a finished run is logged to the servers that lack it.

    Args:
        config: settings of the run.
        run: URL of the run's folder.

    Raises:
        ConfigError: a server refuses the run or does not answer before the block begins.

    """
    follower, outcome = Follower(run), Outcome.FAILED
    try:
        follower.open(config)
        yield
        outcome = Outcome.FINISHED
    except (Preempted, KeyboardInterrupt):
        outcome = Outcome.STOPPED
        raise
    finally:
        follower.close(outcome)


class Follower:
    """Loggers of a run, and the thread that hands new epochs to them."""

    def __init__(self, run: str) -> None:
        """Follow the run at this URL."""
        self._run = run
        self._loggers: dict[str, EpochLogger] = {}
        self._failing: set[str] = set()
        """Loggers whose last action failed: the same failure every few seconds is logged once."""
        self._state = _read_state(run)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="yolor-loggers", daemon=True)

    def open(self, config: TrainConfig) -> None:
        """Start the loggers; of a finished run, only those whose servers lack it."""
        is_published = manifest.is_published(storage.join(self._run, WEIGHTS_FOLDER))
        for name in config.run.loggers:
            known = self._state.get(name, {"id": "", "finished": name == "tensorboard"})
            if is_published and known["finished"]:
                continue
            self._loggers[name] = epoch_logger = _open_logger(name, config, self._run, known["id"])
            if epoch_logger.id:
                self._state[name] = {"id": epoch_logger.id, "finished": False}
                self._write_state()
                logger.info("event=logger_started logger=%s id=%s", name, epoch_logger.id)
        if self._loggers:
            self._thread.start()

    def _follow(self) -> None:
        while not self._stopped.wait(POLL_S):
            self._log_epochs()

    def _log_epochs(self) -> bool:
        """Log new epochs; return True if all loggers have all epochs."""
        done = [self._attempt(name, lambda one=one: one.log_epochs(read_metrics(self._run))) for name, one in self._loggers.items()]  # type: ignore[misc]
        return all(done)

    def close(self, outcome: Outcome) -> None:
        """Log the last epochs, and the report and the weights of a finished run; end the loggers."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self._loggers:
            return
        is_complete = self._log_epochs() and outcome is Outcome.FINISHED
        with tempfile.TemporaryDirectory(prefix="yolor-loggers-") as folder:
            if outcome is Outcome.FINISHED and self._state:
                is_complete &= self._attempt("report and weights", lambda: _copy_results(self._run, Path(folder)))
            for name, epoch_logger in self._loggers.items():
                has_ended = self._attempt(name, lambda one=epoch_logger: one.finish(outcome, Path(folder)))  # type: ignore[misc]
                if name in self._state:
                    self._state[name]["finished"] = has_ended and is_complete
        if self._state and outcome is Outcome.FINISHED:
            self._attempt(LOGGERS_FILE, self._write_state)

    def _attempt(self, name: str, action: Callable[[], None]) -> bool:
        """Run an action of a logger, and return True if it succeeded; its failure is logged."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the libraries raise errors of many types, and none may end a training
            if name not in self._failing:
                logger.error("event=logger_failed logger='%s' error='%s' reason='it gets later what it misses'", name, error)
            self._failing.add(name)
            return False
        self._failing.discard(name)
        return True

    def _write_state(self) -> None:
        storage.write_bytes(storage.join(self._run, LOGGERS_FILE), json.dumps(self._state, indent=1).encode())


def _open_logger(name: str, config: TrainConfig, run: str, run_id: str) -> EpochLogger:
    """Start a logger; the import of its library takes seconds."""
    if name == "mlflow":
        from yolor_ray.train.loggers.mlflow_logger import MlflowLogger

        return MlflowLogger(config, run, run_id)
    if name == "wandb":
        from yolor_ray.train.loggers.wandb_logger import WandbLogger

        return WandbLogger(config, run_id)
    from yolor_ray.train.loggers.tensorboard_logger import TensorBoardLogger

    return TensorBoardLogger(run)


def _read_state(run: str) -> dict[str, dict[str, Any]]:
    url = storage.join(run, LOGGERS_FILE)
    if not storage.exists(url):
        return {}
    try:
        state = json.loads(storage.read_bytes(url))
        return {name: {"id": str(entry["id"]), "finished": bool(entry["finished"])} for name, entry in state.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        expected = 'expected {logger: {"id", "finished"}}; restore the file, or delete it to log the run anew'
        raise IntegrityError(f"{url}: found no state of the loggers ({error}), {expected}") from error


def _copy_results(run: str, folder: Path) -> None:
    """Copy the report and the weights of a finished run into a local folder."""
    for name in (REPORT_FOLDER, WEIGHTS_FOLDER):
        for file, data in manifest.read_published(storage.join(run, name)).items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
