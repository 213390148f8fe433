"""Golden forward passes of the published networks: imported weights must give the published numbers.

Oracle: `parity/` in the shared data, made by running the published code (its README has the rule that makes the weights).
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from yolor_ray.model.network import Yolor
from yolor_ray.model.published.family import published_anchors, title_of
from yolor_ray.model.published.read import assemble, load_published
from yolor_ray.model.published.recognise import recognise

NARROW = "YOLOR-P6 with other widths: stem 8, stages 16, 32, 48, 64, 80"
NETWORKS = {
    "yolor_csp": ("YOLOR-CSP", 80),
    "yolor_p6": ("YOLOR-P6", 80),
    "main_p6_narrow": (NARROW, 3),
    "paper_p6": ("YOLOR-P6", 80),
    "paper_p6_narrow": (NARROW, 3),
    "paper_e6": ("YOLOR-E6", 80),
}
SAME_ARITHMETIC = torch.cpu.get_capabilities().get("avx512_f", False)
"""Whether convolutions can round as on the machine that made the goldens, which they do with as many threads."""
THREADS = 2
LARGEST_RAW_ERROR, LARGEST_DECODED_ERROR = 1e-3, 5e-3
"""Of any number, as a share of the standard deviation of its level; measured with AVX-512: 5e-7 to 1.3e-4, and 9e-4 for boxes.

These random weights amplify a rounding error 10,000 times: with one thread the same networks deviate by up to 8e-3, with
other instructions by up to 4e-2, so where the arithmetic is another one only the mean is held to a bound.
"""
LARGEST_DEVIATION = 0.01
"""Share of the mean; a wrong batch norm epsilon gives 0.5 and more, pools in a wrong order 1.5 and more."""


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


@pytest.fixture(autouse=True)
def _as_many_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


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


def assert_close(found: torch.Tensor, expected: np.ndarray, what: str, largest_error: float) -> None:
    error = np.abs(found.numpy() - expected)
    deviation = error.mean() / np.abs(expected).mean()
    assert deviation < LARGEST_DEVIATION, f"{what}: mean deviation {deviation:.1e} of the mean"
    if SAME_ARITHMETIC:
        largest = error.max() / expected.std()
        assert largest < largest_error, f"{what}: largest error {largest:.1e} of the standard deviation"


@torch.inference_mode()
def assert_golden(network: Yolor, golden: np.lib.npyio.NpzFile) -> None:
    image = torch.from_numpy(np.random.default_rng(0).random((1, 3, 192, 192), dtype=np.float32))
    raw = network(image)["detect"]
    assert len(raw) == sum(name.startswith("raw") for name in golden.files)
    for level, answer in enumerate(raw):
        assert_close(answer[0], golden[f"raw{level}"], f"raw predictions of level {level}", LARGEST_RAW_ERROR)
    boxes, scores = network.head.decode(raw)
    assert_close(boxes[0], golden["decoded"][:, :4], "boxes", LARGEST_DECODED_ERROR)
    assert_close(scores[0], golden["decoded"][:, 4:5] * golden["decoded"][:, 5:], "scores", LARGEST_DECODED_ERROR)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_imported_network_answers_as_the_published_one(name, shared):
    golden, keys = read(shared / "parity", name)
    assert_golden(imported(name, golden, keys), golden)


def test_a_real_file_of_the_main_branch_answers_as_the_published_network(shared):
    found = load_published(str(shared / "parity/main_p6_narrow.pt"))
    assert (found.title, found.layout, found.network.classes, found.image_px) == (NARROW, "main", 3, 1280)
    assert_golden(found.network, read(shared / "parity", "main_p6_narrow")[0])


def test_a_real_file_of_the_paper_branch_holds_the_published_numbers_in_half_precision(shared):
    """Its predictions are no measure: rounding weights to float16 moves those of this random network by whole deviations."""
    golden, keys = read(shared / "parity", "paper_p6_narrow")
    found = load_published(str(shared / "parity/paper_p6_narrow.pt"))
    assert (found.title, found.layout, found.network.classes) == (NARROW, "paper", 3)
    exact = imported("paper_p6_narrow", golden, keys).state_dict()
    for name, tensor in found.network.state_dict().items():
        halved = exact[name].half().float() if tensor.is_floating_point() else exact[name]
        assert torch.equal(tensor, halved), name
