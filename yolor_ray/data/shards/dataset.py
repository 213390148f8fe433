"""Write and read a dataset: Parquet shards, and a `dataset.json` that lists them; files outside that list are ignored.

A shard's name holds its index and the start of its content's hash, so one name never stands for two contents. Records are
numbered from 0 in the order of the shards; a record's number is its image id everywhere.
"""

import functools
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa

from yolor_ray.class_names import complete_class_keypoints
from yolor_ray.data.shards import shard_file
from yolor_ray.data.shards.arrow import SCHEMA, to_records
from yolor_ray.data.shards.parquet_layout import Footer
from yolor_ray.data.shards.relabel import LabelMapping, apply_mapping
from yolor_ray.data.shards.row_groups import RowGroup, RowGroups
from yolor_ray.data.shards.shard_file import Shard, encode_shard, shard_from_json
from yolor_ray.data.shards.value_checks import check_names_and_counts, check_rows
from yolor_ray.errors import DataError
from yolor_ray.io.filesystem import call_with_retries, filesystem
from yolor_ray.io.storage import exists, join, read_bytes, write_bytes

__all__ = [
    "SCHEMA",
    "Dataset",
    "RowGroup",
    "RowGroups",
    "Shard",
    "dataset_digest",
    "encode_shard",
    "open_dataset",
    "read_row_group",
    "to_records",
]

FORMAT = "yolor_ray.dataset"
VERSION = 3
MANIFEST = "dataset.json"
HASH_KEY = "sha256"
"""Key of the manifest's hash of its other keys."""


@dataclass(frozen=True)
class Dataset:
    """The content of `dataset.json`, or a union of several datasets."""

    url: str
    """Folder of the dataset; for a union the folders of the members, separated by commas."""
    classes: tuple[str, ...]
    """Names of the object classes, by label."""
    image_classes: tuple[str, ...]
    """Names of the image-level classes, by label."""
    keypoint_names: tuple[str, ...]
    """Names of the J keypoints of all classes together."""
    tasks: tuple[str, ...]
    """Tasks that the dataset is annotated for: some of detect, classify, embed, segment, pose."""
    images: int
    """Number of records."""
    boxes: int
    """Number of objects, crowd regions included."""
    boxes_per_class: dict[str, int]
    """Number of objects by class name."""
    shards: tuple[Shard, ...]
    """Shard files, in the order of the records."""
    digest: str
    """SHA-256 over the classes and the shards' hashes: equal digests mean equal datasets."""
    faults: dict[str, int]
    """Number of faults met while packing, by code; `faults.jsonl` in the same folder lists the faults."""
    crowds: int | None = None
    """Number of objects that are crowd regions; None where `dataset.json` is older than the count."""
    hashes_sha256: str = ""
    """SHA-256 of the file of image hashes; empty for a dataset without one, as older versions packed it."""
    members: tuple["Dataset", ...] = ()
    """The datasets of a union, whose shards follow each other; empty for a single dataset."""
    class_keypoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the keypoints of each object class that has some; left out, every class has all `keypoint_names`."""

    def __post_init__(self) -> None:
        """Give every class all keypoints where `class_keypoints` is left out."""
        object.__setattr__(self, "class_keypoints", complete_class_keypoints(self.class_keypoints, self.classes, self.keypoint_names))

    @functools.cached_property
    def shards_by_name(self) -> dict[str, Shard]:
        """Shards by file name, for a single dataset; members of a union may have equal names."""
        return {shard.name: shard for shard in self.shards}

    @functools.cached_property
    def checked_columns(self) -> set[tuple[str, int, tuple[str, ...]]]:
        """Shard, row group and columns whose values this process has checked; hashes prove that later reads return the same."""
        return set()

    @functools.cached_property
    def row_groups(self) -> RowGroups:
        """All row groups, in the order of the records."""
        members = enumerate(self.members or (self,))
        return RowGroups((number, shard.name, shard.row_groups) for number, member in members for shard in member.shards)

    def __getstate__(self) -> dict[str, Any]:
        """Send the fields alone to another process, which computes the rest again."""
        return {name.name: getattr(self, name.name) for name in fields(self)}

    def with_shard_of(self, group: RowGroup) -> "Dataset":
        """Return the dataset with the shard of a row group alone, for a task that reads the group; counts stay those of the whole."""
        if not self.members:
            return replace(self, shards=(self.shards_by_name[group.shard],))
        empty = [replace(member, shards=()) for member in self.members]
        empty[group.member] = self.members[group.member].with_shard_of(group)
        return replace(self, shards=empty[group.member].shards, members=tuple(empty))

    def classes_of(self, member: int) -> np.ndarray:
        """Return (K,) bool: the object classes that a member is annotated with; objects of the other classes are unknown.

        A member without a class of its own shows background, so that its images have no object of any class.
        """
        annotated = (self.members or (self,))[member].classes or self.classes
        return np.array([name in annotated for name in self.classes], np.bool_)

    def image_classes_of(self, member: int) -> np.ndarray:
        """Return (M,) bool: the image classes that a member is annotated with; labels of the other classes are unknown."""
        annotated = (self.members or (self,))[member].image_classes
        return np.array([name in annotated for name in self.image_classes], np.bool_)

    def mapping_of(self, member: int) -> LabelMapping:
        """Return the mapping from the names of a member to those of this union."""
        source = self.members[member]
        return LabelMapping(
            labels=_indices(source.classes, self.classes),
            image_labels=_indices(source.image_classes, self.image_classes),
            keypoints=_indices(source.keypoint_names, self.keypoint_names),
            keypoint_count=len(self.keypoint_names),
            member=member,
        )


def _indices(names: Sequence[str], union: Sequence[str]) -> np.ndarray:
    return np.array([union.index(name) for name in names], np.int64)


def dataset_digest(shards: Iterable[Shard], *names: Collection[Any]) -> str:
    """Return the hex digest of a dataset, over its shards' hashes and its lists of names."""
    content = [[shard.sha256 for shard in shards], *(list(group) for group in names)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def open_dataset(url: str) -> Dataset:
    """Open the dataset in a folder.

    Raises:
        DataError: `dataset.json` is missing or damaged, or has another format or version.

    """
    manifest = join(url, MANIFEST)
    if not exists(manifest):
        raise DataError(f"{manifest}: not found; expected a dataset that jobs/pack.py finished")
    try:
        content = json.loads(read_bytes(manifest))
        version = content.get("format"), content.get("version")
        if version != (FORMAT, VERSION):
            expected = f"expected {(FORMAT, VERSION)}; pack again, into another folder"
            raise DataError(f"{manifest}: found format and version {version}, {expected}")
        return _dataset_from_json(url, content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{manifest}: found a damaged manifest ({type(error).__name__}: {error}), expected one by jobs/pack.py") from error


def _dataset_from_json(url: str, content: dict[str, Any]) -> Dataset:
    check_names_and_counts(content)
    shards = tuple(map(shard_from_json, content["shards"]))
    lists = {name: tuple(content[name]) for name in ("classes", "image_classes", "keypoint_names", "tasks")}
    values = {name: content[name] for name in ("images", "boxes", "boxes_per_class", "digest", "faults")}
    fields: dict[str, Any] = {**lists, **values}
    # Manifests of older versions have no keypoints by class: every class has all.
    class_keypoints = {name: tuple(keypoints) for name, keypoints in content.get("class_keypoints", {}).items()}
    later = {"crowds": content.get("crowds"), "hashes_sha256": content.get("hashes_sha256", "")}
    dataset = Dataset(url=url, shards=shards, **fields, **later, class_keypoints=class_keypoints)
    rows = sum(sum(shard.row_groups) for shard in shards)
    if rows != dataset.images:
        raise ValueError(f"{rows} rows in the shards, {dataset.images} images")
    # Manifests of version 0.2 have no hash of themselves.
    found = _content_sha256(content)
    if content.get(HASH_KEY, found) != found:
        raise ValueError(f"content with SHA-256 {found}, {content[HASH_KEY]} when it was packed")
    return dataset


def _content_sha256(content: dict[str, Any]) -> str:
    """Return the hex digest of a manifest's content without the digest itself."""
    hashed = {key: value for key, value in content.items() if key != HASH_KEY}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def write_dataset(dataset: Dataset) -> None:
    """Write `dataset.json`; only then do the shards belong to the dataset."""
    content = {"format": FORMAT, "version": VERSION, **asdict(dataset)}
    del content["url"], content["members"]
    content[HASH_KEY] = _content_sha256(content)
    write_bytes(join(dataset.url, MANIFEST), json.dumps(content, indent=1, ensure_ascii=False).encode())


@functools.lru_cache(maxsize=1024)
def _read_footer(url: str, shard: Shard) -> Footer:
    system, path = filesystem(url)
    with system.open_input_file(path) as file:
        return shard_file.read_footer(file, shard)


def read_row_group(dataset: Dataset, group: RowGroup, columns: list[str] | None = None) -> pa.Table:
    """Read one row group of a dataset, or some of its columns; a row group of a union is relabelled to the union's names.

    A whole row group is verified by its SHA-256. Some columns are verified by the checksums of their pages and, after them, by the
    footer, which holds a hash of all content.

    Raises:
        StorageError: the shard is missing, truncated, damaged, overwritten or unreachable.
        DataError: the row group has another number of rows than in `dataset.json`, pages that inflate, or impossible values.

    """
    if dataset.members:
        table = read_row_group(dataset.members[group.member], group, columns)
        return apply_mapping(table, dataset.mapping_of(group.member))
    url = join(dataset.url, group.shard)
    where = f"{url}, row group {group.index}"
    shard = dataset.shards_by_name[group.shard]

    def read() -> pa.Table:
        system, path = filesystem(url)
        footer = _read_footer(url, shard)
        with system.open_input_file(path) as file:
            if columns is None:
                return shard_file.read_row_group(file, footer, group.index, shard)
            rows = shard_file.read_columns(file, footer, group.index, shard, columns)
            # Read again and last, because the object may have been overwritten since its footer was first read.
            shard_file.verify_footer(file, shard)
            return rows

    try:
        table = call_with_retries(where, "read", read)
        if table.num_rows != group.rows:
            raise DataError(f"found {table.num_rows} rows, expected {group.rows} as in {MANIFEST}; pack again")
        if (content := (group.shard, group.index, tuple(table.column_names))) not in dataset.checked_columns:
            check_rows(table, dataset)
            dataset.checked_columns.add(content)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    # The metadata holds the hash of the whole shard, which is no property of these rows.
    return table.replace_schema_metadata()
