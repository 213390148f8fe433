"""Keep the output of a prediction: settings first, then a Parquet file and a progress file per part, and the manifest last.

A job that dies leaves no manifest. The same command again predicts the parts that are missing. `predict.json` holds the settings, so that
predictions of other weights or settings are never mixed.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from yolor_ray.config import PredictConfig
from yolor_ray.errors import ConfigError, DataError
from yolor_ray.io import manifest
from yolor_ray.io.storage import absolute, delete, exists, join, list_names, read_bytes, write_bytes
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.pack.annotations.faults import Fault, describe_faults
from yolor_ray.pack.annotations.image_folder import READ_THREADS
from yolor_ray.predict.sources import Part

FORMAT, VERSION = "yolor_ray.predictions", 1
SETTINGS_FILE, FAULTS_FILE = "predict.json", "faults.jsonl"
PROGRESS_DIR = "unfinished"
"""Folder of the progress files inside an unfinished output."""
PART_NAME = re.compile(r"part-(\d{5,})\.parquet")
FIXED_SETTINGS = ("confidence", "iou", "max_detections", "tile", "overlap", "every_s", "precision")
"""Settings that change predictions."""


@dataclass(frozen=True)
class PartResult:
    """Result of one part, which its Parquet file and its progress file hold."""

    index: int
    """Position of the part, from 0."""
    key: str
    """Hash of the settings and of the part's images."""
    images: int
    """Rows of the Parquet file."""
    detections: int
    bytes: int
    """Size of the Parquet file."""
    sha256: str
    """SHA-256 of the Parquet file."""
    faults: tuple[Fault, ...] = ()

    @property
    def name(self) -> str:
        """Name of the Parquet file."""
        return f"part-{self.index:05d}.parquet"


def settings_of(config: PredictConfig, info: WeightsInfo) -> dict[str, Any]:
    """Return the content of `predict.json` of an unfinished output: weights, images and settings, which fix every prediction."""
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "weights": {"name": info.name, "version": info.version, "classes": list(info.classes), "tasks": list(info.tasks)},
        "image_classes": list(info.image_classes),
        "keypoint_names": list(info.keypoint_names),
        "class_keypoints": {name: list(keypoints) for name, keypoints in info.class_keypoints.items()},
        "images_url": absolute(config.images),
        "classes": list(config.classes),
        **{name: getattr(config, name) for name in FIXED_SETTINGS},
    }


def part_keys(settings: Mapping[str, Any], parts: Sequence[Part]) -> list[str]:
    """Return the key of each part: equal keys mean equal predictions."""
    text = json.dumps(settings, sort_keys=True)
    return [hashlib.sha256(f"{text}\n{part!r}".encode()).hexdigest() for part in parts]


def lock_settings(output: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the settings to an empty output, and return the content of `predict.json`.

    Raises:
        ConfigError: the output has predictions with other settings.
        DataError: the output holds something else.

    """
    url = join(output, SETTINGS_FILE)
    if not exists(url):
        if others := list_names(output):
            raise DataError(f"{output}: found {', '.join(others[:3])}, expected an empty folder or unfinished predictions")
        write_bytes(url, json.dumps(settings, indent=1, ensure_ascii=False).encode())
        return dict(settings)
    try:
        content = dict(json.loads(read_bytes(url)))
    except (ValueError, TypeError) as error:
        raise DataError(f"{url}: found no JSON object, expected the settings of predictions: {error}") from error
    for name, value in settings.items():
        if content.get(name) != value:
            found = json.dumps(content.get(name), ensure_ascii=False)
            expected = f"expected {json.dumps(value, ensure_ascii=False)} as in this command; give the same settings, or another --output"
            raise ConfigError(f"{output}: found predictions with {name} = {found}, {expected}")
    return content


def write_result(output: str, result: PartResult) -> None:
    """Write the progress file of a part, whose Parquet file is written."""
    write_bytes(_progress_url(output, result.index), json.dumps(asdict(result)).encode())


def complete_results(content: Mapping[str, Any], output: str, keys: Sequence[str]) -> list[PartResult] | None:
    """Return the results of an output whose parts are all predicted, without faults; None where parts may be missing.

    Args:
        content: content of `predict.json`.
        output: URL of the output, for messages.
        keys: keys of the parts.

    Raises:
        DataError: the images have changed since.

    """
    if "parts" not in content:
        return None
    results = [PartResult(**part) for part in content["parts"]]
    if [result.key for result in results] != list(keys):
        found = f"found finished predictions of {sum(result.images for result in results)} images"
        raise DataError(f"{output}: {found}, expected those of {content['images_url']}, whose images have changed; take another output")
    return results


def read_results(output: str, keys: Sequence[str]) -> list[PartResult]:
    """Return the results of the parts that an unfinished job has predicted; parts whose images have changed are left out."""
    progress = join(output, PROGRESS_DIR)
    names = list_names(progress)
    with ThreadPoolExecutor(READ_THREADS) as readers:
        results = [_result_from_json(data) for data in readers.map(lambda name: read_bytes(join(progress, name)), names)]
    written = set(list_names(output))
    return [result for result in results if result.name in written and result.index < len(keys) and result.key == keys[result.index]]


def publish(
    output: str, content: Mapping[str, Any], results: Sequence[PartResult], faults: Sequence[Fault], files: Mapping[str, bytes]
) -> None:
    """Write further files, the faults, `predict.json` with the list of parts, and the manifest; delete what an unfinished job needed.

    Raises:
        DataError: no image could be predicted; the output is then empty again.

    """
    if not any(result.images for result in results):
        _clear(output)
        raise DataError(f"{output}: found no usable image, expected at least one; {describe_faults(faults)}")
    for name in list_names(output):
        if PART_NAME.fullmatch(name) and name not in {result.name for result in results}:
            delete(join(output, name))
    parts = [{name: value for name, value in asdict(result).items() if name != "faults"} for result in results]
    # With the list of parts, progress files are no longer needed; the faults must be there before.
    texts = {
        FAULTS_FILE: "".join(json.dumps(asdict(fault), ensure_ascii=False) + "\n" for fault in faults),
        SETTINGS_FILE: json.dumps({**content, "parts": parts}, indent=1, ensure_ascii=False),
    }
    earlier = manifest.read_manifest(output) if manifest.is_published(output) else {}
    earlier = {name: entry for name, entry in earlier.items() if exists(join(output, name))}
    entries = {result.name: manifest.FileEntry(result.bytes, result.sha256) for result in results}
    manifest.publish_with(output, earlier | entries, {**files, **{name: text.encode() for name, text in texts.items()}})
    delete(join(output, PROGRESS_DIR))


def read_faults(output: str) -> list[Fault]:
    """Return the faults of a finished output."""
    return [Fault(**json.loads(line)) for line in read_bytes(join(output, FAULTS_FILE)).splitlines()]


def _clear(output: str) -> None:
    """Delete the files of an unfinished output."""
    for name in list_names(output):
        if PART_NAME.fullmatch(name) or name == SETTINGS_FILE:
            delete(join(output, name))
    delete(join(output, PROGRESS_DIR))


def _progress_url(output: str, index: int) -> str:
    return join(output, PROGRESS_DIR, f"part-{index:05d}.json")


def _result_from_json(data: bytes) -> PartResult:
    content = json.loads(data)
    return PartResult(**{**content, "faults": tuple(Fault(**fault) for fault in content["faults"])})
