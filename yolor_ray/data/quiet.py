"""Keep a library's warnings from leaking, from several threads at once."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# `catch_warnings` saves and restores a global list: two threads that overlap would restore each other's.
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore warnings inside the block; blocks of several threads wait for each other, so keep them short."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
