"""Say in which order published files list the parts of a network, and what those parts are called here.

`main` is the main branch, whose files follow the sections of a darknet configuration; `paper` is the paper branch, whose
files follow the attributes of its modules. Facts of the released code, checked by golden forward passes.
"""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

from yolor_ray.model.heads.prediction_level import PredictionLevel
from yolor_ray.model.implicit import Implicit
from yolor_ray.model.layers import Conv, CspBlock, DownC, NeckBlock, SppCsp
from yolor_ray.model.network import Yolor

Layout = Literal["main", "paper", "heads in line"]
"""`heads in line` is darknet's own YOLOv4-CSP: as `main`, but each level's head follows its part of the neck."""

NORM = ("weight", "bias", "running_mean", "running_var")
POOLED = "neck.spp.after.0.conv.weight"
"""The convolution whose input blocks are (13, 9, 5, 1) cell pools in `main` and the other way round in `paper` and here."""


def own_names(network: Yolor, layout: Layout) -> Iterator[str]:
    """Yield the names of our tensors in the order of a published file; counters of batches and anchors are left out."""
    names = {module: name for name, module in network.named_modules()}
    for module in in_published_order(network, layout):
        yield from (f"{names[module]}.{part}" for part in _parts(module))


def _parts(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, Conv):
        return ("conv.weight", *(f"norm.{part}" for part in NORM))
    if isinstance(module, nn.BatchNorm2d):
        return NORM
    if isinstance(module, Implicit):
        return ("z",)
    assert isinstance(module, nn.Conv2d)
    return ("weight",) if module.bias is None else ("weight", "bias")


def in_published_order(network: Yolor, layout: Layout) -> Iterator[nn.Module]:
    """Yield convolutions, joint norms and implicit vectors as a published file lists them."""
    for module in _ordered(network, layout):
        if not isinstance(module, nn.Identity):
            yield module


def _ordered(network: Yolor, layout: Layout) -> Iterator[nn.Module]:
    block_order = _paper_block if layout == "paper" else _main_block
    for part in network.backbone.stem.children():
        yield from block_order(part) if isinstance(part, CspBlock) else (m for m in part.modules() if isinstance(m, Conv))
    for down, block in (stage.children() for stage in network.backbone.stages):
        yield from _down_convolutions(down)
        yield from block_order(block)
    neck, levels = network.neck, [level for level in network.head.levels if isinstance(level, PredictionLevel)]
    yield from block_order(neck.spp)
    for reduce, lateral, block in reversed(list(zip(neck.reduce, neck.lateral, neck.top_down, strict=True))):
        yield from (reduce, lateral)
        yield from block_order(block)
    for index, level in enumerate(levels):
        if index:
            yield from _down_convolutions(neck.down[index - 1])
            yield from block_order(neck.bottom_up[index - 1])
        if layout != "main":
            yield level.conv
        if layout == "heads in line":
            yield level.predict
    if layout == "paper":
        yield from (level.predict for level in levels)
    yield from (level.align for level in levels)
    yield from (level.refine for level in levels)
    if layout == "main":
        yield from (module for level in levels for module in (level.conv, level.predict))


def _down_convolutions(down: nn.Module) -> Iterator[nn.Module]:
    yield from (*down.conv, down.pool[1]) if isinstance(down, DownC) else (down,)


def _bottlenecks(block: CspBlock | NeckBlock) -> Iterator[nn.Module]:
    yield from (conv for bottleneck in block.bottlenecks for conv in bottleneck.children() if isinstance(conv, Conv))


def _main_block(block: nn.Module) -> Iterator[nn.Module]:
    """Follow the sections: the side path stands first in the backbone and the pyramid pooling, second in the neck."""
    if isinstance(block, CspBlock):
        yield from (block.merge.side, block.first, *_bottlenecks(block), block.last)
    elif isinstance(block, SppCsp):
        yield from (block.merge.side, *block.before, *block.after)
    else:
        assert isinstance(block, NeckBlock)
        yield from (block.first, block.merge.side, *_bottlenecks(block))
    yield block.merge.out


def _paper_block(block: nn.Module) -> Iterator[nn.Module]:
    """Follow the attributes: cv1, cv2, …, the joint norm, then the bottlenecks."""
    assert isinstance(block, CspBlock | NeckBlock | SppCsp)
    joint = next(block.merge.joint.children())
    if isinstance(block, SppCsp):
        yield from (block.before[0], block.merge.side, *list(block.before)[1:], *block.after, joint, block.merge.out)
    else:
        last = (block.last,) if isinstance(block, CspBlock) else ()
        yield from (block.first, block.merge.side, *last, block.merge.out, joint, *_bottlenecks(block))


def pools_reversed(weight: Tensor) -> Tensor:
    """Return the weights of the convolution after the pooling pyramid (`POOLED`) with its four input blocks in the other order."""
    return weight.unflatten(1, (4, -1)).flip(1).flatten(1, 2)
