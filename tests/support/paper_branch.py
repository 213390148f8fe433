"""An independent implementation of the paper branch's P6 and S4: a list of modules, each with the outputs of earlier modules as inputs.

Written from the facts of the released modules (names and order of attributes, halves with a joint norm). A saved network pickles
modules whose classes have that branch's names, which no other program can import.
"""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from main_branch import randomize_norms, reorg

EPS = 1e-3


class Conv(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=EPS)

    def forward(self, x):
        return nn.functional.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, width: int, add: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(width, width), Conv(width, width, 3), add

    def forward(self, x):
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


def _joint_norm(block: nn.Module, main: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    return nn.functional.silu(block.bn(torch.cat((main, block.cv2(side)), dim=1)))


class BottleneckCSPF(nn.Module):
    def __init__(self, c_in: int, width: int, depth: int) -> None:
        super().__init__()
        half = width // 2
        self.cv1, self.cv2, self.cv4 = Conv(c_in, half), nn.Conv2d(c_in, half, 1, bias=False), Conv(width, width)
        self.bn = nn.BatchNorm2d(width, eps=EPS)
        self.m = nn.Sequential(*(Bottleneck(half, True) for _ in range(depth)))

    def forward(self, x):
        return self.cv4(_joint_norm(self, self.m(self.cv1(x)), x))


class BottleneckCSP(nn.Module):
    def __init__(self, c_in: int, width: int, depth: int) -> None:
        super().__init__()
        half = width // 2
        self.cv1, self.cv2 = Conv(c_in, half), nn.Conv2d(c_in, half, 1, bias=False)
        self.cv3, self.cv4 = nn.Conv2d(half, half, 1, bias=False), Conv(width, width)
        self.bn = nn.BatchNorm2d(width, eps=EPS)
        self.m = nn.Sequential(*(Bottleneck(half, True) for _ in range(depth)))

    def forward(self, x):
        return self.cv4(_joint_norm(self, self.cv3(self.m(self.cv1(x))), x))


class BottleneckCSP2(nn.Module):
    def __init__(self, c_in: int, width: int, depth: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = Conv(c_in, width), nn.Conv2d(width, width, 1, bias=False), Conv(2 * width, width)
        self.bn = nn.BatchNorm2d(2 * width, eps=EPS)
        self.m = nn.Sequential(*(Bottleneck(width, False) for _ in range(depth)))

    def forward(self, x):
        x = self.cv1(x)
        return self.cv3(_joint_norm(self, self.m(x), x))


class SPPCSP(nn.Module):
    def __init__(self, c_in: int, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = Conv(c_in, width), nn.Conv2d(c_in, width, 1, bias=False), Conv(width, width, 3)
        self.cv4, self.cv5, self.cv6 = Conv(width, width), Conv(4 * width, width), Conv(width, width, 3)
        self.bn = nn.BatchNorm2d(2 * width, eps=EPS)
        self.cv7 = Conv(2 * width, width)
        self.m = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))

    def forward(self, x):
        y = self.cv4(self.cv3(self.cv1(x)))
        y = self.cv6(self.cv5(torch.cat([y, *(pool(y) for pool in self.m)], dim=1)))
        return self.cv7(_joint_norm(self, y, x))


class ReOrg(nn.Module):
    def forward(self, x):
        return reorg(x)


class DWT(nn.Module):
    """Haar wavelets as a strided convolution with four patterns, halved, with the details centred on 0.5."""

    def forward(self, x):
        patterns = torch.tensor([[[1.0, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]) / 4
        coefficients = nn.functional.conv2d(x.flatten(0, 1).unsqueeze(1), patterns.unsqueeze(1), stride=2)
        coefficients = coefficients.view(len(x), -1, 4, *coefficients.shape[2:])
        return torch.cat((coefficients[:, :, 0], (coefficients[:, :, 1:] + 0.5).flatten(1, 2)), dim=1)


class Concat(nn.Module):
    def forward(self, *x):
        return torch.cat(x, dim=1)


class ImplicitA(nn.Module):
    def __init__(self, mean: float, size: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(mean + torch.randn(1, size, 1, 1) * 0.3)


class IDetect(nn.Module):
    def __init__(self, classes: int, widths: list[int], anchors: torch.Tensor) -> None:
        super().__init__()
        outputs = 3 * (5 + classes)
        strides = torch.tensor([8.0, 16, 32, 64][: len(widths)])
        self.register_buffer("anchors", anchors / strides.view(-1, 1, 1))
        self.register_buffer("anchor_grid", anchors.view(-1, 1, 3, 1, 1, 2).clone())
        self.m = nn.ModuleList(nn.Conv2d(width, outputs, 1) for width in widths)
        self.ia = nn.ModuleList(ImplicitA(0, width) for width in widths)
        self.im = nn.ModuleList(ImplicitA(1, outputs) for _ in widths)

    def forward(self, *x):
        return [self.im[i].implicit * self.m[i](y + self.ia[i].implicit) for i, y in enumerate(x)]


class Model(nn.Module):
    """P6, or S4 if `s4_stem` is given, with these backbone widths; `sources` holds the input modules of each module."""

    def __init__(
        self,
        classes: int,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        anchors: torch.Tensor,
        neck_depth: int = 3,
        s4_stem: type | None = None,
    ) -> None:
        super().__init__()
        self.model, self.sources = nn.Sequential(), []
        features = self._s4_backbone(widths, depths, s4_stem) if s4_stem else self._p6_backbone(widths, depths)
        widths, features = widths[-len(anchors) :], features[-len(anchors) :]
        half = [width // 2 for width in widths]
        x = self._add(SPPCSP(widths[-1], half[-1]), features[-1])
        pyramid = [x]
        for level in reversed(range(len(half) - 1)):
            up = self._add(nn.Upsample(scale_factor=2), self._add(Conv(half[level + 1], half[level]), x))
            lateral = self._add(Conv(widths[level], half[level]), features[level])
            x = self._add(BottleneckCSP2(2 * half[level], half[level], neck_depth), self._add(Concat(), lateral, up))
            pyramid.insert(0, x)
        heads = [self._add(Conv(half[0], 2 * half[0], 3), x)]
        for level in range(1, len(half)):
            down = self._add(Conv(half[level - 1], half[level], 3, 2), x)
            x = self._add(BottleneckCSP2(2 * half[level], half[level], neck_depth), self._add(Concat(), down, pyramid[level]))
            heads.append(self._add(Conv(half[level], 2 * half[level], 3), x))
        self._add(IDetect(classes, [2 * h for h in half], anchors), *heads)
        randomize_norms(self)

    def _p6_backbone(self, widths: tuple[int, ...], depths: tuple[int, ...]) -> list[int]:
        x, c_in, features = self._add(Conv(12, 8, 3), self._add(ReOrg(), -1)), 8, []
        for width, depth in zip(widths, depths, strict=True):
            x = self._add(BottleneckCSPF(width, width, depth), self._add(Conv(c_in, width, 3, 2), x))
            features, c_in = [*features, x], width
        return features

    def _s4_backbone(self, widths: tuple[int, ...], depths: tuple[int, ...], stem: type) -> list[int]:
        x = self._add(stem(), self._add(stem(), self._add(stem(), -1)))
        features = [self._add(BottleneckCSP(192, widths[0], depths[0]), x)]
        for width, c_in, depth in zip(widths[1:], widths, depths[1:], strict=False):
            features.append(self._add(BottleneckCSP(width, width, depth), self._add(Conv(c_in, width, 3, 2), features[-1])))
        return features

    def _add(self, module: nn.Module, *sources: int) -> int:
        """Append a module and return its index."""
        self.model.append(module)
        self.sources.append(sources)
        return len(self.sources) - 1

    def forward(self, image):
        out = {-1: image}
        for index, (module, sources) in enumerate(zip(self.model, self.sources, strict=True)):
            out[index] = module(*(out[source] for source in sources))
        return out[index]


@contextmanager
def upstream_class_names() -> Iterator[None]:
    """Pickle the classes above under the module names of the paper branch while the context is open."""
    modules = {"models": {}, "models.yolo": {IDetect, Model}}
    modules["models.common"] = {Conv, Bottleneck, BottleneckCSP, BottleneckCSPF, BottleneckCSP2, SPPCSP, ReOrg, DWT, Concat, ImplicitA}
    this_module = Model.__module__
    for name, classes in modules.items():
        sys.modules[name] = types.ModuleType(name)
        for cls in classes:
            setattr(sys.modules[name], cls.__name__, cls)
            cls.__module__ = name
    try:
        yield
    finally:
        for name, classes in modules.items():
            del sys.modules[name]
            for cls in classes:
                cls.__module__ = this_module
