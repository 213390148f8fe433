"""The process of a loader, which `LoaderProcess` starts."""

import contextlib
import functools
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

import cv2
import numpy as np

from yolor_ray.data.loading.batch import Batch
from yolor_ray.data.loading.loader import Loader
from yolor_ray.data.loading.shared_buffers import SHARED_BUFFERS, SharedBuffers
from yolor_ray.data.loading.table_pipe import receive_tables


def main() -> None:
    """Make the batches of epoch after epoch until the trainer ends the process, or ends itself."""
    # A terminal and systemd send their signals to the whole group; the trainer decides what they mean.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    batches, tables, memory = Connection(int(sys.argv[1])), Connection(int(sys.argv[2])), int(sys.argv[3])
    # The kernel closes the other end when the trainer ends, in whatever way.
    with contextlib.suppress(EOFError, ConnectionError):
        settings = batches.recv()
        loader = Loader(functools.partial(receive_tables, tables), **settings)
        while True:
            windows, steps, mosaic_closed = batches.recv()
            buffers = SharedBuffers(memory, steps.largest, settings["image_px"], settings["label_spec"].masks)
            try:
                _send(batches, buffers, loader.epoch(windows, steps, mosaic_closed=mosaic_closed, buffers=list(buffers.images)))
            except Exception as error:  # noqa: BLE001 - the trainer raises it again
                batches.send(_picklable(error))
    # Nobody waits for threads in the middle of a sample.
    os._exit(0)


def _send(connection: Connection, buffers: SharedBuffers, batches: Iterator[Batch]) -> None:
    """Send each batch without the arrays in shared memory, at most two batches ahead of the trainer."""
    sent = 0
    for batch in batches:
        if batch.instances is not None and buffers.instances is not None:
            buffers.instances[sent % SHARED_BUFFERS, : len(batch.images)] = batch.instances
        connection.send(replace(batch, images=np.empty((len(batch.images), 0)), instances=None if batch.instances is None else np.empty(0)))
        if sent:
            connection.recv()
        sent += 1
    if sent:
        connection.recv()


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - any class of error may refuse to be copied
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
