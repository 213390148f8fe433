"""Environment with which processes of this package start: settings of glibc, OpenMP and Ray, and the hook of Ray's worker processes."""

import os
import tempfile

from yolor_ray.io.redact import hide_secrets

PROCESS_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30), "GOMP_SPINCOUNT": "5000"}
"""Variables that glibc and OpenMP read only when a process starts.

The first two keep freed buffers under 1 GiB in the process. By default glibc returns large freed buffers to the kernel, so that each batch
has to fetch new pages. Measured: training 1.10-1.16x, serving 1.16-1.27x and decoding 2.4x as fast. The third lets a compute thread sleep
soon instead of spinning for the others, which stands still where other processes have the cores. On an idle machine a step of training with
two threads takes as long with it as without it.
"""
WORKER_HOOK = {"worker_process_setup_hook": "yolor_ray.cluster.environment.prepare_worker"}
"""Runtime environment that calls `prepare_worker` in every Ray process of a job, Ray's own controllers included."""


def local_ray_settings() -> dict[str, str]:
    """Return variables with which a Ray of this machine alone starts everywhere and sends nothing to others.

    With Docker's 64 MB of /dev/shm Ray keeps its objects in its temporary folder, and warns. Without the first variable it refuses to start
    if 30 % of the machine's memory are over 10 GB. Python ignores a TMPDIR that does not exist; Ray would try to create the folder.
    Without the third variable Ray sends statistics of usage to its makers, which two processes collect.
    """
    return {"RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1", "RAY_TMPDIR": tempfile.gettempdir(), "RAY_USAGE_STATS_ENABLED": "0"}


def prepare_worker() -> None:
    """Redact secrets in the logs of this Ray worker process, and name its cluster in RAY_ADDRESS.

    Without the address, Ray Train's cleaner of placement groups searches this machine for a cluster. Where several run, as of two local
    trainings, the cleaner raises an exception, and stays behind when its training is killed.
    """
    hide_secrets()
    # The command line imports this module before the arguments are read, and ray takes a second.
    import ray

    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
