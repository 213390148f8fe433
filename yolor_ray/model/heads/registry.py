"""Task heads beside detection, by task name. A new task needs a file with its head and one entry in `HEADS`.

The constructor of a head takes the network's configuration and the `OutputCounts` of the dataset. `forward(features)` takes
the feature maps (B, C, H, W) of all levels, fine level first, and returns the raw tensors. `decode(raw, detect_head)`
takes the raw tensors and the detection head, which holds anchors and strides, and returns the outputs by name in float32.
The network calls `add_implicit` of every `PredictionLevel` in the head.
"""

from torch import nn

from yolor_ray.model.heads.classify import ClassifyHead
from yolor_ray.model.heads.embed import EmbedHead
from yolor_ray.model.heads.pose import PoseHead
from yolor_ray.model.heads.segment import SegmentHead

HEADS: dict[str, type[nn.Module]] = {"classify": ClassifyHead, "embed": EmbedHead, "segment": SegmentHead, "pose": PoseHead}
