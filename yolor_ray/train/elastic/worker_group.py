"""Start the training loop: in this process, or on workers of a Ray cluster."""

import dataclasses
import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import ray
import ray.train
import torch
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from yolor_ray.cluster.block_source import cluster_source
from yolor_ray.cluster.capacity import check_capacity, clear_resource_request, worker_resources
from yolor_ray.cluster.connect import start_ray
from yolor_ray.cluster.stop_signal import SigtermStopSignal
from yolor_ray.data.loading.loader import Source
from yolor_ray.errors import ConfigError
from yolor_ray.io import filesystem
from yolor_ray.train.checkpoint.attempts import read_attempts
from yolor_ray.train.context import Report, TrainContext
from yolor_ray.train.distributed import COLLECTIVE_TIMEOUT_S, DistContext, make_dist_context
from yolor_ray.train.elastic.monitor import RemoteStopSignal
from yolor_ray.train.elastic.supervisor import run_with_restarts
from yolor_ray.train.loop import train_loop

TrainFn = Callable[[TrainContext, DistContext, Report], Any]


def run_in_process(context: TrainContext, train_fn: TrainFn = train_loop, report: Report | None = None) -> Any:
    """Train in this process, or do other work with the job, and return what comes of it; `report` hears each validation before the last."""
    cluster = context.config.cluster
    if cluster.gpu and not torch.cuda.is_available():
        raise ConfigError("cluster.gpu: found no CUDA device in this process, expected one; leave it out to train on the CPU")
    device = torch.device("cuda" if cluster.gpu else "cpu")
    torch.set_num_threads(cluster.compute_threads or available_cores())
    with SigtermStopSignal() as sigterm:
        return train_fn(dataclasses.replace(context, stop_signal=sigterm), make_dist_context(device), report or discard_report)


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def run_on_workers(
    context: TrainContext, train_fn: TrainFn = train_loop, source: Source | None = None, callbacks: Sequence[ray.train.UserCallback] = ()
) -> Any:
    """Do the same on workers of the cluster that RAY_ADDRESS names, or of a local one; returns what the leading worker does.

    What a lost worker or node takes along is done again by the workers that there is room for then. `source` holds the
    training set's row groups where someone has brought them to the cluster already; `callbacks` hear of each validation
    before the last. Raises the worker's own error if it is one of ours, TrainingError otherwise.
    """
    # Ray Train would turn every print of a library, such as the COCO tables, into a log line.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # Nodes that are about to leave are watched from here; its own watcher is one more process to wait for in each life.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    cluster = context.config.cluster
    start_ray(log_to_driver=True, dashboard=True, allow_unauthenticated=cluster.allow_unauthenticated)
    check_capacity(cluster, begun=bool(read_attempts(context.run)))
    try:
        with SigtermStopSignal() as sigterm:
            ready = dataclasses.replace(context, source=source or cluster_source(context.train))
            return run_with_restarts(ready, functools.partial(_run_attempt, train_fn=train_fn, callbacks=callbacks), sigterm)
    finally:
        clear_resource_request()


def _run_attempt(
    context: TrainContext, workers: int, stop_actor: Any, *, train_fn: TrainFn, callbacks: Sequence[ray.train.UserCallback]
) -> Any:
    """Run one life on a fixed number of workers and return what the leading one does.

    Whether and with how many workers another life follows is decided elsewhere: Ray Train would wait for lost ones first.
    """
    cluster = context.config.cluster
    # Ray's annotations do not know that a training function may return something, nor what Ray Train may be told of failures.
    worker: Any = _worker
    failure: Any = ray.train.FailureConfig
    trainer = TorchTrainer(
        worker,
        train_loop_config={"context": context, "train_fn": train_fn, "stop_actor": stop_actor, "has_callbacks": bool(callbacks)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=cluster.gpu, resources_per_worker=None if cluster.gpu else worker_resources(cluster)
        ),
        torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=ray.train.RunConfig(
            name=context.config.run.name,
            # Ray Train insists on a place to write to, and gives up at its first failure; what is to last is written by `storage`.
            storage_path="/",
            storage_filesystem=PyFileSystem(FSSpecHandler(MemoryFileSystem())),
            failure_config=failure(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            callbacks=cast(list[Any], list(callbacks)),
        ),
    )
    result: Any = trainer.fit()
    return result.return_value


def _worker(config: dict[str, Any]) -> Any:
    """Run the loop in a worker process of Ray Train."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    logging.getLogger("ray").setLevel(logging.WARNING)
    context: TrainContext = config["context"]
    torch.set_num_threads(
        context.config.cluster.compute_threads or max(available_cores() // ray.train.get_context().get_local_world_size(), 1)
    )
    stop_actor = config["stop_actor"]
    stop_actor.join.remote(ray.get_runtime_context().get_node_id())
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # What the driver knows of this storage, a new process does not.
    filesystem.mark_reachable(context.run)
    # Ray Train takes seconds for each report, also for those of earlier lives.
    report = ray.train.report if config["has_callbacks"] else discard_report
    return config["train_fn"](dataclasses.replace(context, stop_signal=RemoteStopSignal(stop_actor)), make_dist_context(device), report)


def discard_report(row: dict[str, Any]) -> None:
    """Leave a validation to the run's own files."""
