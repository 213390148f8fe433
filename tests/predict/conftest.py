import pytest

from colour_engine import choose_colours, draw, write_weights
from yolor_ray.config import PredictConfig
from yolor_ray.config.network import TASKS
from yolor_ray.io.storage import join, read_bytes
from yolor_ray.predict import predictor
from yolor_ray.predict.part_file import from_parquet


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def rich_weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("rich"), TASKS)


@pytest.fixture(autouse=True)
def colour_engine(monkeypatch):
    monkeypatch.setattr(predictor, "choose_engine", choose_colours)


@pytest.fixture
def photos(tmp_path):
    """A folder of five images, each with a red and a blue rectangle whose places depend on the number, two in a folder below."""
    for number in range(5):
        path = tmp_path / "photos" / ("" if number < 3 else "more") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw((200, 100), [("red", 10 + number, 20, 60, 70), ("blue", 100, 30 + number, 160, 90)]).save(path)
    return tmp_path / "photos"


@pytest.fixture
def settings(tmp_path, weights, photos):
    """Return a function that makes the configuration of a prediction in this process."""

    def make(**changes):
        urls = {"weights": weights, "images": str(photos), "output": str(tmp_path / "out")}
        return PredictConfig(**urls | changes)

    return make


@pytest.fixture
def rows():
    """Return a function that reads all rows of an output, by name of the image."""

    def read(url, parts=99):
        names = [f"part-{index:05d}.parquet" for index in range(parts)]
        found = [read_bytes(join(str(url), name)) for name in names if (url / name).exists()]
        return {row["name"]: row for data in found for row in from_parquet(data)}

    return read
