"""Load batches in a process of its own, so that Python code of the augmentation never keeps the trainer waiting.

The trainer sends windows, steps and encoded row groups. The process runs a `Loader` and answers with annotations; images and instance
maps are in shared memory. The samples are those of the same loader in the trainer's process.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.data.loading.batch import Batch
from yolor_ray.data.loading.epoch_plan import Steps, windows_in_use
from yolor_ray.data.loading.epoch_windows import Window
from yolor_ray.data.loading.loader import Source
from yolor_ray.data.loading.shared_buffers import SHARED_BUFFERS, SharedBuffers, open_memory
from yolor_ray.data.loading.table_pipe import SourceFailed, send_tables
from yolor_ray.errors import LoaderError


class LoaderProcess:
    """Maker of training batches for one worker, in a process; keep it over epochs. Its methods are those of `Loader`."""

    def __init__(self, source: Source, *, image_px: int, label_spec: LabelSpec, **settings: Any) -> None:
        """Start the process; the arguments are those of `Loader`."""
        self._source, self._image_px, self._has_instances = source, image_px, label_spec.masks
        self._settings = {"image_px": image_px, "label_spec": label_spec, **settings}
        self._process: _Process | None = _Process(self._settings)

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.end()
            self._process = None

    def epoch(self, windows: Sequence[Window], steps: Steps, *, mosaic_closed: bool = False) -> Generator[Batch, None, None]:
        """Yield the batches of `steps` in order; without mosaic and mixup if `mosaic_closed`.

        Raises:
            UserError, TrainingError: an error of the source or of a record.
            LoaderError: the process ended, for example because it was killed.
        """
        process = self._process = self._process or _Process(self._settings)
        buffers = SharedBuffers(process.memory, steps.largest, self._image_px, self._has_instances)
        finished = False
        try:
            process.begin(self._source, windows, steps, mosaic_closed=mosaic_closed)
            for number in range(len(steps)):
                batch, slot = process.receive(), number % SHARED_BUFFERS
                count = len(batch.images)
                instances = None if buffers.instances is None else buffers.instances[slot, :count]
                yield replace(batch, images=buffers.images[slot, :count], instances=None if batch.instances is None else instances)
            finished = True
        finally:
            # The process of an epoch that was left early still has batches of it to send.
            if not finished:
                self.close()


@dataclass
class _Process:
    """The process with its connections."""

    settings: dict[str, Any]

    def __post_init__(self) -> None:
        self.memory = open_memory()
        self._batches, batches = Pipe()
        self._tables, tables = Pipe()
        descriptors = [batches.fileno(), tables.fileno(), self.memory]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "yolor_ray.data.loading.loader_main", *map(str, descriptors)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
        )
        batches.close()
        tables.close()
        self._feeder = ThreadPoolExecutor(1, thread_name_prefix="yolor-feed")
        self._fed: Future[None] = Future()
        with self._death_told():
            self._batches.send(self.settings)

    def begin(self, source: Source, windows: Sequence[Window], steps: Steps, *, mosaic_closed: bool) -> None:
        """Begin an epoch."""
        self._fed = self._feeder.submit(self._feed, source, windows, steps)
        with self._death_told():
            self._batches.send((windows, steps, mosaic_closed))

    def receive(self) -> Batch:
        """Return the next batch, without images; allow the process to go on."""
        with self._death_told():
            answer: Batch | Exception = self._batches.recv()
        if isinstance(answer, SourceFailed):
            self._fed.result()
        if isinstance(answer, Exception):
            raise answer
        # The next `recv` finds a process that ended meanwhile.
        with contextlib.suppress(ConnectionError):
            self._batches.send(None)
        return answer

    def end(self) -> None:
        """Kill the process, which holds nothing of value, and wait for its end."""
        self._process.kill()
        self._process.wait()
        self._feeder.shutdown(wait=False, cancel_futures=True)
        self._batches.close()
        os.close(self.memory)

    def _feed(self, source: Source, windows: Sequence[Window], steps: Steps) -> None:
        """Send the tables of the epoch in the order in which the loader takes them."""
        # The thread that receives batches tells the end of the process.
        with contextlib.suppress(ConnectionError):
            send_tables(self._tables, source(group for w in windows_in_use(steps) for group in windows[w].groups))

    @contextlib.contextmanager
    def _death_told(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError) as error:
            status = self._process.wait()
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            raise LoaderError(
                f"the process that prepares the batches ended {how}; SIGKILL is often the kernel's answer to full memory: expected a node "
                "with more memory, a smaller --data.image_px or fewer workers"
            ) from error
