"""Define the settings of packing, with one configuration per source of annotations; the subcommand names the source."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from yolor_ray.errors import ConfigError, check

HEALTH_CODES = (
    *("leak", "near_leak", "classes_differ", "duplicate_image", "near_duplicate"),
    *("class_without_boxes", "few_boxes", "class_imbalance", "label_without_images", "only_background", "only_crowds"),
    *("too_small_boxes", "tiny_boxes", "unusual_size", "unusual_shape", "annotated_twice", "class_conflict", "detection_limit"),
    *("few_images", "mixed_sizes", "extreme_aspect", "enlarged_images", "partly_annotated", "single_identities"),
)
"""Codes of the findings of a health report, beside those of faults; codes are stable."""
FAULT_CODES = (
    *(
        "ambiguous_image",
        "bad_annotation",
        "bad_class_id",
        "bad_encoding",
        "bad_image",
        "bad_keypoints",
        "bad_line",
        "bad_mask",
        "bad_name",
    ),
    *("bad_polygon", "bad_xml", "box_clipped", "box_from_mask", "box_outside_image", "broken_image", "duplicate_box", "duplicate_id"),
    *(
        "duplicate_image",
        "looks_like_fractions",
        "missing_annotation",
        "missing_box",
        "missing_class",
        "missing_image",
        "missing_kpt_shape",
    ),
    *("missing_mask", "name_mismatch", "not_a_number", "not_fully_annotated", "not_normalised", "oriented_box", "size_mismatch"),
    *("swapped_corners", "unknown_class", "unknown_image", "unknown_task", "zero_area_box"),
)
"""Codes of the faults that packing meets; codes are stable."""


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Output of packing, and strictness."""

    output: str
    """URL of the folder for the dataset; the folder must be empty, unfinished or hold exactly the same dataset."""
    strict: bool = False
    """Refuse a dataset that has any fault, instead of leaving the faulty annotations out."""
    shard_mb: float = 128.0
    """Encoded image bytes per shard, MB; one Ray task makes each shard."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.shard_mb > 0:
            raise ConfigError(f"shard_mb: found {self.shard_mb}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class PackLabelsConfig(PackConfig):
    """Labels of whole images."""

    image_labels: Literal["annotated", "present"] = "annotated"
    """Labels of whole images: those in the annotations, or the classes of the objects present on each image."""


@dataclass(frozen=True, kw_only=True)
class PackAutoConfig(PackLabelsConfig):
    """A folder with all splits, whose layout is recognised: data.yaml, COCO, PASCAL VOC or YOLO; writes OUTPUT/train, val and test."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """URL of the folder, or of one of several data.yaml files in it."""
    hold_out: float = 0.1
    """Share of the training images that become the validation set where the folder has none, by the hash of their bytes; 0: none."""
    layout: Literal["auto", "yolo", "coco", "voc"] = "auto"
    """Annotations to take where the folder has several kinds; auto: the only kind."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if not 0 <= self.hold_out < 1:
            raise ConfigError(f"hold_out: found {self.hold_out}, expected 0 or more and less than 1")


@dataclass(frozen=True, kw_only=True)
class PackAnnotatedConfig(PackLabelsConfig):
    """Annotated images."""

    images: str
    """URL of the folder of images."""


@dataclass(frozen=True, kw_only=True)
class PackVocConfig(PackAnnotatedConfig):
    """Images with PASCAL VOC XML annotations."""

    annotations: str
    """URL of the folder of XML files."""
    split_file: str = ""
    """URL of a list of images, one stem or file name per line; empty takes all."""
    classes: str = ""
    """Class names by label, separated by commas; empty collects and sorts the names in the XML files."""


@dataclass(frozen=True, kw_only=True)
class PackCocoConfig(PackAnnotatedConfig):
    """Images with COCO JSON annotations: boxes, masks, keypoints, identities, image labels."""

    annotations: str
    """URL of the JSON file."""
    image_classes: str = ""
    """Image-level class names by label, separated by commas; empty collects and sorts the `labels` of the JSON's images."""


@dataclass(frozen=True, kw_only=True)
class PackYoloConfig(PackAnnotatedConfig):
    """Images with YOLO text annotations; images without a text file are backgrounds."""

    annotations: str
    """URL of the folder of text files."""
    names: str
    """URL of the class names: one per line, or a .yaml file with `names:` and, for keypoints, `kpt_shape:`."""


@dataclass(frozen=True, kw_only=True)
class PackCropsConfig(PackAnnotatedConfig):
    """Images of one object each, with identity and camera in the file name: re-identification sets."""

    pattern: str
    """Regular expression to search in the path below `images` without suffix; named groups: identity, and optionally class and camera."""
    split_file: str = ""
    """URL of a list of images, one file name per line; empty takes all."""
    classes: str = ""
    """Class names by label, separated by commas; empty collects and sorts the names in the file names."""

    def __post_init__(self) -> None:
        """Check ranges and the pattern."""
        super().__post_init__()
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise ConfigError(f"pattern: found {self.pattern!r}, expected a regular expression: {error}") from error
        if "identity" not in groups or not set(groups) <= {"identity", "class", "camera"}:
            names = ", ".join(groups) or "none"
            raise ConfigError(f"pattern: found named groups {names}, expected (?P<identity>…), optionally (?P<class>…) and (?P<camera>…)")


@dataclass(frozen=True, kw_only=True)
class PackScenesConfig:
    """Scenes of the built-in dataset."""

    output: str
    """URL of the folder for the dataset; the folder must be empty, unfinished or hold exactly the same dataset."""
    count: int = 320
    """Images to make."""
    seed: int = 0
    """Seed of the dataset; another seed makes other scenes."""
    size_px: int = 320
    """Side of the square images."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.count < 1 or self.size_px < 32:
            raise ConfigError(f"count, size_px: found {self.count}, {self.size_px}, expected 1 or more and 32 or more")


@dataclass(frozen=True, kw_only=True)
class PackCheckConfig:
    """Health report of a packed dataset; every pack ends with one, and this job compares sets besides."""

    url: tyro.conf.Positional[str]
    """URL of the packed dataset."""
    against: str = ""
    """URLs of other packed datasets, separated by commas, whose images must not be in this one; such as the validation set."""
    image_px: int = 640
    """Side of the network input, pixels, at which sizes of boxes are judged."""
    fail_on: str = ""
    """Codes, separated by commas, such as leak,near_leak; exit status 1 if the report has a finding or fault of one of them."""
    output: str = ""
    """URL of the folder for health.html and health.json; empty takes the dataset's own folder."""

    def __post_init__(self) -> None:
        """Check the URL, the codes and the side."""
        check("," not in self.url, "url", self.url, "the URL of one packed dataset; check each of several, --against the others")
        check(self.image_px >= 32, "image_px", self.image_px, "32 or more")
        known = {*HEALTH_CODES, *FAULT_CODES}
        unknown = [code for code in self.fail_on_codes if code not in known]
        check(not unknown, "fail_on", ",".join(unknown), f"some of {', '.join(sorted(known))}")

    @property
    def fail_on_codes(self) -> tuple[str, ...]:
        """Return the codes of `fail_on`."""
        return tuple(code.strip() for code in self.fail_on.split(",") if code.strip())


AnyPackConfig = (
    Annotated[PackAutoConfig, tyro.conf.subcommand("auto")]
    | Annotated[PackVocConfig, tyro.conf.subcommand("voc")]
    | Annotated[PackCocoConfig, tyro.conf.subcommand("coco")]
    | Annotated[PackYoloConfig, tyro.conf.subcommand("yolo")]
    | Annotated[PackCropsConfig, tyro.conf.subcommand("crops")]
    | Annotated[PackScenesConfig, tyro.conf.subcommand("scenes")]
    | Annotated[PackCheckConfig, tyro.conf.subcommand("check")]
)
