"""Store the embeddings of an evaluation, and map them to the plane for its page.

Legend: N objects with an identity, E numbers of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from yolor_ray.data.shards.dataset import Dataset, read_row_group
from yolor_ray.evaluate.retrieval import LocatedObjects
from yolor_ray.report.colours import colour

EMBEDDINGS_FILE = "embeddings.parquet"
WIDTH, HEIGHT, MARGIN, HEADER = 640, 440, 14, 34
"""Size of the map, its margin, and the height of the line with the name, in units of its drawing."""
MAX_OBJECTS = 1500
"""Most objects on a map; of more objects, those of some individuals are shown, evenly spread over all individuals."""


@dataclass(frozen=True)
class Dot:
    """An object on the map."""

    x: float
    y: float
    name: str


@dataclass(frozen=True)
class Individual:
    """The objects of an individual."""

    name: str
    colour: str
    dots: Sequence[Dot]


@dataclass(frozen=True)
class EmbeddingMap:
    """Embeddings in the plane of their first two principal components."""

    individuals: Sequence[Individual]
    height: float
    """Height of the drawing."""
    variance: float
    """Share of the variance of the embeddings that the plane has, 0 to 1."""
    all_individuals: int
    """Individuals with an embedding, also those that are not shown."""
    missed: int
    """Objects without a detection, which have no embedding."""
    width: float = WIDTH
    """Width of the drawing."""


def embeddings_parquet(located: LocatedObjects) -> bytes:
    """Return the table of the objects: image_id, category_id, identity, camera, and embedding, which is null without a detection."""
    objects = located.objects
    found = np.asarray(objects.embeddings.any(axis=1))
    rows = [row if is_found else None for row, is_found in zip(objects.embeddings.astype(np.float32), found, strict=True)]
    columns = {
        "image_id": pa.array(located.image_ids, pa.int64()),
        "category_id": pa.array(located.labels, pa.int64()),
        "identity": pa.array(objects.identities, pa.int64()),
        "camera": pa.array(objects.cameras, pa.int64()),
        "embedding": pa.array(rows, pa.list_(pa.float32())),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def embedding_map(data: bytes, dataset: Dataset) -> EmbeddingMap | None:
    """Return the map of a file of `embeddings_parquet`; None with fewer than two individuals, or where all embeddings are equal."""
    table = pq.ParquetFile(pa.BufferReader(data)).read()
    found = table.filter(table["embedding"].is_valid())
    identities = found["identity"].to_numpy()
    individuals = np.unique(identities)
    if len(individuals) < 2:
        return None
    points, variance = project(np.stack(found["embedding"].to_numpy(zero_copy_only=False)).astype(np.float64))
    if variance == 0:
        return None
    shown = _choose_individuals(individuals, identities)
    kept = np.isin(identities, shown)
    places, height = _fit(points[kept])
    found = found.filter(pa.array(kept))
    names = _object_names(found, dataset)
    by_individual = [
        Individual(
            f"individual {identity}, {len(rows)} {'object' if len(rows) == 1 else 'objects'}",
            colour(number),
            [Dot(float(places[row, 0]), float(places[row, 1]), names[row]) for row in rows],
        )
        for number, identity in enumerate(shown.tolist())
        if len(rows := np.flatnonzero(identities[kept] == identity))
    ]
    return EmbeddingMap(by_individual, height, variance, len(individuals), len(table) - len(kept))


def project(embeddings: np.ndarray) -> tuple[np.ndarray, float]:
    """Return embeddings (N, E) as points (N, 2) on their first two principal components, and the share of the variance on these.

    The sign of a component makes its largest weight positive, so that equal embeddings have equal maps.
    """
    centred = embeddings - embeddings.mean(axis=0)
    variances, components = np.linalg.eigh(centred.T @ centred)
    plane = components[:, -2:][:, ::-1]
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), np.arange(plane.shape[1])])
    total = float(variances.clip(0).sum())
    # Embeddings have length 1, so that a smaller sum is rounding.
    share = float(variances[-2:].sum()) / total if total > 1e-9 * len(embeddings) else 0.0
    return centred @ plane, share


def _choose_individuals(individuals: np.ndarray, identities: np.ndarray) -> np.ndarray:
    share = min(MAX_OBJECTS / len(identities), 1.0)
    count = max(int(len(individuals) * share), 2)
    return individuals[np.linspace(0, len(individuals) - 1, count).round().astype(int)]


def _fit(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Return places in the drawing, and its height; both axes have the same scale, because distances mean something."""
    low, sides = points.min(axis=0), np.ptp(points, axis=0)
    scale = min((WIDTH - 2 * MARGIN) / max(sides[0], 1e-9), (HEIGHT - 2 * MARGIN) / max(sides[1], 1e-9))
    offset = (WIDTH - sides[0] * scale) / 2, HEADER + MARGIN
    return (points - low) * scale + offset, float(sides[1] * scale + HEADER + 2 * MARGIN)


def _object_names(table: pa.Table, dataset: Dataset) -> list[str]:
    """Return class and image of each object."""
    images = [name for group in dataset.row_groups for name in read_row_group(dataset, group, ["name"])["name"].to_pylist()]
    labels, image_ids = table["category_id"].to_pylist(), table["image_id"].to_pylist()
    return [f"{dataset.classes[label]}, {images[image_id]}" for label, image_id in zip(labels, image_ids, strict=True)]
