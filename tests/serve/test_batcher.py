"""Batches form from what waits; nobody else pays for one caller's failure or departure."""

import asyncio
import threading

import pytest

from yolor_ray.serve.batcher import Batcher


def test_every_caller_gets_the_answer_to_its_own_item():
    async def main():
        batcher = Batcher(lambda items: [item * 2 for item in items], max_batch=3, wait_s=0.0)
        return await asyncio.gather(*map(batcher.submit, range(10)))

    assert asyncio.run(main()) == [2 * number for number in range(10)]


def test_no_batch_is_larger_than_allowed():
    sizes = []

    async def main():
        batcher = Batcher(lambda items: sizes.append(len(items)) or items, max_batch=4, wait_s=0.0)
        await asyncio.gather(*map(batcher.submit, range(10)))

    asyncio.run(main())
    assert sizes == [4, 4, 2]


def test_a_failure_reaches_every_caller_of_its_batch_and_no_other():
    def work(items):
        if "bad" in items:
            raise ValueError("broken batch")
        return items

    async def main():
        batcher = Batcher(work, max_batch=2, wait_s=0.0)
        return await asyncio.gather(*map(batcher.submit, ["a", "bad", "b", "c"]), return_exceptions=True)

    first, second, *rest = asyncio.run(main())
    assert str(first) == str(second) == "broken batch"
    assert rest == ["b", "c"]


def test_an_item_whose_caller_left_is_dropped_before_the_work():
    seen, go = [], threading.Event()

    def work(items):
        seen.extend(items)
        assert go.wait(10)
        return items

    async def main():
        batcher = Batcher(work, max_batch=1, wait_s=0.0)
        running, leaving, staying = (asyncio.create_task(batcher.submit(name)) for name in ("running", "leaving", "staying"))
        while not seen:
            await asyncio.sleep(0.001)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        go.set()
        await asyncio.gather(running, staying)

    asyncio.run(main())
    assert seen == ["running", "staying"]


def test_a_lone_item_waits_no_longer_than_told():
    async def main():
        loop, batcher = asyncio.get_running_loop(), Batcher(list, max_batch=8, wait_s=0.05)
        started = loop.time()
        await batcher.submit(1)
        return loop.time() - started

    assert 0.04 < asyncio.run(main()) < 2.0


def test_the_event_loop_runs_on_while_the_network_works():
    go = threading.Event()

    async def main():
        batcher = Batcher(lambda items: [go.wait(10) for _ in items], max_batch=1, wait_s=0.0)
        task = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.05)
        go.set()
        return await task

    assert asyncio.run(main()) is True
