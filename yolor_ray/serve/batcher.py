"""Gather waiting requests into batches for the one thread that runs the network.

A batch is formed when the network becomes idle, from all requests that wait at that moment. Ray's `@serve.batch` closes batches on a
timer instead, even while the network is busy, so that batches are smaller just when the load is high.
"""

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

SMOOTHING = 0.9
"""Weight of the former batches in the mean duration of an item."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class _PendingItem(Generic[Item, Result]):
    item: Item
    result: "asyncio.Future[Result]"
    submitted_s: float


class Batcher(Generic[Item, Result]):
    """Queue of items and the thread that processes them, one batch at a time, off the event loop."""

    def __init__(
        self,
        process: Callable[[Sequence[Item]], Sequence[Result]],
        max_batch: int,
        wait_s: float,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        """Create an idle batcher.

        Args:
            process: blocking function; returns one result per item, in order.
            max_batch: most items per call.
            wait_s: longest time that an item waits for further items while `process` is idle.
            thread: executor with one thread, which batchers may share; None takes a thread of its own.
        """
        self._process = process
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._thread = thread or ThreadPoolExecutor(1, "network")
        self._pending: deque[_PendingItem[Item, Result]] = deque()
        self._arrived = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self.seconds_per_item = 0.0
        """Mean share of an item in the duration of its batch; 0 before the first batch."""

    @property
    def waiting(self) -> int:
        """Return the number of items that wait for a batch."""
        return len(self._pending)

    def submit(self, item: Item) -> "asyncio.Future[Result]":
        """Queue an item and return its result to come; an item whose future is cancelled before its batch starts is dropped."""
        loop = asyncio.get_running_loop()
        pending: _PendingItem[Item, Result] = _PendingItem(item, loop.create_future(), loop.time())
        self._pending.append(pending)
        pending.result.add_done_callback(functools.partial(self._drop_cancelled, pending))
        self._arrived.set()
        if self._runner is None or self._runner.done():
            self._runner = loop.create_task(self._run())
        return pending.result

    def _drop_cancelled(self, pending: _PendingItem[Item, Result], result: "asyncio.Future[Result]") -> None:
        """Remove an item that is cancelled while it waits, so that `waiting` does not count it."""
        if result.cancelled() and pending in self._pending:
            self._pending.remove(pending)

    async def _run(self) -> None:
        while self._pending:
            await self._wait_for_items(self._pending[0].submitted_s + self._wait_s)
            batch = self._take_batch()
            if batch:
                await self._process_batch(batch)

    async def _wait_for_items(self, deadline_s: float) -> None:
        """Wait until a full batch is pending or the deadline has passed."""
        try:
            async with asyncio.timeout_at(deadline_s):
                while len(self._pending) < self._max_batch and self._wait_s > 0:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return

    def _take_batch(self) -> list[_PendingItem[Item, Result]]:
        batch: list[_PendingItem[Item, Result]] = []
        while self._pending and len(batch) < self._max_batch:
            pending = self._pending.popleft()
            if not pending.result.done():
                batch.append(pending)
        return batch

    async def _process_batch(self, batch: list[_PendingItem[Item, Result]]) -> None:
        items = [pending.item for pending in batch]
        loop = asyncio.get_running_loop()
        started = loop.time()
        call = loop.run_in_executor(self._thread, self._process, items)
        await asyncio.wait([call])
        share = (loop.time() - started) / len(items)
        self.seconds_per_item = SMOOTHING * self.seconds_per_item + (1 - SMOOTHING) * share if self.seconds_per_item else share
        error = call.exception()
        results = [] if error else call.result()
        for index, pending in enumerate(batch):
            if pending.result.done():
                continue
            if error:
                pending.result.set_exception(error)
            else:
                pending.result.set_result(results[index])
