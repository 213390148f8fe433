"""Golden forward passes of the published networks: the same weights must give the same numbers, whatever the names.

Oracle: `parity/` in the shared data, made by running the published code (its README has the rule that makes the weights).
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from yolor_ray import presets
from yolor_ray.model.layers import Conv, CspBlock, DownC, NeckBlock, SppCsp
from yolor_ray.model.network import Yolor

PAPER_P6 = replace(presets.P6, joint_norm=True, norm_eps=1e-3)
NARROW = {"stem_width": 8, "widths": (16, 32, 48, 64, 80)}
NETWORKS = {
    "yolor_csp": presets.CSP,
    "yolor_p6": presets.P6,
    "main_p6_narrow": replace(presets.P6, **NARROW),
    "paper_p6": PAPER_P6,
    "paper_p6_narrow": replace(PAPER_P6, **NARROW),
    "paper_e6": presets.E6,
}
LARGEST_DEVIATION = 0.01
"""Share of the mean; a wrong batch norm epsilon gives 0.5 and more, pools in a wrong order 1.5 and more."""
ANCHORS = {
    3: (12, 16, 19, 36, 40, 28, 36, 75, 76, 55, 72, 146, 142, 110, 192, 243, 459, 401),
    4: (19, 27, 44, 40, 38, 94, 96, 68, 86, 152, 180, 137, 140, 301, 303, 264, 238, 542, 436, 615, 739, 380, 925, 792),
}


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


def in_published_order(network: Yolor, *, paper: bool) -> Iterator[nn.Module]:
    """Yield the network's convolutions (and joint norms) in the order in which that branch lists them."""
    block_order = paper_block if paper else main_block
    yield from (m for m in network.backbone.stem.modules() if isinstance(m, Conv))
    for down, block in network.backbone.stages:
        yield from down_convolutions(down)
        yield from block_order(block)
    neck, levels = network.neck, network.head.levels
    yield from block_order(neck.spp)
    for reduce, lateral, block in reversed(list(zip(neck.reduce, neck.lateral, neck.top_down, strict=True))):
        yield from (reduce, lateral)
        yield from block_order(block)
    heads = [level.conv for level in levels]
    if paper:
        yield heads[0]
    for index, (down, block) in enumerate(zip(neck.down, neck.bottom_up, strict=True)):
        yield from down_convolutions(down)
        yield from block_order(block)
        if paper:
            yield heads[index + 1]
    if paper:
        yield from (level.predict for level in levels)
        yield from (level.align for level in levels)
        yield from (level.refine for level in levels)
    else:
        yield from (level.align for level in levels)
        yield from (level.refine for level in levels)
        yield from (module for level in levels for module in (level.conv, level.predict))


def down_convolutions(down: nn.Module) -> Iterator[nn.Module]:
    yield from (*down.conv, down.pool[1]) if isinstance(down, DownC) else (down,)


def bottlenecks(block: nn.Module) -> Iterator[nn.Module]:
    yield from (conv for bottleneck in block.bottlenecks for conv in (bottleneck.squeeze, bottleneck.expand))


def main_block(block: nn.Module) -> Iterator[nn.Module]:
    """Follow the sections of the main branch: the side path stands first in the backbone and the pyramid pooling, second in the neck."""
    if isinstance(block, CspBlock):
        yield from (block.merge.side, block.first, *bottlenecks(block))
        if isinstance(block.last, Conv):
            yield block.last
    elif isinstance(block, SppCsp):
        yield from (block.merge.side, *block.before, *block.after)
    elif isinstance(block, NeckBlock):
        yield from (block.first, block.merge.side, *bottlenecks(block))
    yield block.merge.out


def paper_block(block: nn.Module) -> Iterator[nn.Module]:
    """Follow the attributes of the paper branch's blocks: cv1, cv2, …, the joint norm, then the bottlenecks."""
    joint = block.merge.joint[0]
    if isinstance(block, SppCsp):
        yield from (block.before[0], block.merge.side, *block.before[1:], *block.after, joint, block.merge.out)
    else:
        yield from (block.first, block.merge.side, block.merge.out, joint, *bottlenecks(block))


def own_names(network: Yolor, *, paper: bool) -> Iterator[str]:
    """Yield the names of our tensors in the published order."""
    names = {module: name for name, module in network.named_modules()}
    norm = ("weight", "bias", "running_mean", "running_var")
    for module in in_published_order(network, paper=paper):
        name = names[module]
        if isinstance(module, Conv):
            yield f"{name}.conv.weight"
            yield from (f"{name}.norm.{part}" for part in norm)
        elif isinstance(module, nn.BatchNorm2d):
            yield from (f"{name}.{part}" for part in norm)
        elif isinstance(module, nn.Conv2d):
            yield f"{name}.weight"
            if module.bias is not None:
                yield f"{name}.bias"
        else:
            yield f"{name}.z"


@pytest.fixture(params=NETWORKS)
def published(request: pytest.FixtureRequest, shared) -> tuple[Yolor, np.lib.npyio.NpzFile]:
    """Our network with the weights of a published one, and what that one answered."""
    folder, name = shared / "parity", request.param
    keys = json.loads((folder / f"{name}.keys.json").read_text())
    golden = np.load(folder / f"{name}.golden.npz")
    config, paper = NETWORKS[name], keys["branch"] == "paper"
    anchors = torch.tensor(ANCHORS[config.levels], dtype=torch.float32).view(config.levels, 3, 2)
    with torch.device("meta"):
        network = Yolor(config, golden["raw0"].shape[-1] - 5, anchors)
    shapes = {own: tensor.shape for own, tensor in network.state_dict().items()}
    tensors = {"head.anchors": anchors}
    for own, (key, value) in zip(own_names(network, paper=paper), published_weights(name, golden, keys), strict=True):
        assert value.numel() == shapes[own].numel(), f"{key} {tuple(value.shape)} does not fit {own} {tuple(shapes[own])}"
        tensors[own] = value.view(shapes[own])
    if not paper:
        pools = tensors["neck.spp.after.0.conv.weight"].chunk(4, dim=1)
        tensors["neck.spp.after.0.conv.weight"] = torch.cat(pools[::-1], dim=1)
    left = {name: torch.zeros((), dtype=torch.long) for name in shapes if name.endswith("num_batches_tracked")}
    network.load_state_dict(tensors | left, assign=True)
    return network.eval(), golden


def assert_close(found: torch.Tensor, expected: np.ndarray, what: str) -> None:
    """Compare means of deviations: these random weights amplify a rounding error 10,000 times, in single cells still more."""
    deviation = np.abs(found.numpy() - expected).mean() / np.abs(expected).mean()
    assert deviation < LARGEST_DEVIATION, f"{what}: mean deviation {deviation:.1e} of the mean"


@torch.inference_mode()
def test_our_network_answers_as_the_published_one(published):
    network, golden = published
    image = torch.from_numpy(np.random.default_rng(0).random((1, 3, 192, 192), dtype=np.float32))
    raw = network(image)
    assert len(raw) == sum(name.startswith("raw") for name in golden.files)
    for level, answer in enumerate(raw):
        assert_close(answer[0], golden[f"raw{level}"], f"raw predictions of level {level}")
    boxes, scores = network.head.decode(raw)
    assert_close(boxes[0], golden["decoded"][:, :4], "boxes")
    assert_close(scores[0], golden["decoded"][:, 4:5] * golden["decoded"][:, 5:], "scores")
