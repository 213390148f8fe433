"""List the heads of the tasks beside detection: to add a task is to write its head's file and a line here.

A head takes the network's configuration and the counts of what the data names; `forward` takes the pyramid, fine level first,
and returns raw tensors; `decode` takes those and the detection head, and returns outputs by name.
"""

from torch import nn

from yolor_ray.model.heads.classify import ClassifyHead
from yolor_ray.model.heads.embed import EmbedHead
from yolor_ray.model.heads.pose import PoseHead
from yolor_ray.model.heads.segment import SegmentHead

HEADS: dict[str, type[nn.Module]] = {"classify": ClassifyHead, "embed": EmbedHead, "segment": SegmentHead, "pose": PoseHead}
