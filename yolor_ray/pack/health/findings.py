"""Define the findings of a health report: stable codes, severities, and the advice for each code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

MAX_EXAMPLES = 1000
"""Most examples of a finding that health.json lists."""


@dataclass(frozen=True)
class Example:
    """An image, an object or a pair of images that shows a finding."""

    record: int
    """Number of the image in its dataset; -1 where the dataset does not have the image."""
    image: str
    """Name of the image, or location of a fault."""
    text: str = ""
    """What is to be seen."""
    boxes_xyxy: tuple[tuple[float, float, float, float], ...] = ()
    """Boxes that the finding is about, pixels of the displayed image."""
    whole: bool = False
    """Show the whole image, not the surroundings of the boxes."""
    other_member: int = -1
    """Number of the dataset of the second image: 0 is the checked dataset, 1 the first of `against`; -1 without a second image."""
    other_record: int = -1
    """Number of the second image in its dataset."""
    other_image: str = ""
    """Name of the second image."""


@dataclass(frozen=True)
class Finding:
    """One kind of trouble, or a property to know."""

    code: str
    """Stable snake_case name."""
    severity: Severity
    count: int
    """Number of images, objects or classes that are concerned."""
    message: str
    """What was found, in one sentence."""
    advice: str
    """What to do, in one sentence."""
    examples: tuple[Example, ...] = ()


ADVICE: Mapping[str, tuple[Severity, str]] = MappingProxyType(
    {
        "leak": ("error", "Remove the images from one of the sets: metrics on images that a network was trained on say nothing."),
        "near_leak": (
            "warning",
            "Look at the pairs. Keep the copies of a photo, and the frames of a video, in one set, or metrics will be too good.",
        ),
        "classes_differ": ("warning", "Pack both sets with the same list of classes, so that class numbers agree."),
        "duplicate_image": ("warning", "Keep one of each; a copy that is annotated otherwise teaches a contradiction."),
        "near_duplicate": ("info", "Frames of a video teach little more than one of them; keep all of them in one set."),
        "class_without_boxes": (
            "warning",
            "Annotate the class, or leave it out of the classes: it cannot be learned from these images.",
        ),
        "few_boxes": ("warning", "Annotate more of these objects; 100 and more per class are a start."),
        "class_imbalance": ("info", "Collect more images of the rare classes, or train with --loss.class_balance."),
        "label_without_images": ("warning", "Label some images with it, or leave it out of the image labels."),
        "only_background": ("error", "Check that the annotations belong to these images: nothing can be learned without an object."),
        "only_crowds": ("error", "Annotate single objects: training and metrics ignore crowd regions."),
        "too_small_boxes": ("warning", "Train at a larger image_px, or cut the images into tiles; training leaves these boxes out."),
        "tiny_boxes": ("info", "Train at a larger image_px, if the objects are to be found."),
        "unusual_size": ("info", "Look at the examples: often the class or a corner of the box is wrong."),
        "unusual_shape": ("info", "Look at the examples: often the class or a corner of the box is wrong."),
        "annotated_twice": ("warning", "Delete one of the two boxes: the network would be taught two objects."),
        "class_conflict": ("warning", "Delete the wrong box: the same pixels cannot be taught as two classes."),
        "detection_limit": ("warning", "Expect an AP below 1, or cut the images into tiles: COCO compares no more detections per image."),
        "few_images": ("info", "Collect more images; small sets need pretrained weights, and their metrics vary much."),
        "mixed_sizes": ("info", "Nothing, if images in use are as mixed; each image is resized to image_px."),
        "extreme_aspect": ("warning", "Cut the images into squarer tiles: most of the network input is grey bars."),
        "enlarged_images": ("info", "Train at a smaller image_px: enlarged images cost time and have no more detail."),
        "partly_annotated": ("info", "Nothing, if intended: images teach only the tasks that they are annotated for."),
        "single_identities": ("info", "Add a second image of each individual: the task embed compares images of the same one."),
    }
)
"""Severity and advice by code."""
FAULT_ADVICE = "Mend the annotations at the listed places and pack again into another folder."


def make_finding(code: str, count: int, message: str, examples: Sequence[Example] = ()) -> Finding:
    """Make a finding of a known code."""
    severity, advice = ADVICE[code]
    return Finding(code, severity, count, message, advice, tuple(examples))


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """Sort findings: errors first, then warnings; the order is kept within a severity."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def finding_json(finding: Finding, urls: Sequence[str]) -> dict[str, Any]:
    """Return a finding for JSON, with its first examples; `urls` are those of the checked dataset and of the others."""
    examples = [_example_json(example, urls) for example in finding.examples[:MAX_EXAMPLES]]
    fields = {name: getattr(finding, name) for name in ("code", "severity", "count", "message", "advice")}
    return {**fields, "examples": examples}


def _example_json(example: Example, urls: Sequence[str]) -> dict[str, Any]:
    content: dict[str, Any] = {"image": example.image, "record": None if example.record < 0 else example.record, "text": example.text}
    if example.boxes_xyxy:
        content["boxes_xyxy"] = [[round(side, 2) for side in box] for box in example.boxes_xyxy]
    if example.other_member >= 0:
        content |= {"other_image": example.other_image, "other_record": example.other_record, "other_dataset": urls[example.other_member]}
    return content
