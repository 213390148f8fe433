"""The pixels in memory stay within the budget, whatever requests do, and every image gets its turn."""

import asyncio
import random

import pytest
from PIL import Image

from red_engine import RedEngine, encode_image, serve_settings
from yolor_ray.errors import ConfigError
from yolor_ray.serve import requests
from yolor_ray.serve.pixel_budget import PixelBudget


def test_images_wait_for_their_turn_and_none_is_passed_over():
    order = []

    async def use(budget, name, pixels, seconds):
        async with budget.hold(pixels):
            order.append(name)
            await asyncio.sleep(seconds)

    async def main():
        budget = PixelBudget(100)
        await asyncio.gather(use(budget, "a", 60, 0.02), use(budget, "large", 100, 0), use(budget, "small", 10, 0))

    asyncio.run(main())
    assert order == ["a", "large", "small"]


@pytest.mark.parametrize("seed", range(5))
def test_the_budget_is_kept_and_given_back_when_requests_are_cancelled(seed):
    chance, used, most = random.Random(seed), 0, 0

    async def use(budget):
        nonlocal used, most
        pixels = chance.randint(1, 100)
        async with budget.hold(pixels):
            used += pixels
            most = max(most, used)
            try:
                await asyncio.sleep(chance.random() / 200)
            finally:
                used -= pixels

    async def main():
        budget = PixelBudget(100)
        tasks = [asyncio.create_task(use(budget)) for _ in range(200)]
        for task in chance.sample(tasks, 80):
            await asyncio.sleep(0.0005)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(1), budget.hold(100):
            return True

    assert asyncio.run(main()) and most <= 100 and used == 0


def test_a_turn_that_comes_with_a_cancellation_is_passed_on():
    async def main():
        budget = PixelBudget(10)
        first = budget.hold(10)
        await first.__aenter__()
        waiting = asyncio.create_task(budget.hold(10).__aenter__())
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(1), budget.hold(10):
            return True

    assert asyncio.run(main())


def test_large_and_tiled_images_count_and_are_answered(serve, monkeypatch):
    held = []
    hold = PixelBudget.hold

    def record(self, pixels):
        held.append(pixels)
        return hold(self, pixels)

    monkeypatch.setattr(PixelBudget, "hold", record)
    monkeypatch.setattr(requests, "SMALL_PIXELS", 20_000)
    with serve(RedEngine(), max_megapixels=0.5, max_decoded_megapixels=0.5) as client:
        for body, query in (
            (encode_image(format="PNG"), ""),
            (encode_image(Image.new("RGB", (100, 100)), "PNG"), ""),
            (encode_image(), ""),
            (encode_image(), "?tile=100"),
        ):
            assert client.post(body, query=query).status_code == 200
    assert held == [24_000, 24_000, 24_000]


def test_the_budget_holds_the_largest_image():
    with pytest.raises(ConfigError, match=r"max_decoded_megapixels: found 5\.0, expected max_megapixels, 10, or more"):
        serve_settings(max_megapixels=10.0, max_decoded_megapixels=5.0)
