"""Golden forward passes of the published networks: imported weights must give the published numbers.

Oracle: `parity/` in the shared data, made by running the published code (its README has the rule that makes the weights).
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
from yolor_ray.model.upstream.family import published_anchors, title_of
from yolor_ray.model.upstream.importer import assemble, load_upstream
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
TIMES_ROUNDING = 3.0
"""By how much the published float32 numbers may be further from exact arithmetic (float64) than our own float32 numbers are.

These random weights amplify a rounding error 10,000 times, so how large it is depends on the processor and the number of threads:
up to 4e-2 of the standard deviation. What does not depend on them is that both round alike: the largest errors of the published
numbers are 0.5 to 1.6 times ours, the mean ones 0.8 to 1.6 times. A wrong batch norm epsilon makes it thousands of times.
"""


def published_weights(name: str, golden: np.lib.npyio.NpzFile, keys: dict) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each key of a published network with the tensor that the README's rule makes for it."""
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


def read(folder: Path, name: str) -> tuple[np.lib.npyio.NpzFile, dict]:
    return np.load(folder / f"{name}.golden.npz"), json.loads((folder / f"{name}.keys.json").read_text())


def imported(name: str, golden: np.lib.npyio.NpzFile, keys: dict) -> Yolor:
    """Return what the importer makes of a published network's tensors."""
    found = recognise(name, {key: tuple(shape) for key, shape in keys["keys"].items()})
    assert (title_of(found.config), found.classes, found.layout) == (*NETWORKS[name], keys["branch"])
    values = dict(published_weights(name, golden, keys))
    tensors = {own: values[key] for own, key in found.theirs.items()}
    assert len(tensors) == len(values)
    return assemble(found.config, found.classes, found.layout, published_anchors(found.config), tensors)


def assert_rounds_alike(found: torch.Tensor, exact: torch.Tensor, published: np.ndarray, what: str) -> None:
    ours, theirs = (np.abs(numbers.astype(np.float64) - exact.numpy()) for numbers in (found.numpy(), published))
    for kind, of in (("largest", np.max), ("mean", np.mean)):
        times = of(theirs) / of(ours)
        assert times < TIMES_ROUNDING, f"{what}: the {kind} error of the published numbers is {times:.1f} times ours"


def answers(network: Yolor, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a network answers for one image, by what it is."""
    raw = network(image)["detect"]
    boxes, scores = network.head.decode(raw)
    return {**{f"raw{level}": answer[0] for level, answer in enumerate(raw)}, "boxes": boxes[0], "scores": scores[0]}


@torch.inference_mode()
def assert_golden(network: Yolor, golden: np.lib.npyio.NpzFile) -> None:
    image = torch.from_numpy(np.random.default_rng(0).random((1, 3, 192, 192), dtype=np.float32))
    published = {name: golden[name] for name in golden.files if name.startswith("raw")}
    decoded = golden["decoded"]
    published |= {"boxes": decoded[:, :4], "scores": decoded[:, 4:5] * decoded[:, 5:]}
    found, exact = answers(network, image), answers(copy.deepcopy(network).double(), image.double())
    assert found.keys() == published.keys()
    for name, numbers in published.items():
        assert_rounds_alike(found[name], exact[name], numbers, name)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_imported_network_answers_as_the_published_one(name, shared):
    golden, keys = read(shared / "parity", name)
    assert_golden(imported(name, golden, keys), golden)


def test_a_real_file_of_the_main_branch_answers_as_the_published_network(shared):
    found = load_upstream(str(shared / "parity/main_p6_narrow.pt"))
    assert (found.title, found.layout, found.network.classes, found.image_px) == (NARROW, "main", 3, 1280)
    assert_golden(found.network, read(shared / "parity", "main_p6_narrow")[0])


def test_a_real_file_of_the_paper_branch_holds_the_published_numbers_in_half_precision(shared):
    """Its predictions are no measure: rounding weights to float16 moves those of this random network by whole deviations."""
    golden, keys = read(shared / "parity", "paper_p6_narrow")
    found = load_upstream(str(shared / "parity/paper_p6_narrow.pt"))
    assert (found.title, found.layout, found.network.classes) == (NARROW, "paper", 3)
    exact = imported("paper_p6_narrow", golden, keys).state_dict()
    for name, tensor in found.network.state_dict().items():
        halved = exact[name].half().float() if tensor.is_floating_point() else exact[name]
        assert torch.equal(tensor, halved), name
