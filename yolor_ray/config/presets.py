"""Define the presets: complete runs by name.

The published sizes are those of YOLOR (paper table A2 and the released configurations). P6 and W6 were released as two
different networks each: in the layout of the main branch, and in the layout of the paper branch with `joint_norm`.
The YOLOv4 networks are YOLOR's baselines without implicit knowledge. Gains and augmentation are the published ones;
`--optim.recipe published` takes the published schedule, too. `nano` and `small` are networks of this project, for CPUs and edge devices.
"""

from dataclasses import replace

from yolor_ray.config import AugmentConfig, DataConfig, ImplicitConfig, LossConfig, NetworkConfig, OptimConfig, RunConfig, TrainConfig

NANO = NetworkConfig(
    stem="reorg", stem_width=16, widths=(32, 48, 96, 160), depths=(1, 2, 2, 1), neck_depth=1, head="free", distance_bins=16
)
SMALL = replace(NANO, stem_width=32, widths=(64, 128, 256, 448), depths=(1, 2, 3, 2))
CSP = NetworkConfig(norm_eps=1e-4)
CSP_X = replace(CSP, widths=(80, 160, 320, 640, 1280), depths=(1, 3, 10, 10, 5), neck_depth=3, spp_pairs=2)
PLAIN = ImplicitConfig(align="none", refine="none")
V4_CSP = replace(CSP, implicit=PLAIN)
V4_CSP_X = replace(CSP_X, implicit=PLAIN)
P6 = NetworkConfig(
    stem="reorg",
    stem_width=64,
    widths=(128, 256, 384, 512, 640),
    depths=(3, 7, 7, 3, 3),
    block="cspf",
    neck_depth=3,
    levels=4,
    norm_eps=1e-4,
)
W6 = replace(P6, widths=(128, 256, 512, 768, 1024))
V4_P6 = NetworkConfig(
    stem="csp",
    widths=(64, 128, 256, 512, 1024, 1024),
    depths=(1, 3, 15, 15, 7, 7),
    neck_depth=3,
    levels=4,
    anchors_per_level=4,
    norm_eps=1e-4,
    activation="mish",
    implicit=PLAIN,
)
V4_P7 = replace(V4_P6, stem_width=40, widths=(80, 160, 320, 640, 1280, 1280, 1280), depths=(1, 3, 15, 15, 7, 7, 7), levels=5)
S4_S2D = NetworkConfig(stem="s2d", widths=(128, 256, 512), depths=(3, 3, 1), joint_norm=True, neck_depth=1)
S4_DWT = replace(S4_S2D, stem="dwt")
P6_PAPER = replace(P6, joint_norm=True, norm_eps=1e-3)
W6_PAPER = replace(W6, joint_norm=True, norm_eps=1e-3)
E6 = replace(P6_PAPER, stem_width=80, widths=(160, 320, 640, 960, 1280), down="downc")
D6 = replace(E6, depths=(3, 15, 15, 7, 7))

AUGMENT_640 = AugmentConfig(scale=0.9)
AUGMENT_1280 = AugmentConfig(translate=0.5, scale=0.5)
LOSS_STRONG = LossConfig(cls=0.5, objectness=1.0)
"""Gains of the published runs at 1280 px, and of the small networks of the paper branch."""


def _at_1280_px(network: NetworkConfig) -> TrainConfig:
    """Make a run of a network with four levels or more at 1280 px, with the published recipe."""
    return TrainConfig(network=network, data=DataConfig(image_px=1280), augment=AUGMENT_1280, loss=LOSS_STRONG, optim=OptimConfig(batch=64))


PRESETS = {
    "demo": TrainConfig(
        network=NANO,
        data=DataConfig(image_px=256),
        optim=OptimConfig(epochs=32, batch=8, nominal_batch=8),
        run=RunConfig(name="demo", validate_epochs=8),
    ),
    "demo-tasks": TrainConfig(
        network=replace(NANO, tasks=("detect", "classify", "embed", "segment", "pose")),
        data=DataConfig(image_px=256),
        optim=OptimConfig(epochs=32, batch=8, nominal_batch=8),
        run=RunConfig(name="demo-tasks", validate_epochs=8),
    ),
    "nano": TrainConfig(network=NANO, data=DataConfig(image_px=416), optim=OptimConfig(nominal_batch=16, pretrained="builtin")),
    "small": TrainConfig(network=SMALL, data=DataConfig(image_px=640)),
    "csp": TrainConfig(network=CSP, augment=AUGMENT_640),
    "csp-x": TrainConfig(network=CSP_X, augment=AUGMENT_640),
    "v4-csp": TrainConfig(network=V4_CSP, augment=AUGMENT_640),
    "v4-csp-x": TrainConfig(network=V4_CSP_X, augment=AUGMENT_640),
    "s4-s2d": TrainConfig(network=S4_S2D, loss=LOSS_STRONG),
    "s4-dwt": TrainConfig(network=S4_DWT, loss=LOSS_STRONG),
    "p6": _at_1280_px(P6),
    "w6": _at_1280_px(W6),
    "p6-paper": _at_1280_px(P6_PAPER),
    "w6-paper": _at_1280_px(W6_PAPER),
    "e6": _at_1280_px(E6),
    "d6": _at_1280_px(D6),
    "v4-p6": _at_1280_px(V4_P6),
    "v4-p7": replace(_at_1280_px(V4_P7), data=DataConfig(image_px=1536)),
}
"""Complete runs by name, the first argument of `yolor-ray train`."""

DESCRIPTIONS = {
    "demo": "nano network on built-in scenes; needs nothing, a few minutes on 2 CPU cores.",
    "demo-tasks": "the same network with all five tasks: boxes, image labels, identities, masks and keypoints of built-in scenes.",
    "nano": "1.0 M parameters, three levels, 416 px: CPUs and edge devices.",
    "small": "8.2 M parameters, three levels, 640 px: edge GPUs.",
    "csp": "YOLOR-CSP, 52.9 M parameters, three levels, 640 px.",
    "csp-x": "YOLOR-CSP-X, 99.8 M parameters, three levels, 640 px.",
    "v4-csp": "YOLOv4-CSP, the baseline without implicit knowledge, 52.9 M parameters, three levels, 640 px.",
    "v4-csp-x": "YOLOv4-CSP-X, without implicit knowledge, 99.8 M parameters, three levels, 640 px.",
    "s4-s2d": "YOLOR-S4, space to depth instead of a stem, 9.2 M parameters, three levels, 640 px.",
    "s4-dwt": "YOLOR-S4, wavelets instead of a stem, 9.2 M parameters, three levels, 640 px.",
    "p6": "YOLOR-P6, 37.3 M parameters, four levels, 1280 px.",
    "w6": "YOLOR-W6, 79.9 M parameters, four levels, 1280 px.",
    "p6-paper": "YOLOR-P6 in the paper branch's layout, 37.3 M parameters, four levels, 1280 px.",
    "w6-paper": "YOLOR-W6 in the paper branch's layout, 79.9 M parameters, four levels, 1280 px.",
    "e6": "YOLOR-E6, 115.9 M parameters, four levels, 1280 px.",
    "d6": "YOLOR-D6, 151.8 M parameters, four levels, 1280 px.",
    "v4-p6": "YOLOv4-P6, without implicit knowledge, 127.6 M parameters, four levels, 1280 px.",
    "v4-p7": "YOLOv4-P7, without implicit knowledge, 287.6 M parameters, five levels, 1536 px.",
}
