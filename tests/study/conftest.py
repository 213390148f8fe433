"""Keep tests of the runtime apart from each other."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Give the log its level back: a trial makes its own process quiet, which here is everybody's."""
    log = logging.getLogger("yolor_ray")
    before = log.level
    yield
    log.setLevel(before)
