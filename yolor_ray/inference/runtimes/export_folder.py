"""Read the folder that `yolor-ray export` writes as ONNX or OpenVINO, and check its graph against its metadata.

The engine gets verified bytes of files in the folder, and opens no file itself.
Legend: B images, S side of the square network input in pixels, P predictions, K classes, M image labels, E numbers of an embedding,
C prototypes, J keypoints.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from torch import Tensor

from yolor_ray.class_names import unusable_name
from yolor_ray.config.export import EXPORT_ENGINES
from yolor_ray.config.network import TASKS, Precision
from yolor_ray.errors import UserError, WeightsError, check
from yolor_ray.inference.runtimes.graph import INPUT, KIND, OUTPUTS, READER_PACKAGES, TASK_OUTPUTS, Graph, metadata_texts, require_packages
from yolor_ray.inference.runtimes.onnx_runtime import read_onnx
from yolor_ray.inference.runtimes.openvino_runtime import read_openvino
from yolor_ray.inference.runtimes.torch_runtime import Predictor
from yolor_ray.io import manifest, storage
from yolor_ray.io.weights_url import CONFIG_FILE, EXPORT_FILES
from yolor_ray.model.heads.embed import EMBEDDING
from yolor_ray.model.weights import WeightsInfo
from yolor_ray.model.weights_info import Checks, parse_info, read_config

Value = TypeVar("Value")
Outputs = dict[str, Tensor]
CONFIG_CHECKS: Checks = {
    "version": (lambda v: unusable_name([v]) is None, "text without control characters"),
    "stride": (lambda v: type(v) is int and v > 0, "a positive number of pixels"),
    "outputs": (lambda v: isinstance(v, str), "text"),
}
"""Checks of the keys of `config.json` beside those of the description."""
COMPARED = ("version", "classes", "image_classes", "keypoint_names", "class_keypoints", "image_px", "stride", "tasks")
"""Metadata that `config.json` and the graph file both have, and that must agree."""


@dataclass(frozen=True)
class Export:
    """Graph of a network for one engine, which runs it on the CPU."""

    url: str
    format: str
    """A key of EXPORT_ENGINES."""
    files: Mapping[str, bytes] = field(repr=False)
    """Verified files of the graph by name."""
    config: Mapping[str, Any]
    """Checked content of `config.json`."""

    @property
    def engine(self) -> str:
        """Return the name of the engine that runs this export."""
        return EXPORT_ENGINES[self.format]

    def to(self, device: torch.device | str) -> "Export":
        """Return this export; raises ConfigError for another device than the CPU."""
        kind = torch.device(device).type
        expected = f"cpu: {self.url} is an export as {self.format}, which computes on the CPU; leave out the flag for GPUs"
        check(kind == "cpu", "device", kind, expected)
        return self

    def check_image_px(self, image_px: int, name: str) -> None:
        """Raise ConfigError unless an input side, pixels, is a positive multiple of the coarsest stride; `name` is the dotted flag."""
        stride = self.config["stride"]
        check(image_px > 0 and image_px % stride == 0, name, image_px, f"a multiple of the coarsest stride, {stride}")


def load_export(url: str, format_name: str) -> tuple[Export, WeightsInfo]:
    """Return the export in a folder, verified but not opened by its engine, and the description of its network.

    Exports of version 0.2 have no tasks, which follow from their outputs. Older ones also have no thresholds.

    Raises:
        IntegrityError: a file is absent, or another one than the manifest says.
        WeightsError: `config.json` is not that of an export.
    """
    names = EXPORT_FILES[format_name]
    files = manifest.read_published(url, (CONFIG_FILE, *names))
    config_url = storage.join(url, CONFIG_FILE)
    config = read_config(config_url, files.pop(CONFIG_FILE), KIND, CONFIG_CHECKS)
    if config["image_px"] % config["stride"]:
        found = f"{config['image_px']} beside stride {config['stride']}"
        raise WeightsError(f"{config_url}: image_px: found {found}, expected a multiple of the stride")
    version = config["version"] or hashlib.sha256(files[names[0]]).hexdigest()[:12]
    info = parse_info(config, version=version, tasks=_tasks(config_url, config), fused=True)
    return Export(url, format_name, files, config), info


def _tasks(url: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    # The text of older exports begins each output with its name.
    stated = {part.partition(" ")[0] for part in config["outputs"].split("; ")}
    tasks = config.get("tasks", [task for task, outputs in TASK_OUTPUTS.items() if stated.issuperset(outputs)])
    if not isinstance(tasks, list) or not all(task in TASKS for task in tasks) or "detect" not in tasks or len(set(tasks)) < len(tasks):
        expected = f"detect, and each of {', '.join(TASKS[1:])} at most once"
        raise WeightsError(f"{url}: tasks: found {tasks!r:.200}, expected {expected}")
    return tuple(tasks)


def open_export(export: Export, info: WeightsInfo) -> Graph:
    """Return the graph of an export; its inputs, outputs and metadata are those of `config.json`.

    Raises:
        ConfigError: a package of the engine is absent.
        WeightsError: the graph is damaged, names files outside of the folder, or does not fit the metadata.
    """
    require_packages(export.url, READER_PACKAGES[export.format])
    graph = _in_engine(export, "open", lambda: _read_graph(export))
    _check_input(export, graph, info.image_px)
    expected = {name for task in info.tasks for name in TASK_OUTPUTS[task]}
    if graph.outputs != expected:
        found, wanted = (", ".join(sorted(names)) or "none" for names in (graph.outputs, expected))
        raise WeightsError(f"{export.url}: found the outputs {found} in the graph, expected {wanted}, as {CONFIG_FILE} says")
    texts = metadata_texts({name: export.config[name] for name in COMPARED if name in export.config})
    for name, text in texts.items():
        if graph.metadata.get(name, text) != text:
            found = f"{name} {text:.200} in {CONFIG_FILE} and {graph.metadata[name]:.200} in the graph"
            raise WeightsError(f"{export.url}: found {found}, expected the same")
    return graph


def compile_export(export: Export, info: WeightsInfo, graph: Graph, precision: Precision, pixels: Tensor) -> tuple[Predictor, Outputs]:
    """Return a predictor, and its outputs for images (B, 3, S, S).

    Raises:
        WeightsError: the graph cannot run, the shapes of its outputs are not those of the metadata, or an output is no number.
    """
    predict = _in_engine(export, "compile", lambda: graph.compile(precision, info.image_px))
    outputs = _in_engine(export, "run", lambda: predict(pixels))
    _check_outputs(export, info, outputs, pixels)
    return predict, outputs


def _check_outputs(export: Export, info: WeightsInfo, outputs: Outputs, pixels: Tensor) -> None:
    predictions, prototypes = (sum(outputs[name].shape[1:2]) if name in outputs else 0 for name in ("scores", "prototypes"))
    images, quarter = len(pixels), pixels.shape[-1] // 4
    shapes = {
        "boxes_xyxy": (images, predictions, 4),
        "scores": (images, predictions, len(info.classes)),
        "image_labels": (images, len(info.image_classes)),
        "embeddings": (images, predictions, EMBEDDING),
        "coefficients": (images, predictions, prototypes),
        "prototypes": (images, prototypes, quarter, quarter),
        "keypoints": (images, predictions, len(info.keypoint_names), 3),
    }
    for name, output in outputs.items():
        found = f"{export.url}: output {name}: found"
        if tuple(output.shape) != shapes[name]:
            expected = f"{shapes[name]}, {OUTPUTS[name].partition(' float32')[0]}, by the names in {CONFIG_FILE}"
            raise WeightsError(f"{found} the shape {tuple(output.shape)}, expected {expected}")
        if output.dtype != torch.float32 or not output.isfinite().all():
            not_finite = int((~output.isfinite()).sum())
            raise WeightsError(f"{found} {not_finite} values of {output.dtype} that are not finite, expected none of float32")


def _in_engine(export: Export, step: str, call: Callable[[], Value]) -> Value:
    """Return the result of a call of the engine, whose errors become WeightsError with the URL."""
    try:
        return call()
    except WeightsError as error:
        raise WeightsError(f"{export.url}: {error}") from error
    except UserError:
        raise
    except Exception as error:
        # The engines' own errors share no narrower base, and have several lines.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        found = f"a graph that {export.engine} cannot {step} ({reason:.400})"
        raise WeightsError(f"{export.url}: found {found}, expected a whole export") from error


def _read_graph(export: Export) -> Graph:
    if export.format == "onnx":
        return read_onnx(export.files, lambda path: _read_beside(export.url, path))
    return read_openvino(export.files)


def _read_beside(url: str, path: str) -> bytes:
    """Return the verified content of a further file of the export."""
    name = str(PurePosixPath(path))
    leaves = not url.startswith("s3://") and not Path(url, name).resolve().is_relative_to(Path(url).resolve())
    if leaves or name not in manifest.read_manifest(url):
        expected = f"a file inside of the folder that {manifest.MANIFEST} lists"
        raise WeightsError(f"found external data in {path!r:.200}, expected {expected}; nothing was read from there")
    return manifest.read_published(url, (name,))[name]


def _check_input(export: Export, graph: Graph, image_px: int) -> None:
    expected = (None, 3, image_px, image_px)
    shape = graph.inputs.get(INPUT, ())
    fits = len(shape) == len(expected) and all(a is None or a == b for a, b in zip(shape, expected, strict=True))
    if list(graph.inputs) != [INPUT] or not fits:
        found = ", ".join(f"{name} {_words(sides)}" for name, sides in graph.inputs.items()) or "no input"
        wanted = f"the input {INPUT} {_words(expected)}"
        raise WeightsError(f"{export.url}: found {found} in the graph, expected {wanted}, as {CONFIG_FILE} says")


def _words(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if side is None else str(side) for side in shape)})"
