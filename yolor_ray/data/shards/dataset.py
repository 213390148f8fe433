"""Keep a data set as Parquet shards with a `dataset.json` that lists them; what that file does not list does not count.

A shard's name holds a part number and the start of its content's hash, so a name never means two contents. Records are
numbered from 0 in the order of the shards; that number is the image id everywhere.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from yolor_ray.data.shards import shard_file
from yolor_ray.data.shards.arrow import SCHEMA, records, table
from yolor_ray.data.shards.records import Record
from yolor_ray.data.shards.relabel import LabelMapping, apply_mapping
from yolor_ray.data.shards.shard_file import Shard, describe_shard, shard_from_json
from yolor_ray.errors import DataError
from yolor_ray.io.filesystem import attempt, filesystem, mark_reachable
from yolor_ray.io.storage import exists, join, read_bytes, write_bytes

__all__ = ["SCHEMA", "Dataset", "RowGroup", "Shard", "dataset_digest", "open_dataset", "read_row_group", "records", "shard_bytes"]

FORMAT = "yolor_ray.dataset"
VERSION = 3
MANIFEST = "dataset.json"
CONTENT_KEY = "yolor_ray.content_sha256"
"""Under which a shard's footer holds the hash of its content."""
ROWS_PER_GROUP = 64
GROUP_BYTES = 32 * 2**20
"""Encoded image bytes after which a row group ends early, so that large photos still stream in small pieces."""


@dataclass(frozen=True)
class RowGroup:
    """The unit of reading: a run of neighbouring records."""

    shard: str
    """File name of the shard."""
    index: int
    """Position inside the shard."""
    first_record: int
    """Number of its first record in the data set."""
    rows: int
    """Records in it."""
    member: int = 0
    """Which data set of a union it belongs to."""


@dataclass(frozen=True)
class Dataset:
    """What `dataset.json` says."""

    url: str
    """Folder of the data set; of a union those of its members, separated by commas."""
    classes: tuple[str, ...]
    """Names of the object classes, by label."""
    image_classes: tuple[str, ...]
    """Names of the image-level classes, by label."""
    keypoint_names: tuple[str, ...]
    """Names of the J keypoints per object."""
    tasks: tuple[str, ...]
    """What can be learned from it: some of detect, classify, embed, segment, pose."""
    images: int
    """Records."""
    boxes: int
    """Objects, crowd regions included."""
    boxes_per_class: dict[str, int]
    """Objects by class name."""
    shards: tuple[Shard, ...]
    """The files, in order of the records."""
    digest: str
    """SHA-256 over the classes and the shards' hashes: equal digests are equal data sets."""
    faults: dict[str, int]
    """Faults met while packing, by code; `faults.jsonl` beside it lists them."""
    members: tuple["Dataset", ...] = ()
    """The data sets of a union, whose shards follow each other; empty for a single one."""

    @functools.cached_property
    def shards_by_name(self) -> dict[str, Shard]:
        """Return the files by their names; of a union ask the members, whose names may be the same."""
        return {shard.name: shard for shard in self.shards}

    @property
    def row_groups(self) -> tuple[RowGroup, ...]:
        """Every row group, in order of the records."""
        places = [
            (shard.name, index, rows, number)
            for number, member in enumerate(self.members or (self,))
            for shard in member.shards
            for index, rows in enumerate(shard.row_groups)
        ]
        starts = itertools.accumulate((rows for _, _, rows, _ in places), initial=0)
        return tuple(RowGroup(name, at, first, rows, member) for (name, at, rows, member), first in zip(places, starts, strict=False))

    def image_classes_of(self, member: int) -> np.ndarray:
        """Return (M,) bool: the image classes that images of this member are annotated with; of the others nothing is known."""
        known = (self.members or (self,))[member].image_classes
        return np.array([name in known for name in self.image_classes], np.bool_)

    def translation_of(self, member: int) -> LabelMapping:
        """Return how tables of this member are brought to the names of the union."""
        own = self.members[member]
        return LabelMapping(
            labels=_places(own.classes, self.classes),
            image_labels=_places(own.image_classes, self.image_classes),
            joints=_places(own.keypoint_names, self.keypoint_names),
            all_joints=len(self.keypoint_names),
            member=member,
        )


def _places(names: Sequence[str], among: Sequence[str]) -> np.ndarray:
    return np.array([among.index(name) for name in names], np.int64)


def dataset_digest(shards: Iterable[Shard], *names: Collection[str]) -> str:
    """Return the hex digest of a data set: over its shards' hashes and its lists of names."""
    content = [[shard.sha256 for shard in shards], *(list(group) for group in names)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def open_dataset(url: str) -> Dataset:
    """Return the data set in a folder.

    Raises:
        DataError: there is no `dataset.json`, or it is of another format or version.

    """
    place = join(url, MANIFEST)
    if not exists(place):
        raise DataError(f"{place}: not found; expected a data set that jobs/pack.py finished")
    try:
        content = json.loads(read_bytes(place))
        kind = content.get("format"), content.get("version")
        if kind != (FORMAT, VERSION):
            raise DataError(f"{place}: found format and version {kind}, expected {(FORMAT, VERSION)}; pack again, into another folder")
        return _dataset(url, content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{place}: found a damaged manifest ({type(error).__name__}: {error}), expected one by jobs/pack.py") from error


def _dataset(url: str, content: dict) -> Dataset:
    shards = tuple(map(shard_from_json, content["shards"]))
    lists = {name: tuple(content[name]) for name in ("classes", "image_classes", "keypoint_names", "tasks")}
    rest = {name: content[name] for name in ("images", "boxes", "boxes_per_class", "digest", "faults")}
    fields: dict[str, Any] = {**lists, **rest}
    dataset = Dataset(url=url, shards=shards, **fields)
    counted = sum(sum(shard.row_groups) for shard in shards)
    if counted != dataset.images:
        raise ValueError(f"{counted} rows in the shards, {dataset.images} images")
    return dataset


def write_dataset(dataset: Dataset) -> None:
    """Write `dataset.json`, which makes the shards count."""
    content = {"format": FORMAT, "version": VERSION, **asdict(dataset)}
    del content["url"], content["members"]
    write_bytes(join(dataset.url, MANIFEST), json.dumps(content, indent=1, ensure_ascii=False).encode())


def shard_bytes(records: Iterable[Record], part: int) -> tuple[pa.Buffer, Shard]:
    """Return the Parquet file of a run of records and its description.

    Images stay uncompressed, as they are encoded already; every page carries a checksum. The footer carries a hash of the content:
    columns of fixed width alone would give one and the same footer to shards that differ.
    """
    content = hashlib.sha256()
    sink = pa.BufferOutputStream()
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    with pq.ParquetWriter(sink, SCHEMA, **options) as writer:
        for group in _groups(records):
            rows = table(group)
            for piece in _content(rows):
                content.update(piece)
            writer.write_table(rows, row_group_size=len(group))
        writer.add_key_value_metadata({CONTENT_KEY: content.hexdigest()})
    data = sink.getvalue()
    return data, describe_shard(data, part)


def _content(rows: pa.Table) -> Iterator[pa.Buffer | bytes]:
    """Return all that a table holds, uncopied, with lengths in between so that nothing moves from a buffer to the next unseen."""
    for buffer in (buffer for column in rows.columns for chunk in column.chunks for buffer in chunk.buffers() if buffer is not None):
        yield buffer.size.to_bytes(8, "little")
        yield buffer


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    group: list[Record] = []
    size = 0
    for record in records:
        group.append(record)
        size += len(record.image)
        if len(group) == ROWS_PER_GROUP or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


@functools.lru_cache(maxsize=1024)
def _footer(url: str, shard: Shard) -> pq.FileMetaData:
    system, path = filesystem(url)
    with system.open_input_file(path) as file:
        return shard_file.read_footer(file, shard)


def read_row_group(dataset: Dataset, group: RowGroup, columns: list[str] | None = None) -> pa.Table:
    """Return one row group of a data set, or some of its columns; one of a union is told in the union's names.

    Raises:
        StorageError: the shard is absent, cut, damaged, overwritten or out of reach. A whole row group's bytes are verified by
            their SHA-256; of some columns the pages' checksums and, after them, the footer, which holds a hash of all content.
        DataError: the row group is not as long as `dataset.json` says.

    """
    if dataset.members:
        found = read_row_group(dataset.members[group.member], group, columns)
        return apply_mapping(found, dataset.translation_of(group.member))
    place = join(dataset.url, group.shard)
    where = f"{place}, row group {group.index}"
    shard = dataset.shards_by_name[group.shard]
    # Whoever has a Dataset has read its dataset.json there, if only in another process.
    mark_reachable(place)

    def read() -> pa.Table:
        system, path = filesystem(place)
        footer = _footer(place, shard)
        with system.open_input_file(path) as file:
            if columns is None:
                return shard_file.read_row_group(file, footer, group.index, shard)
            shard_file.check_size(file, shard)
            reader = pq.ParquetFile(file, metadata=footer, pre_buffer=True, page_checksum_verification=True)
            rows = reader.read_row_group(group.index, columns=columns, use_threads=False)
            # Afresh and last, as the object may have been overwritten since its footer was first read.
            shard_file.read_footer(file, shard)
            return rows

    found = attempt(where, "read", read)
    if found.num_rows != group.rows:
        raise DataError(f"{where}: found {found.num_rows} rows, expected {group.rows} as in {MANIFEST}; pack again")
    # The hash of the whole shard is no property of these rows.
    return found.replace_schema_metadata()
