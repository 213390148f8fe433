"""Start the training loop: in this process, or on workers of a Ray cluster."""

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from yolor_ray.data.loader import Source
from yolor_ray.errors import ConfigError, TrainingError, UserError
from yolor_ray.runtime.cluster import start_ray
from yolor_ray.runtime.ingest import cluster_source
from yolor_ray.runtime.loop import Job, Report, train_loop
from yolor_ray.runtime.team import Team, this_team

logger = logging.getLogger(__name__)

Work = Callable[[Job, Team, Report], Any]

SPARE_CPUS = 0.5
"""Logical CPUs that reading needs beside the workers."""


def work_here(job: Job, work: Work = train_loop, report: Report = lambda row: None) -> Any:
    """Train in this process, or do other work with the job, and return what comes of it; `report` hears each validation before the last."""
    cluster = job.config.cluster
    if cluster.gpu and not torch.cuda.is_available():
        raise ConfigError("cluster.gpu: found no CUDA device in this process, expected one; leave it out to train on the CPU")
    device = torch.device("cuda" if cluster.gpu else "cpu")
    torch.set_num_threads(cluster.threads or cores())
    return work(job, this_team(device), report)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def work_on_cluster(
    job: Job, work: Work = train_loop, source: Source | None = None, callbacks: Sequence[ray.train.UserCallback] = ()
) -> Any:
    """Do the same on workers of the cluster that RAY_ADDRESS names, or of a local one; returns what the leading worker does.

    `source` holds the training set's row groups where someone has brought them to the cluster already; `callbacks` hear of
    each validation before the last. Raises the worker's own error if it is one of ours, TrainingError otherwise.
    """
    # Ray Train would turn every print of a library, such as the COCO tables, into a log line.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    start_ray(log_to_driver=True, dashboard=True)
    _check_room(job)
    cluster = job.config.cluster
    low, high = cluster.worker_range
    elastic: Any = (low, high)
    scaling = ray.train.ScalingConfig(
        num_workers=high if low == high else elastic,
        use_gpu=cluster.gpu,
        resources_per_worker=None if cluster.gpu else {"CPU": cluster.cpus_per_worker},
    )
    # Ray's annotations do not know that a training function may return something.
    worker: Any = _worker
    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": dataclasses.replace(job, source=source or cluster_source(job.train)), "work": work},
        scaling_config=scaling,
        torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=job.run,
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            callbacks=cast(list[Any], list(callbacks)),
        ),
    )
    try:
        result: Any = trainer.fit()
        return result.return_value
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error


def _check_room(job: Job) -> None:
    """Raise ConfigError at once if the cluster is too small: Ray would wait for ever."""
    cluster = job.config.cluster
    fewest, kind = cluster.worker_range[0], "GPU" if cluster.gpu else "CPU"
    needed = fewest * 1.0 if cluster.gpu else fewest * cluster.cpus_per_worker + SPARE_CPUS
    found = ray.cluster_resources().get(kind, 0)
    if found < needed:
        raise ConfigError(f"cluster.workers: {fewest} workers and reading need {needed:g} {kind}s, found {found:g}")


def _cause(error: BaseException) -> Exception:
    """Return what went wrong in a worker as one of our own errors."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, UserError | TrainingError):
            return cause
    return TrainingError(str(error))


def _worker(config: dict[str, Any]) -> Any:
    """Run the loop in a worker process of Ray Train."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    logging.getLogger("ray").setLevel(logging.WARNING)
    job: Job = config["job"]
    context = ray.train.get_context()
    torch.set_num_threads(job.config.cluster.threads or max(cores() // context.get_local_world_size(), 1))
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return config["work"](job, this_team(device), ray.train.report)
