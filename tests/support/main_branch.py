"""An independent implementation of the main branch's networks: a list of darknet sections, run in order.

Written from the facts of the released configurations (order and inputs of the sections). Names, order and forward pass therefore do
not come from the package under test.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

NORM = ("BatchNorm2d.bias", "BatchNorm2d.weight", "BatchNorm2d.running_mean", "BatchNorm2d.running_var")


@dataclass
class Sections:
    """Sections of a network: type, input sections and options of each; input -1 is the image."""

    activation: str
    outputs: int
    """Output channels of each prediction convolution."""
    sections: list = field(default_factory=list)

    def add(self, section_type: str, *sources: int, **options: object) -> int:
        """Append a section and return its index."""
        self.sections.append((section_type, sources, options))
        return len(self.sections) - 1

    def conv(self, source: int, filters: int, kernel: int = 1, stride: int = 1, norm: bool = True) -> int:
        return self.add("conv", source, filters=filters, kernel=kernel, stride=stride, norm=norm, act=self.activation)

    def residuals(self, x: int, depth: int, hidden: int, width: int) -> int:
        for _ in range(depth):
            x = self.add("shortcut", x, self.conv(self.conv(x, hidden), width, 3))
        return x

    def backbone(self, x: int, width: int, depth: int, last: bool) -> int:
        x = self.conv(x, width, 3, 2)
        side = self.conv(x, width // 2)
        y = self.residuals(self.conv(self.add("route", x), width // 2), depth, width // 2, width // 2)
        return self.conv(self.add("route", self.conv(y, width // 2) if last else y, side), width)

    def spp(self, x: int, width: int) -> int:
        side = self.conv(x, width)
        y = self.conv(self.conv(self.conv(self.add("route", x), width), width, 3), width)
        pools = []
        for kernel in (5, 9, 13):
            pools.append(self.add("maxpool", y, kernel=kernel))
            if kernel < 13:
                self.add("route", y)
        y = self.conv(self.conv(self.add("route", *pools[::-1], y), width), width, 3)
        return self.conv(self.add("route", y, side), width)

    def neck(self, x: int, width: int, depth: int) -> int:
        x = self.conv(x, width)
        side = self.conv(x, width)
        y = self.add("route", x)
        for _ in range(depth):
            y = self.conv(self.conv(y, width), width, 3)
        return self.conv(self.add("route", y, side), width)


def make_sections(
    classes: int,
    widths: tuple,
    depths: tuple,
    neck_depth: int,
    *,
    conv_stem: bool,
    implicit: bool = True,
    interleaved: bool = False,
    large: bool = False,
    anchors: int = 3,
):
    """Return the sections of a network and the indices of its head sections.

    The network is YOLOR-CSP with `conv_stem`, else YOLOR-P6. `interleaved` puts the heads between the neck's blocks, as in darknet's own
    YOLOv4-CSP. `large` turns CSP into YOLOv4-P6 and P7: the first stage is a CSP block too, and two stages precede the first level.
    """
    s = Sections(activation="mish" if large else "silu", outputs=anchors * (5 + classes))
    features = _backbone(s, widths, depths, conv_stem=conv_stem, large=large)
    count = len(features) - (2 if large else 1)
    half = [width // 2 for width in widths[-count:]]
    x = s.spp(features[-1], half[-1])
    pyramid = [x]
    for feature, width in reversed(list(zip(features[-count:-1], half[:-1], strict=True))):
        up = s.add("upsample", s.conv(x, width))
        x = s.neck(s.add("route", s.conv(s.add("route", feature), width), up), width, neck_depth)
        pyramid.insert(0, x)
    outputs, heads = [x], [_head(s, x, half[0])] if interleaved else []
    for width, coarse in zip(half[1:], pyramid[1:], strict=True):
        x = s.neck(s.add("route", s.conv(x, width, 3, 2), coarse), width, neck_depth)
        outputs.append(x)
        if interleaved:
            heads.append(_head(s, x, width))
    adds = [s.add("implicit", mean=0, size=2 * width) for width in half] if implicit else []
    muls = [s.add("implicit", mean=1, size=s.outputs) for width in half] if implicit else []
    if not interleaved:
        around = zip(adds, muls, strict=True) if implicit else [()] * count
        heads = [_head(s, x, width, *vectors) for x, width, vectors in zip(outputs, half, around, strict=True)]
    return s.sections, heads


def _backbone(s: Sections, widths: tuple, depths: tuple, *, conv_stem: bool, large: bool) -> list[int]:
    stages = list(zip(widths, depths, strict=True))
    if large:
        x = s.conv(-1, 8, 3)
    elif conv_stem:
        x = s.conv(s.conv(-1, 8, 3), widths[0], 3, 2)
        x = s.residuals(x, depths[0], widths[0] // 2, widths[0])
        stages = stages[1:]
    else:
        x = s.conv(s.add("reorg", -1), 8, 3)
    return [x := s.backbone(x, width, depth, last=conv_stem) for width, depth in stages]


def _head(s: Sections, x: int, width: int, *vectors: int) -> int:
    y = s.conv(s.add("route", x), 2 * width, 3)
    y = s.add("shift", y, vectors[0]) if vectors else y
    y = s.conv(y, s.outputs, norm=False)
    y = s.add("scale", y, vectors[1]) if vectors else y
    s.add("yolo", y)
    return y


class Darknet(nn.Module):
    """Network of darknet sections; its tensors have the names of the main branch."""

    def __init__(self, sections: list, heads: list[int]) -> None:
        super().__init__()
        self.sections, self.heads, channels = sections, heads, {-1: 3}
        self.module_list = nn.ModuleList()
        for index, (section_type, sources, options) in enumerate(sections):
            module = nn.Module()
            channels[index] = sum(channels[source] for source in sources) if section_type == "route" else channels.get((*sources, -1)[0], 0)
            if section_type == "conv":
                k, c = options["kernel"], options["filters"]
                module.Conv2d = nn.Conv2d(channels[sources[0]], c, k, options["stride"], k // 2, bias=not options["norm"])
                module.BatchNorm2d = nn.BatchNorm2d(c, eps=1e-4) if options["norm"] else None
                channels[index] = c
            elif section_type == "implicit":
                module.implicit = nn.Parameter(options["mean"] + torch.randn(1, options["size"], 1, 1) * 0.3)
            elif section_type == "reorg":
                channels[index] = 12
            self.module_list.append(module)
        randomize_norms(self)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        out = {-1: image}
        for index, (section_type, sources, options) in enumerate(self.sections):
            out[index] = self.run(self.module_list[index], section_type, [out[source] for source in sources], options)
        return [out[head] for head in self.heads]

    def run(self, module: nn.Module, section_type: str, x: list[torch.Tensor], options: dict) -> torch.Tensor:
        if section_type == "conv":
            y = module.Conv2d(x[0])
            return getattr(nn.functional, options["act"])(module.BatchNorm2d(y)) if module.BatchNorm2d else y
        operations = {
            "implicit": lambda: module.implicit,
            "reorg": lambda: reorg(x[0]),
            "shortcut": lambda: x[0] + x[1],
            "shift": lambda: x[0] + x[1],
            "scale": lambda: x[0] * x[1],
            "route": lambda: torch.cat(x, dim=1),
            "maxpool": lambda: nn.functional.max_pool2d(x[0], options["kernel"], 1, options["kernel"] // 2),
            "upsample": lambda: x[0].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3),
            "yolo": lambda: x[0],
        }
        return operations[section_type]()


def reorg(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=1)


def randomize_norms(network: nn.Module) -> None:
    """Draw statistics, scales and shifts of all batch norms at random."""
    for module in network.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.05, 0.2)


def darknet_bytes(network: Darknet, *, vectors: bool) -> bytes:
    """Return a `.weights` file, with implicit vectors like darknet's writer, or without like the main branch's writer."""
    chunks = [np.array([0, 2, 5], "<i4").tobytes(), np.array([12345], "<i8").tobytes()]
    for module in network.module_list:
        tensors = module.state_dict()
        names = [*NORM, "Conv2d.weight"] if NORM[0] in tensors else ["Conv2d.bias", "Conv2d.weight"]
        names = (["implicit"] if vectors else []) if "implicit" in tensors else names
        chunks += [tensors[name].numpy().astype("<f4").tobytes() for name in names if name in tensors]
    return b"".join(chunks)
