"""Log a run to an MLflow server, or to the database that MLFLOW_TRACKING_URI names."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolor_ray import __version__
from yolor_ray.config import TrainConfig
from yolor_ray.errors import ConfigError
from yolor_ray.io.redact import redact
from yolor_ray.train.loggers.epoch_logger import Outcome, parameters

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Variables that MLflow reads, where the user has not set them: no messages to its makers, no lines on standard output, which is for the
job's result, and a server that does not answer is found within seconds instead of four minutes."""
EXPERIMENT = "yolor_ray"
STATUS = {Outcome.FINISHED: "FINISHED", Outcome.STOPPED: "KILLED", Outcome.FAILED: "FAILED"}
PARAMETERS_PER_REQUEST = 100
"""Limit of the server."""


class MlflowLogger:
    """A run of MLflow; it goes on where an earlier job of the same training ended."""

    def __init__(self, config: TrainConfig, run: str, run_id: str) -> None:
        """Create the run, or continue the run of this id.

        Args:
            config: settings of the training.
            run: URL of the run's folder.
            run_id: id of an earlier job's run; empty for the first job.

        Raises:
            ConfigError: the server does not answer, or has no run of this id.

        """
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient, get_tracking_uri

        self._client = MlflowClient()
        try:
            self.id = run_id or self._create(config, run)
            self._continue(config)
        except MlflowException as error:
            found = f"run {run_id} cannot be continued" if run_id else "no run can be created"
            expected = "expected the server of this training in MLFLOW_TRACKING_URI"
            raise ConfigError(f"run.loggers: mlflow: {found} at {get_tracking_uri()}: {error}; {expected}") from error

    def _create(self, config: TrainConfig, run: str) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        tags = {"yolor_ray.run": redact(run), "yolor_ray.version": __version__}
        return str(self._client.create_run(experiment_id, tags=tags, run_name=redact(config.run.name)).info.run_id)

    def _continue(self, config: TrainConfig) -> None:
        """Log the settings that the run lacks, because MLflow refuses new values, and find its last epoch."""
        from mlflow.entities import Param

        logged = self._client.get_run(self.id).data
        self._client.update_run(self.id, status="RUNNING")
        missing = [Param(name, str(value)) for name, value in parameters(config).items() if name not in logged.params]
        for start in range(0, len(missing), PARAMETERS_PER_REQUEST):
            self._client.log_batch(self.id, params=missing[start : start + PARAMETERS_PER_REQUEST])
        history = self._client.get_metric_history(self.id, "loss") if "loss" in logged.metrics else []
        self._logged_epochs = max((metric.step for metric in history), default=0)

    def log_epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log new epochs, each as a step."""
        from mlflow.entities import Metric

        for row in rows:
            if row["epoch"] > self._logged_epochs:
                now_ms = round(time.time() * 1000)
                metrics = [Metric(name, float(value), now_ms, row["epoch"]) for name, value in row.items() if name != "epoch"]
                self._client.log_batch(self.id, metrics=metrics)
                self._logged_epochs = row["epoch"]

    def finish(self, outcome: Outcome, files: Path) -> None:
        """Log the folders as artifacts, and set the status of the run."""
        for folder in sorted(files.iterdir()):
            self._client.log_artifacts(self.id, str(folder), artifact_path=folder.name)
        self._client.set_terminated(self.id, status=STATUS[outcome])
