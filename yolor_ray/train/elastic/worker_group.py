"""Run the training loop: in this process, or on workers of a Ray cluster."""

import dataclasses
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, cast

import ray
import ray.train
import torch
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.placement_group import get_current_placement_group

from yolor_ray.cluster.block_source import cluster_source
from yolor_ray.cluster.capacity import check_capacity, clear_resource_request, worker_resources
from yolor_ray.cluster.cluster_loader import ClusterLoader
from yolor_ray.cluster.connect import start_ray
from yolor_ray.cluster.ray_internals import HUNG_WORKER_TIMEOUT, PREEMPTION_WATCHER, PRINT_PATCH
from yolor_ray.cluster.stop_signal import ProcessStopSignal
from yolor_ray.config import ClusterConfig
from yolor_ray.data.loading.loader import Source
from yolor_ray.data.loading.loader_process import LoaderProcess
from yolor_ray.errors import ConfigError
from yolor_ray.report.provenance import available_cores
from yolor_ray.train.checkpoint.attempts import read_attempts
from yolor_ray.train.context import LoaderFactory, Report, TrainContext
from yolor_ray.train.distributed import COLLECTIVE_TIMEOUT_S, DistContext, make_dist_context
from yolor_ray.train.elastic.monitor import RemoteStopSignal, WorkerPlace
from yolor_ray.train.elastic.supervisor import run_with_restarts
from yolor_ray.train.loop import train_loop

HUNG_WORKER_S = 60.0
"""Time without an answer of a worker's process after which its attempt ends (s). A thread that only answers health checks makes the
answer, so that a long step, a validation or slow storage does not delay it. An attempt that ends kills its workers within 35 s."""

TrainFn = Callable[[TrainContext, DistContext, Report], Any]


def run_in_process(
    context: TrainContext, train_fn: TrainFn = train_loop, report: Report | None = None, stop_signal: ProcessStopSignal | None = None
) -> Any:
    """Run a training function in this process and return its result; `report` receives each validation before the last.

    `stop_signal` has the received signal afterwards.

    Raises:
        ConfigError: `cluster.gpu` is set and this process has no CUDA device.

    """
    cluster = context.config.cluster
    if cluster.gpu and not torch.cuda.is_available():
        raise ConfigError("cluster.gpu: found no CUDA device in this process, expected one; leave the flag out to train on the CPU")
    device = torch.device("cuda" if cluster.gpu else "cpu")
    torch.set_num_threads(cluster.compute_threads or available_cores())
    with stop_signal or ProcessStopSignal() as received:
        return train_fn(dataclasses.replace(context, stop_signal=received), make_dist_context(device), report or discard_report)


def run_on_workers(
    context: TrainContext,
    train_fn: TrainFn = train_loop,
    source: Source | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
    stop_signal: ProcessStopSignal | None = None,
) -> Any:
    """Run a training function on workers of the cluster that RAY_ADDRESS names, or of a local Ray; return the result of rank 0.

    After the loss of a worker or node, the run resumes with as many workers as the cluster can schedule.

    Args:
        context: inputs of the workers.
        train_fn: function that every worker runs.
        source: row groups of the training set, if the caller has brought them to the cluster already.
        callbacks: receive each validation before the last.
        stop_signal: has the received signal afterwards.

    Raises:
        UserError, TrainingError: an error of this package, as the worker raised it; TrainingError for other failures.

    """
    # Ray Train would turn every print of a library, such as the COCO tables, into a log line.
    os.environ.setdefault(PRINT_PATCH, "0")
    # ClusterMonitor watches for draining nodes. Ray Train's watcher would be one more process to wait for in each attempt.
    os.environ.setdefault(PREEMPTION_WATCHER, "0")
    os.environ.setdefault(HUNG_WORKER_TIMEOUT, str(HUNG_WORKER_S))
    cluster = context.config.cluster
    start_ray(log_to_driver=True, dashboard=True, allow_unauthenticated=cluster.allow_unauthenticated)
    check_capacity(cluster, resumes=bool(read_attempts(context.run)))
    try:
        with stop_signal or ProcessStopSignal() as received:
            context = dataclasses.replace(context, source=source or cluster_source(context.train))
            return run_with_restarts(context, functools.partial(_run_attempt, train_fn=train_fn, callbacks=callbacks), received)
    finally:
        clear_resource_request()


def _run_attempt(
    context: TrainContext, workers: int, stop_actor: Any, *, train_fn: TrainFn, callbacks: Sequence[ray.train.UserCallback]
) -> Any:
    """Run one attempt on a fixed number of workers, without restarts of Ray Train, and return the result of rank 0."""
    cluster = context.config.cluster
    # Ray's annotations lack the result of a training function, and the failure limits of Ray Train V2.
    worker_fn: Any = _run_worker
    failure_config: Any = ray.train.FailureConfig
    trainer = TorchTrainer(
        worker_fn,
        train_loop_config={"context": context, "train_fn": train_fn, "stop_actor": stop_actor, "has_callbacks": bool(callbacks)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=cluster.gpu, resources_per_worker=None if cluster.gpu else worker_resources(cluster)
        ),
        torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=ray.train.RunConfig(
            name=context.config.run.name,
            # Ray Train requires a storage path, and aborts the run when a write to the path fails. The run's files are written by
            # io.storage, which retries; Ray Train's own files go to memory.
            storage_path="/",
            storage_filesystem=PyFileSystem(FSSpecHandler(MemoryFileSystem())),
            failure_config=failure_config(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            callbacks=cast(list[Any], list(callbacks)),
        ),
    )
    result: Any = _fit_in_thread(trainer)
    return result.return_value


def _fit_in_thread(trainer: TorchTrainer) -> Any:
    """Return the result of `trainer.fit()`, called in another thread.

    In the main thread Ray Train would replace the handler of SIGINT, and Ctrl-C would end the workers without a checkpoint.
    """
    outcome: Future[Any] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001 - the thread that waits for the outcome raises it again
            outcome.set_exception(error)

    # A daemon, because a second signal ends the process while the thread waits.
    threading.Thread(target=fit, name="yolor-fit", daemon=True).start()
    return outcome.result()


def _run_worker(config: dict[str, Any]) -> Any:
    """Run the training function in a worker process of Ray Train."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    logging.getLogger("ray").setLevel(logging.WARNING)
    context: TrainContext = config["context"]
    workers_on_node = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(context.config.cluster.compute_threads or max(available_cores() // workers_on_node, 1))
    stop_actor = config["stop_actor"]
    place = WorkerPlace(ray.get_runtime_context().get_node_id(), get_current_placement_group())
    stop_actor.join.remote(ray.train.get_context().get_world_rank(), place)
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Ray Train takes seconds for each report, and a resumed attempt repeats the reports of earlier attempts.
    report = ray.train.report if config["has_callbacks"] else discard_report
    context = dataclasses.replace(context, stop_signal=RemoteStopSignal(stop_actor), loader=_choose_loader(context.config.cluster))
    dist_context = make_dist_context(device, ray.util.get_node_ip_address())
    return config["train_fn"](context, dist_context, report)


def _choose_loader(cluster: ClusterConfig) -> LoaderFactory:
    """Return the loader that uses free CPUs of other nodes, unless the run may start more workers there."""
    workers = ray.train.get_context().get_world_size()
    return functools.partial(ClusterLoader, workers=workers) if cluster.gpu or workers == cluster.worker_range[1] else LoaderProcess


def discard_report(row: dict[str, Any]) -> None:
    """Discard a validation, which the run's files hold anyway."""
