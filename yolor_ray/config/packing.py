"""Define the knobs of packing, one configuration per source of annotations; the subcommand names the source."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from yolor_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Say where a data set goes and how strict to be."""

    output: str
    """URL of the folder for the data set; it must be empty, unfinished or hold the very same data set."""
    strict: bool = False
    """Refuse the whole data set when anything is wrong with it, instead of leaving the faulty parts out."""
    shard_mb: float = 128.0
    """Encoded image bytes per shard, MB; each shard is made by one Ray task."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.shard_mb > 0:
            raise ConfigError(f"shard_mb: found {self.shard_mb}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class PackVoc(Packing):
    """Pack images with PASCAL VOC XML annotations."""

    images: str
    """URL of the folder of images."""
    annotations: str
    """URL of the folder of XML files."""
    split_file: str = ""
    """URL of a list of images, one stem or file name per line; empty takes all."""
    classes: str = ""
    """Class names by label, separated by commas; empty collects and sorts those in the XML files."""


@dataclass(frozen=True, kw_only=True)
class PackCoco(Packing):
    """Pack images with COCO JSON annotations: boxes, masks, keypoints, identities, image labels."""

    images: str
    """URL of the folder of images."""
    annotations: str
    """URL of the JSON file."""
    image_classes: str = ""
    """Image-level class names by label, separated by commas; empty collects and sorts the `labels` of the JSON's images."""


@dataclass(frozen=True, kw_only=True)
class PackYolo(Packing):
    """Pack images with YOLO text annotations."""

    images: str
    """URL of the folder of images; images without a text file are backgrounds."""
    annotations: str
    """URL of the folder of text files."""
    names: str
    """URL of the class names: one per line, or a .yaml file with `names:`."""


@dataclass(frozen=True, kw_only=True)
class PackScenes(Packing):
    """Pack scenes of the built-in data set."""

    count: int = 320
    """Images to make."""
    seed: int = 0
    """Another seed makes another data set."""
    size_px: int = 320
    """Side of the square images."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.count < 1 or self.size_px < 32:
            raise ConfigError(f"count, size_px: found {self.count}, {self.size_px}, expected 1 or more and 32 or more")


Pack = (
    Annotated[PackVoc, tyro.conf.subcommand("voc")]
    | Annotated[PackCoco, tyro.conf.subcommand("coco")]
    | Annotated[PackYolo, tyro.conf.subcommand("yolo")]
    | Annotated[PackScenes, tyro.conf.subcommand("scenes")]
)
