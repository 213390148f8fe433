"""Teach a network by the detections of another: boxes on images without annotated boxes, and class probabilities everywhere.

Legend: B images, S side of the square network input in pixels, P predictions, K classes of the student, N boxes, D detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from yolor_ray.boxes import cxcywh_from_xyxy, pairwise_iou, suppress, xyxy_from_cxcywh
from yolor_ray.errors import WeightsError
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import load_weights
from yolor_ray.train.losses.assign import Targets

MIN_CONFIDENCE = 0.5
"""Confidence from which a detection of the teacher is a box to learn."""
MIN_UNSURE_CONFIDENCE = 0.1
"""Confidence from which the teacher does not rule out an object, so that the place is no background."""
MIN_IOU = 0.5
"""Overlap from which two boxes are the same object."""
SUPPRESSION_IOU = 0.65
"""Overlap from which the better of two detections of the teacher suppresses the other."""
MAX_DETECTIONS = 300
"""Maximum detections per image."""
TEACHER_SHARE = 0.5
"""Share of the teacher's class probabilities in a class target; the rest is the label of the box."""


@dataclass(frozen=True)
class TeacherDetections:
    """Detections of the images of a batch."""

    images: Int[Tensor, "D"]
    """Index of the image in the batch."""
    boxes_xyxy: Float[Tensor, "D 4"]
    """Pixels of the network input."""
    scores: Float[Tensor, "D K"]
    """Score of each class of the student; 0 of classes that the teacher lacks."""

    @property
    def confidences(self) -> Float[Tensor, "D"]:
        """Score of the best class."""
        return self.scores.amax(dim=-1)

    def select(self, keep: Bool[Tensor, "D"]) -> "TeacherDetections":
        """Return some of the detections."""
        return TeacherDetections(self.images[keep], self.boxes_xyxy[keep], self.scores[keep])


@dataclass(frozen=True)
class Teacher:
    """Network with fixed weights, and its classes among those of the student."""

    network: Yolor
    """In eval mode."""
    labels: Int[Tensor, "N"]
    """Labels of the student that the teacher knows."""
    teacher_labels: Int[Tensor, "N"]
    """Labels of the teacher with the same names."""
    classes: int
    """Classes of the student, K."""

    @property
    def knows_all_classes(self) -> bool:
        """True if every class of the student is one of the teacher."""
        return len(self.labels) == self.classes

    @torch.no_grad()
    def add_targets(self, pixels: Float[Tensor, "B 3 S S"], targets: Targets) -> Targets:
        """Return the targets of a batch with the knowledge of the teacher.

        Confident detections become boxes of images that are not annotated for detection. The background of such an image is known, except
        for the places of unsure detections, if the teacher knows all classes. Class targets are mixed with the teacher's probabilities.

        Args:
            pixels: images in 0..1.
            targets: annotations in pixels of the same images.
        """
        detections = self._detect(pixels)
        if targets.boxes_known is not None:
            targets = self._add_boxes(detections, targets, targets.boxes_known)
        return replace(targets, soft_labels=self._soft_labels(detections, targets))

    def _detect(self, pixels: Float[Tensor, "B 3 S S"]) -> TeacherDetections:
        """Return the teacher's detections, each of its best class, after suppression over all classes."""
        network = self.network
        boxes_cxcywh, teacher_scores = network.head.decode(network.head(network.neck(network.backbone(pixels))))
        scores = teacher_scores.new_zeros(*teacher_scores.shape[:2], self.classes)
        scores[..., self.labels] = teacher_scores[..., self.teacher_labels]
        confidences = scores.amax(dim=-1)
        images, predictions = [], []
        for index, image_confidences in enumerate(confidences):
            [candidates] = (image_confidences >= MIN_UNSURE_CONFIDENCE).nonzero(as_tuple=True)
            boxes_xyxy, one_class = xyxy_from_cxcywh(boxes_cxcywh[index, candidates]), torch.zeros_like(candidates)
            kept = suppress(boxes_xyxy, image_confidences[candidates], one_class, iou=SUPPRESSION_IOU, limit=MAX_DETECTIONS)
            predictions.append(candidates[kept])
            images.append(torch.full_like(kept, index))
        image, prediction = torch.cat(images), torch.cat(predictions)
        boxes_xyxy = xyxy_from_cxcywh(boxes_cxcywh[image, prediction]).clamp(0, pixels.shape[-1])
        return TeacherDetections(image, boxes_xyxy, scores[image, prediction])

    def _add_boxes(self, detections: TeacherDetections, targets: Targets, boxes_known: Bool[Tensor, "B"]) -> Targets:
        """Add the confident detections of images without all boxes that repeat no annotated box, and the unsure ones as such."""
        new = _select_new(detections.select(~boxes_known[detections.images]), targets)
        is_confident = new.confidences >= MIN_CONFIDENCE
        targets = _append_boxes(targets, new.select(is_confident))
        if not self.knows_all_classes:
            return targets
        unsure = _select_new(new.select(~is_confident), targets)
        return replace(targets, boxes_known=None, unsure_images=unsure.images, unsure_cxcywh=cxcywh_from_xyxy(unsure.boxes_xyxy))

    def _soft_labels(self, detections: TeacherDetections, targets: Targets) -> Float[Tensor, "N K"]:
        """Return class targets: the label, mixed with the teacher's probabilities where it detects the box and knows the label."""
        hard = F.one_hot(targets.labels, self.classes).to(detections.scores.dtype)
        if not len(detections.images):
            return hard
        iou, nearest = _overlaps(targets, detections).max(dim=1)
        probabilities = detections.scores[nearest]
        probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
        is_taught = (iou >= MIN_IOU) & torch.isin(targets.labels, self.labels)
        return torch.where(is_taught[:, None], hard + TEACHER_SHARE * (probabilities - hard), hard)


def _overlaps(targets: Targets, detections: TeacherDetections) -> Float[Tensor, "N D"]:
    """Return the IoU of each target box and each detection, 0 if they are of different images."""
    iou = pairwise_iou(xyxy_from_cxcywh(targets.boxes_cxcywh), detections.boxes_xyxy)
    return iou * (targets.images[:, None] == detections.images[None])


def _select_new(detections: TeacherDetections, targets: Targets) -> TeacherDetections:
    """Return the detections that overlap no target box of their image."""
    return detections.select((_overlaps(targets, detections) < MIN_IOU).all(dim=0))


def _append_boxes(targets: Targets, detections: TeacherDetections) -> Targets:
    """Return the targets with the detections as further boxes, whose keypoints, identities and masks are unknown."""
    count = len(detections.images)

    def extend(values: Tensor | None, unknown: int) -> Tensor | None:
        return None if values is None else torch.cat((values, values.new_full((count, *values.shape[1:]), unknown)))

    return replace(
        targets,
        images=torch.cat((targets.images, detections.images)),
        labels=torch.cat((targets.labels, detections.scores.argmax(dim=-1))),
        boxes_cxcywh=torch.cat((targets.boxes_cxcywh, cxcywh_from_xyxy(detections.boxes_xyxy))),
        keypoints=extend(targets.keypoints, -1),
        identities=extend(targets.identities, -1),
        has_mask=extend(targets.has_mask, False),
    )


def load_teacher(url: str, classes: Sequence[str], image_px: int, device: torch.device) -> Teacher:
    """Load the weights that teach a network of the given classes.

    Args:
        url: weights folder; the weights may be fused.
        classes: names of the student's classes.
        image_px: side of the network input, pixels.
        device: device of the training.

    Raises:
        WeightsError: the weights know none of the classes, or the folder cannot be read.
        ConfigError: `image_px` does not fit the teacher.
    """
    network, info = load_weights(url)
    network.config.check_image_px(image_px, f"data.image_px, for optim.teacher {url}")
    labels = [label for label, name in enumerate(classes) if name in info.classes]
    if not labels:
        found, expected = ", ".join(info.classes), ", ".join(classes)
        raise WeightsError(f"{url}: found weights of the classes {found}, expected a teacher of some of {expected}")
    network = network if is_fused(network) else fuse(network)
    network = network.requires_grad_(False).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher_labels = [info.classes.index(classes[label]) for label in labels]
    return Teacher(network, torch.tensor(labels, device=device), torch.tensor(teacher_labels, device=device), len(classes))
