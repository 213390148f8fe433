"""Gather waiting requests into batches for the one thread that runs the network.

A batch is made at the moment the network is free, from all that waits then. Ray's `@serve.batch` closes its batches on a
timer instead, also while the network is busy, which makes them smaller just when the load is high.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    result: "asyncio.Future[Result]"
    since_s: float


class Batcher(Generic[Item, Result]):
    """Run `work` over batches of submitted items, one batch at a time, off the event loop."""

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]], max_batch: int, wait_s: float) -> None:
        """Prepare.

        Args:
            work: blocking; returns one result per item, in order.
            max_batch: most items per call.
            wait_s: longest time that an item waits, while `work` is idle, for others to join it.
        """
        self._work = work
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._thread = ThreadPoolExecutor(1, "network")
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._arrived = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Return the item's result; when the caller is cancelled before its batch starts, the item is dropped."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(item, loop.create_future(), loop.time())
        self._waiting.append(waiting)
        self._arrived.set()
        if self._runner is None or self._runner.done():
            self._runner = loop.create_task(self._run())
        return await waiting.result

    async def _run(self) -> None:
        while self._waiting:
            await self._fill(self._waiting[0].since_s + self._wait_s)
            batch = self._take()
            if batch:
                await self._answer(batch)

    async def _fill(self, deadline_s: float) -> None:
        try:
            async with asyncio.timeout_at(deadline_s):
                while len(self._waiting) < self._max_batch and self._wait_s > 0:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return

    def _take(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        while self._waiting and len(batch) < self._max_batch:
            waiting = self._waiting.popleft()
            if not waiting.result.done():
                batch.append(waiting)
        return batch

    async def _answer(self, batch: list[_Waiting[Item, Result]]) -> None:
        items = [waiting.item for waiting in batch]
        call = asyncio.get_running_loop().run_in_executor(self._thread, self._work, items)
        await asyncio.wait([call])
        error = call.exception()
        results = [] if error else call.result()
        for number, waiting in enumerate(batch):
            if waiting.result.done():
                continue
            if error:
                waiting.result.set_exception(error)
            else:
                waiting.result.set_result(results[number])
