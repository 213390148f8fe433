"""Read the images of a COCO file: their files, ids, claimed sizes and labels.

One id may stand for one file only, or else nobody knows the image of an annotation. One file may have several entries: their objects
are joined.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from yolor_ray.data.shards.relabel import MEMBER_BITS
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.pack.annotations.file_names import path_parts
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.annotations.schema import AnnotatedImage
from yolor_ray.pack.annotations.values import claimed_size, id_value


@dataclass(frozen=True)
class CocoImages:
    """Images of a COCO file."""

    by_name: Mapping[str, tuple[dict[str, Any], AnnotatedImage]]
    """Entry and image, without objects, by name of the image file."""
    names: Mapping[float | str, str | None]
    """Name of the image file by image id; None for an image that is left out."""
    classes: tuple[str, ...]
    """Image-level classes, by label."""
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class _Claim:
    """One entry, and the image file that it claims."""

    entry: dict[str, Any]
    pointer: str
    id: float | str
    image: str | None
    """Name of the image file; None if the image is left out."""
    fault: Fault | None = None
    """Reason to leave the image out."""

    def refuse(self, code: str, message: str, file: str) -> "_Claim":
        """Leave the image out, for an earlier reason if there is one."""
        return replace(self, image=None, fault=self.fault or Fault(code, f"{message}; image left out", file, None, self.pointer))


def read_images(entries: list, folder: ImageFolder, file: str, classes: Sequence[str]) -> CocoImages:
    """Read the list `images`; empty `classes` collects and sorts the labels of all entries."""
    claims, faults = _read_claims(entries, folder, file)
    claims = _refuse_shared_ids(_refuse_vague_names(claims, folder, file), file)
    classes = tuple(classes) or tuple(sorted({label for entry in entries if isinstance(entry, dict) for label in _labels(entry)}))
    by_name: dict[str, tuple[dict[str, Any], AnnotatedImage]] = {}
    for claim in claims:
        if claim.image is None:
            faults += [claim.fault] if claim.fault else []
        elif claim.image in by_name:
            first = by_name[claim.image][1].fault("", "").location
            message = f"image {claim.image!r}: found a second entry of this file, expected one; the first is at {first}; objects joined"
            faults.append(Fault("duplicate_id", message, file, None, claim.pointer))
        else:
            image, image_faults = _image(claim, claim.image, file, classes)
            by_name[claim.image] = claim.entry, image
            faults += image_faults
    return CocoImages(by_name, {claim.id: claim.image for claim in claims}, classes, tuple(faults))


def _read_claims(entries: list, folder: ImageFolder, file: str) -> tuple[list[_Claim], list[Fault]]:
    """Return the entries with an id, and a fault for each other entry."""
    claims = []
    faults = []
    for index, entry in enumerate(entries):
        pointer = f"/images/{index}"
        key, name = (id_value(entry.get("id")), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        if key is None or not isinstance(name, str):
            fault = Fault("bad_image", "found an image without id or file_name, expected both; left out", file, None, pointer)
            claims += [_Claim(entry, pointer, key, None, fault)] if key is not None else []
            faults += [fault] if key is None else []
            continue
        claim = _Claim(entry, pointer, key, folder.find(name))
        if claim.image is None:
            code, message = folder.explain_miss(name)
            claim = claim.refuse(code, f"{message} in {folder.url}", file)
        claims.append(claim)
    return claims, faults


def _refuse_vague_names(claims: Sequence[_Claim], folder: ImageFolder, file: str) -> list[_Claim]:
    """Refuse names in part of a path, for an image file that another name claims too."""
    names: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for claim in claims:
        if claim.image is not None:
            names[claim.image].add(path_parts(claim.entry["file_name"]))
    checked = []
    for claim in claims:
        if claim.image is None or len(names[claim.image]) == 1 or folder.is_whole_path(claim.entry["file_name"], claim.image):
            checked.append(claim)
            continue
        message = f"found {claim.entry['file_name']!r}, but another name claims the only such image, {claim.image!r}"
        checked.append(claim.refuse("ambiguous_image", message, file))
    return checked


def _refuse_shared_ids(claims: Sequence[_Claim], file: str) -> list[_Claim]:
    """Refuse ids that stand for several files, and other ids of these files, because any of the objects may belong to them."""
    images: dict[float | str, set[str | None]] = defaultdict(set)
    for claim in claims:
        images[claim.id].add(claim.image)
    shared = {key for key, names in images.items() if len(names) > 1}
    spoiled = {name for key in shared for name in images[key]}
    checked = []
    for claim in claims:
        if claim.id in shared:
            message = f"found image id {claim.entry['id']!r} for {len(images[claim.id])} different files, expected one file"
            checked.append(claim.refuse("duplicate_id", message, file))
        elif claim.image is not None and claim.image in spoiled:
            message = f"image {claim.image!r}: found an entry of this file with an id that stands for several files too"
            checked.append(claim.refuse("duplicate_id", message, file))
        else:
            checked.append(claim)
    return checked


def _image(claim: _Claim, name: str, file: str, classes: Sequence[str]) -> tuple[AnnotatedImage, list[Fault]]:
    """Return the image of an entry without objects, and the fault of its labels."""
    entry = claim.entry
    labels = tuple(classes.index(label) for label in _labels(entry) if label in classes)
    declared_px = claimed_size(entry.get("width"), entry.get("height"))
    image = AnnotatedImage(
        name, (), file, None, claim.pointer, declared_px, image_labels=labels, camera=number_or_unknown(entry.get("camera"))
    )
    unknown = [label for label in _labels(entry) if label not in classes]
    message = f"found labels {unknown}, expected some of {', '.join(classes)}; labels left out"
    return image, [image.fault("unknown_class", message)] if unknown else []


def _labels(entry: dict[str, Any]) -> list[str]:
    labels = entry.get("labels")
    return [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []


def number_or_unknown(value: Any) -> int:
    """Return the number of an individual or a camera, or -1 if the value is no such number."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << MEMBER_BITS else -1
