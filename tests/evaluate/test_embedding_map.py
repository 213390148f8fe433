"""The map of embeddings on the page of an evaluation, and the table that it is made from."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from yolor_ray.data.shards.dataset import Dataset, open_dataset
from yolor_ray.evaluate.page import embedding_map as maps
from yolor_ray.evaluate.page.embedding_map import HEADER, WIDTH, embedding_map, embeddings_parquet, project
from yolor_ray.evaluate.retrieval import IdentifiedObjects, LocatedObjects
from yolor_ray.pack.run import pack_scenes

IMAGES = 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    url = str(tmp_path_factory.mktemp("scenes"))
    pack_scenes(url, IMAGES, seed=4, size_px=96)
    return open_dataset(url)


def located(embeddings: np.ndarray, individuals: int = 3) -> LocatedObjects:
    numbers = np.arange(len(embeddings))
    return LocatedObjects(
        IdentifiedObjects(numbers % individuals + 10, np.full(len(numbers), -1), embeddings), numbers % IMAGES, numbers % 2
    )


def on_axes(objects: int, individuals: int = 3, size: int = 8) -> np.ndarray:
    """Return embeddings of length 1, those of an individual nearly on an axis of its own, with a longer spread on the first."""
    near = np.eye(size)[np.arange(objects) % individuals % size] + np.random.default_rng(0).normal(0, 0.02, (objects, size))
    return near / np.linalg.norm(near, axis=1, keepdims=True)


def test_the_table_has_an_embedding_of_each_found_object():
    embeddings = on_axes(6)
    embeddings[2] = 0
    table = pq.ParquetFile(pa.BufferReader(embeddings_parquet(located(embeddings)))).read().to_pydict()
    assert table["embedding"][2] is None and table["identity"] == [10, 11, 12] * 2
    np.testing.assert_allclose(np.array(table["embedding"][5]), embeddings[5], atol=1e-6)
    assert (table["image_id"], table["category_id"], table["camera"]) == ([0, 1, 2, 3, 0, 1], [0, 1] * 3, [-1] * 6)


def test_individuals_lie_apart_on_the_map_inside_of_the_drawing(dataset):
    drawn = embedding_map(embeddings_parquet(located(on_axes(30))), dataset)
    centres = [np.mean([(dot.x, dot.y) for dot in individual.dots], axis=0) for individual in drawn.individuals]
    spreads = [np.std([(dot.x, dot.y) for dot in individual.dots], axis=0).max() for individual in drawn.individuals]
    gaps = [np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(gaps) > 8 * max(spreads)
    assert [individual.name for individual in drawn.individuals] == [f"individual {number}, 10 objects" for number in (10, 11, 12)]
    assert len({individual.colour for individual in drawn.individuals}) == 3
    assert all(0 < dot.x < WIDTH and HEADER < dot.y < drawn.height for individual in drawn.individuals for dot in individual.dots)
    assert re.fullmatch(r"\w+, scene-4-000000\.jpg", drawn.individuals[0].dots[0].name)
    assert 0.9 < drawn.variance <= 1 and drawn.missed == 0


def test_the_plane_is_that_of_the_two_largest_variances():
    points = np.random.default_rng(1).normal(0, (1, 3, 9), (500, 3))
    plane, share = project(points)
    assert share == pytest.approx(90 / 91, abs=0.01)
    np.testing.assert_allclose(plane.std(axis=0), [9, 3], rtol=0.1)
    np.testing.assert_allclose(project(points)[0], plane)


def test_missed_objects_are_counted_and_have_no_dot(dataset):
    embeddings = on_axes(9)
    embeddings[:2] = 0
    drawn = embedding_map(embeddings_parquet(located(embeddings)), dataset)
    assert drawn.missed == 2 and sum(len(individual.dots) for individual in drawn.individuals) == 7


@pytest.mark.parametrize("embeddings", [np.zeros((0, 8)), np.zeros((5, 8)), on_axes(4, 1), np.tile(np.eye(8)[0], (6, 1))])
def test_without_two_individuals_apart_there_is_no_map(dataset, embeddings):
    individuals = 1 if len(embeddings) == 4 else 3
    assert embedding_map(embeddings_parquet(located(embeddings, individuals)), dataset) is None


def test_of_many_objects_whole_individuals_are_shown(dataset, monkeypatch):
    monkeypatch.setattr(maps, "MAX_OBJECTS", 20)
    drawn = embedding_map(embeddings_parquet(located(on_axes(100, 25), 25)), dataset)
    assert (len(drawn.individuals), drawn.all_individuals) == (5, 25)
    assert [len(individual.dots) for individual in drawn.individuals] == [4] * 5


def test_two_objects_on_a_line_have_a_map(dataset):
    drawn = embedding_map(embeddings_parquet(located(on_axes(2))), dataset)
    assert drawn.variance == pytest.approx(1) and np.isfinite([(dot.x, dot.y) for one in drawn.individuals for dot in one.dots]).all()
