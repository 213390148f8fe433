"""Bound the pixels that the images of all requests in work hold in memory."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PixelBudget:
    """Budget of pixels in decoding; images wait for their turn in the order in which they came."""

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, pixels: int) -> AsyncIterator[None]:
        """Hold pixels, at most those of the whole budget, inside the block; wait for them before."""
        await self._take(pixels)
        try:
            yield
        finally:
            self._free += pixels
            self._admit()

    async def _take(self, pixels: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The turn came together with the cancellation.
                self._free += pixels
            self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting:
            pixels, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
            elif pixels <= self._free:
                self._waiting.popleft()
                self._free -= pixels
                turn.set_result(None)
            else:
                return
