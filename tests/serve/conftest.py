import pytest

from http_server import served
from red_engine import RedEngine


@pytest.fixture
def engine():
    return RedEngine()


@pytest.fixture
def serve(engine):
    return lambda engine=engine, **options: served(engine, **options)


@pytest.fixture(scope="module")
def client():
    """Client of a server for tests that do not change its state."""
    with served(RedEngine()) as client:
        yield client
