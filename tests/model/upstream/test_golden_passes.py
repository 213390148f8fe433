"""Golden forward passes of the upstream networks: imported weights must give the outputs of the released code.

Oracle: `parity/` in the shared data, made by running the released code (the README there states the rule that makes the weights).
"""

import copy
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from yolor_ray.model.network import Yolor
from yolor_ray.model.upstream.family import upstream_anchors, upstream_name
from yolor_ray.model.upstream.importer import build_network, load_upstream
from yolor_ray.model.upstream.recognise import recognise

NARROW = "YOLOR-P6 with other widths: stem 8, stages 16, 32, 48, 64, 80"
NETWORKS = {
    "yolor_csp": ("YOLOR-CSP", 80),
    "yolor_p6": ("YOLOR-P6", 80),
    "main_p6_narrow": (NARROW, 3),
    "paper_p6": ("YOLOR-P6", 80),
    "paper_p6_narrow": (NARROW, 3),
    "paper_e6": ("YOLOR-E6", 80),
}
MAX_ERROR_RATIO = 3.0
"""Maximum ratio of the upstream float32 error to our float32 error, both relative to exact arithmetic (float64).

The random weights amplify a rounding error 10,000 times, so the error depends on the processor and the number of threads. Measured: up
to 4e-2 of the standard deviation. The ratio of the errors does not depend on the machine. Measured: the largest upstream errors are 0.5 to
1.6 times ours, the mean errors 0.8 to 1.6 times. A wrong batch norm epsilon gives a ratio of thousands.
"""


def upstream_weights(name: str, golden: np.lib.npyio.NpzFile, keys: dict) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each key of an upstream network with its tensor by the rule of the README."""
    for key, shape in keys["keys"].items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        if key.endswith(("running_mean", "running_var")):
            value = golden[key]
        elif key.endswith(("num_batches_tracked", "anchors", "anchor_grid")):
            continue
        elif key.endswith("implicit"):
            value = 0.3 * rng.standard_normal(shape) + keys["implicit_mean"][key]
        elif len(shape) == 4:
            value = rng.standard_normal(shape)
            value *= np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
        elif key.endswith("bias"):
            value = 0.1 * rng.standard_normal(shape)
        else:
            value = rng.uniform(0.8, 1.2, shape)
        yield key, torch.from_numpy(np.asarray(value, np.float32))


def read_golden(folder: Path, name: str) -> tuple[np.lib.npyio.NpzFile, dict]:
    return np.load(folder / f"{name}.golden.npz"), json.loads((folder / f"{name}.keys.json").read_text())


def import_network(name: str, golden: np.lib.npyio.NpzFile, keys: dict) -> Yolor:
    """Return our network with the tensors of an upstream network."""
    recognised = recognise(name, {key: tuple(shape) for key, shape in keys["keys"].items()})
    assert (upstream_name(recognised.config), recognised.classes, recognised.layout) == (*NETWORKS[name], keys["branch"])
    values = dict(upstream_weights(name, golden, keys))
    tensors = {name: values[key] for name, key in recognised.upstream_tensors.items()}
    assert len(tensors) == len(values)
    return build_network(recognised.config, recognised.classes, recognised.layout, upstream_anchors(recognised.config), tensors)


def assert_similar_rounding(output: torch.Tensor, exact: torch.Tensor, upstream: np.ndarray, name: str) -> None:
    errors, upstream_errors = (np.abs(numbers.astype(np.float64) - exact.numpy()) for numbers in (output.numpy(), upstream))
    for statistic, reduce in (("largest", np.max), ("mean", np.mean)):
        ratio = reduce(upstream_errors) / reduce(errors)
        assert ratio < MAX_ERROR_RATIO, f"{name}: the {statistic} upstream error is {ratio:.1f} times ours"


def outputs_by_name(network: Yolor, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the raw and decoded outputs of a network for one image, by the names of the golden data."""
    raw = network(image)["detect"]
    boxes, scores = network.head.decode(raw)
    return {**{f"raw{level}": output[0] for level, output in enumerate(raw)}, "boxes": boxes[0], "scores": scores[0]}


@torch.inference_mode()
def assert_golden(network: Yolor, golden: np.lib.npyio.NpzFile) -> None:
    image = torch.from_numpy(np.random.default_rng(0).random((1, 3, 192, 192), dtype=np.float32))
    upstream = {name: golden[name] for name in golden.files if name.startswith("raw")}
    decoded = golden["decoded"]
    upstream |= {"boxes": decoded[:, :4], "scores": decoded[:, 4:5] * decoded[:, 5:]}
    outputs, exact = outputs_by_name(network, image), outputs_by_name(copy.deepcopy(network).double(), image.double())
    assert outputs.keys() == upstream.keys()
    for name, numbers in upstream.items():
        assert_similar_rounding(outputs[name], exact[name], numbers, name)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_imported_network_predicts_the_same_as_the_upstream_network(name, shared):
    golden, keys = read_golden(shared / "parity", name)
    assert_golden(import_network(name, golden, keys), golden)


def test_a_real_file_of_the_main_branch_predicts_the_same_as_the_upstream_network(shared):
    model = load_upstream(str(shared / "parity/main_p6_narrow.pt"))
    assert (model.name, model.layout, model.network.classes, model.image_px) == (NARROW, "main", 3, 1280)
    assert_golden(model.network, read_golden(shared / "parity", "main_p6_narrow")[0])


def test_a_real_file_of_the_paper_branch_holds_the_upstream_weights_in_half_precision(shared):
    """Weights are compared, because rounding to float16 moves predictions of this random network by whole standard deviations."""
    golden, keys = read_golden(shared / "parity", "paper_p6_narrow")
    model = load_upstream(str(shared / "parity/paper_p6_narrow.pt"))
    assert (model.name, model.layout, model.network.classes) == (NARROW, "paper", 3)
    exact = import_network("paper_p6_narrow", golden, keys).state_dict()
    for name, tensor in model.network.state_dict().items():
        halved = exact[name].half().float() if tensor.is_floating_point() else exact[name]
        assert torch.equal(tensor, halved), name
