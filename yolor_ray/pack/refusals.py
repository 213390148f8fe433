"""Refuse a plan or a packed dataset: faults under `strict`, no usable image, or objects that were all left out."""

from collections.abc import Sequence

from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.errors import DataError
from yolor_ray.pack.annotations.faults import Fault, describe_faults
from yolor_ray.pack.plan import PackPlan

MAX_SHOWN_FAULTS = 5


def check_plan(plan: PackPlan) -> None:
    """Refuse a dataset that is refused whatever its images are, before any image is opened."""
    if plan.strict and plan.faults:
        raise _strict_error(plan.faults)
    images = plan.annotated_images
    if plan.lost_objects and not any(image.objects for image in images) and any("detect" in image.tasks for image in images):
        raise _lost_error(plan, len(images), plan.faults)


def check_dataset(plan: PackPlan, dataset: Dataset, faults: Sequence[Fault]) -> None:
    """Refuse a dataset whose images are packed, with all faults of its plan and of its images."""
    if plan.strict and faults:
        raise _strict_error(faults)
    if dataset.images == 0:
        raise DataError(f"{plan.output}: found no usable image, expected at least one; {describe_faults(faults)}")
    objects_were_there = plan.lost_objects or any(image.objects for image in plan.annotated_images)
    if dataset.boxes == 0 and "detect" in dataset.tasks and objects_were_there:
        raise _lost_error(plan, dataset.images, faults)


def _lost_error(plan: PackPlan, images: int, faults: Sequence[Fault]) -> DataError:
    found = f"found {images} images and no usable object, because all objects were left out"
    return DataError(f"{plan.output}: {found}; expected at least one; {describe_faults(faults)}")


def _strict_error(faults: Sequence[Fault]) -> DataError:
    shown = "\n".join(f"  {fault}" for fault in faults[:MAX_SHOWN_FAULTS])
    more = f"\n  … and {len(faults) - MAX_SHOWN_FAULTS} more" if len(faults) > MAX_SHOWN_FAULTS else ""
    return DataError(f"found {len(faults)} faults, expected none with --strict; nothing was packed:\n{shown}{more}")
