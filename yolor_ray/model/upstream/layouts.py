"""Order of a network's modules in upstream files, and the names of their tensors in our network.

Layouts: `main` is the main branch, whose files follow the sections of a darknet configuration. `paper` is the paper branch,
whose files follow the attributes of its modules. `interleaved` is darknet's own YOLOv4-CSP: as `main`, but the head of each level
follows the level's part of the neck. The orders are facts of the released code, checked by golden forward passes.
"""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

from yolor_ray.model.heads.prediction_level import PredictionLevel
from yolor_ray.model.implicit import Implicit
from yolor_ray.model.layers import Conv, CspBlock, DownC, NeckBlock, SppCsp
from yolor_ray.model.network import Yolor

Layout = Literal["main", "paper", "interleaved"]

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
POOLED_CONV = "neck.spp.after.0.conv.weight"
"""The convolution after the pooling pyramid. The input blocks of this convolution are pooled over (13, 9, 5, 1) cells in `main`, and over
(1, 5, 9, 13) cells in `paper` and in our network."""


def ordered_tensor_names(network: Yolor, layout: Layout) -> Iterator[str]:
    """Yield the names of our tensors in the order of an upstream file, without batch counters and anchors."""
    names = {module: name for name, module in network.named_modules()}
    for module in ordered_modules(network, layout):
        yield from (f"{names[module]}.{tensor}" for tensor in _module_tensors(module))


def _module_tensors(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, Conv):
        return ("conv.weight", *(f"norm.{tensor}" for tensor in NORM_TENSORS))
    if isinstance(module, nn.BatchNorm2d):
        return NORM_TENSORS
    if isinstance(module, Implicit):
        return ("z",)
    assert isinstance(module, nn.Conv2d)
    return ("weight",) if module.bias is None else ("weight", "bias")


def ordered_modules(network: Yolor, layout: Layout) -> Iterator[nn.Module]:
    """Yield convolutions, joint norms and implicit vectors in the order of an upstream file."""
    for module in _walk_modules(network, layout):
        if not isinstance(module, nn.Identity):
            yield module


def _walk_modules(network: Yolor, layout: Layout) -> Iterator[nn.Module]:
    walk_block = _walk_paper_block if layout == "paper" else _walk_main_block
    for module in network.backbone.stem.children():
        yield from walk_block(module) if isinstance(module, CspBlock) else (m for m in module.modules() if isinstance(m, Conv))
    for down, block in (stage.children() for stage in network.backbone.stages):
        yield from _down_convolutions(down)
        yield from walk_block(block)
    neck, levels = network.neck, [level for level in network.head.branches[0] if isinstance(level, PredictionLevel)]
    yield from walk_block(neck.spp)
    for reduce, lateral, block in reversed(list(zip(neck.reduce, neck.lateral, neck.top_down, strict=True))):
        yield from (reduce, lateral)
        yield from walk_block(block)
    for index, level in enumerate(levels):
        if index:
            yield from _down_convolutions(neck.down[index - 1])
            yield from walk_block(neck.bottom_up[index - 1])
        if layout != "main":
            yield level.conv
        if layout == "interleaved":
            yield level.predict
    if layout == "paper":
        yield from (level.predict for level in levels)
    yield from (level.align for level in levels)
    yield from (level.refine for level in levels)
    if layout == "main":
        yield from (module for level in levels for module in (level.conv, level.predict))


def _down_convolutions(down: nn.Module) -> Iterator[nn.Module]:
    yield from (*down.conv, down.pool[1]) if isinstance(down, DownC) else (down,)


def _bottleneck_convolutions(block: CspBlock | NeckBlock) -> Iterator[nn.Module]:
    yield from (conv for bottleneck in block.bottlenecks for conv in bottleneck.children() if isinstance(conv, Conv))


def _walk_main_block(block: nn.Module) -> Iterator[nn.Module]:
    """Yield modules in the order of sections: the side path is first in the backbone and the pooling pyramid, second in the neck."""
    if isinstance(block, CspBlock):
        yield from (block.merge.side, block.first, *_bottleneck_convolutions(block), block.last)
    elif isinstance(block, SppCsp):
        yield from (block.merge.side, *block.before, *block.after)
    else:
        assert isinstance(block, NeckBlock)
        yield from (block.first, block.merge.side, *_bottleneck_convolutions(block))
    yield block.merge.out


def _walk_paper_block(block: nn.Module) -> Iterator[nn.Module]:
    """Yield modules in the order of attributes: cv1, cv2, …, the joint norm, then the bottlenecks."""
    assert isinstance(block, CspBlock | NeckBlock | SppCsp)
    joint_norm = next(block.merge.joint.children())
    if isinstance(block, SppCsp):
        yield from (block.before[0], block.merge.side, *list(block.before)[1:], *block.after, joint_norm, block.merge.out)
    else:
        last = (block.last,) if isinstance(block, CspBlock) else ()
        yield from (block.first, block.merge.side, *last, block.merge.out, joint_norm, *_bottleneck_convolutions(block))


def reverse_pool_order(weight: Tensor) -> Tensor:
    """Return the weights of `POOLED_CONV`, (O, 4C, kH, kW), with the four input blocks of C channels in reverse order."""
    return weight.unflatten(1, (4, -1)).flip(1).flatten(1, 2)
