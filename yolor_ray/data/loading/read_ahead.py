"""Call a function on items ahead of the consumer of its results."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Yield the results of a function in order, while at most `ahead` further calls run or wait in the pool."""
    iterator = iter(items)
    running = deque(pool.submit(function, item) for item in itertools.islice(iterator, ahead))
    try:
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(function, item) for item in itertools.islice(iterator, 1))
            yield result
    finally:
        for future in running:
            future.cancel()
