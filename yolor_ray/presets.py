"""Name complete runs: what to type after `jobs/train.py`.

The published sizes are YOLOR's own (paper table A2 and the released configurations); `nano` and `small` are this
project's, for CPUs and edge devices.
"""

from dataclasses import replace

from yolor_ray.config import Augment, Data, Loss, Network, Optim, Run, Train

NANO = Network(stem="reorg", stem_width=16, widths=(32, 64, 128, 256), depths=(1, 2, 2, 1), neck_depth=1)
SMALL = Network(stem="reorg", stem_width=32, widths=(64, 128, 256, 512), depths=(2, 4, 4, 2), neck_depth=2)
CSP = Network(norm_eps=1e-4)
CSP_X = Network(stem_width=32, widths=(80, 160, 320, 640, 1280), depths=(1, 3, 10, 10, 5), neck_depth=3, spp_pairs=2, norm_eps=1e-4)
P6 = Network(stem="reorg", stem_width=64, widths=(128, 256, 384, 512, 640), depths=(3, 7, 7, 3, 3), block="cspf", neck_depth=3, levels=4, norm_eps=1e-4)
W6 = replace(P6, widths=(128, 256, 512, 768, 1024))
E6 = replace(P6, stem_width=80, widths=(160, 320, 640, 960, 1280), down="downc", joint_norm=True, norm_eps=1e-3)
D6 = replace(E6, depths=(3, 15, 15, 7, 7))
