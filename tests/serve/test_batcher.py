"""Batches are formed from the waiting items; the failure or departure of one caller affects no other."""

import asyncio
import threading
import time

import pytest

from yolor_ray.serve.batcher import Batcher


def test_every_caller_gets_the_result_of_its_own_item():
    async def main():
        batcher = Batcher(lambda items: [item * 2 for item in items], max_batch=3, wait_s=0.0)
        return await asyncio.gather(*map(batcher.submit, range(10)))

    assert asyncio.run(main()) == [2 * number for number in range(10)]


def test_no_batch_is_larger_than_max_batch():
    sizes = []

    async def main():
        batcher = Batcher(lambda items: sizes.append(len(items)) or items, max_batch=4, wait_s=0.0)
        await asyncio.gather(*map(batcher.submit, range(10)))

    asyncio.run(main())
    assert sizes == [4, 4, 2]


def test_a_failure_reaches_every_caller_of_its_batch_and_no_other():
    def process(items):
        if "bad" in items:
            raise ValueError("broken batch")
        return items

    async def main():
        batcher = Batcher(process, max_batch=2, wait_s=0.0)
        return await asyncio.gather(*map(batcher.submit, ["a", "bad", "b", "c"]), return_exceptions=True)

    first, second, *rest = asyncio.run(main())
    assert str(first) == str(second) == "broken batch"
    assert rest == ["b", "c"]


def test_the_mean_duration_of_an_item_follows_the_batches():
    durations = iter([0.2, 0.02])

    async def main():
        batcher = Batcher(lambda items: time.sleep(next(durations)) or items, max_batch=2, wait_s=0.0)
        assert batcher.seconds_per_item == 0
        await asyncio.gather(batcher.submit("a"), batcher.submit("b"))
        first = batcher.seconds_per_item
        await batcher.submit("c")
        return first, batcher.seconds_per_item

    first, second = asyncio.run(main())
    assert first >= 0.1
    assert 0.9 * first + 0.1 * 0.02 <= second < first


def test_an_item_whose_caller_left_is_not_processed():
    seen, gate = [], threading.Event()

    def process(items):
        seen.extend(items)
        assert gate.wait(10)
        return items

    async def main():
        batcher = Batcher(process, max_batch=1, wait_s=0.0)
        running, leaving, staying = (batcher.submit(name) for name in ("running", "leaving", "staying"))
        while not seen:
            await asyncio.sleep(0.001)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.set()
        await asyncio.gather(running, staying)

    asyncio.run(main())
    assert seen == ["running", "staying"]


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Event loop whose clock advances by each timeout at once, instead of waiting for it."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        select = self._selector.select

        def select_at_once(timeout):
            if not timeout:
                return select(timeout)
            self.now += timeout
            return select(0)

        self._selector.select = select_at_once

    def time(self):
        return self.now


def test_a_lone_item_waits_for_wait_s_and_no_longer():
    waited_s = []

    async def main():
        loop = asyncio.get_running_loop()
        batcher = Batcher(lambda items: waited_s.append(loop.now) or items, max_batch=8, wait_s=30.0)
        await batcher.submit(1)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
    assert waited_s == [pytest.approx(30.0)]


def test_a_full_batch_does_not_wait():
    waited_s = []

    async def main():
        loop = asyncio.get_running_loop()
        batcher = Batcher(lambda items: waited_s.append(loop.now) or items, max_batch=3, wait_s=30.0)
        await asyncio.gather(*map(batcher.submit, range(3)))

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
    assert waited_s == [0.0]


def test_the_event_loop_keeps_running_while_the_network_computes():
    started, gate = threading.Event(), threading.Event()

    def process(items):
        started.set()
        return [gate.wait(10) for _ in items]

    async def main():
        batcher = Batcher(process, max_batch=1, wait_s=0.0)
        result = batcher.submit(1)
        while not started.is_set():
            await asyncio.sleep(0.001)
        gate.set()
        return await result

    assert asyncio.run(main()) is True
