"""Annotations of images that are letterboxed and not augmented, as in validation.

Legend: S side of the square network input in pixels.
"""

import numpy as np

from yolor_ray.data.augment.geometry import place_tile, transform_labels
from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.data.augment.labels import SampleLabels
from yolor_ray.data.augment.tile import Tile, tile_annotations, tile_size
from yolor_ray.data.images.letterbox import Letterbox
from yolor_ray.data.shards.records import Record


def letterboxed_annotations(
    record: Record, image: np.ndarray, letterbox: Letterbox, label_spec: LabelSpec, member: int = 0
) -> SampleLabels:
    """Return the annotations of a letterboxed image, in pixels of the network input, without objects that training would drop.

    Args:
        record: the image with its annotations.
        image: (S, S, 3) uint8, the letterboxed image.
        letterbox: position of the image in the square.
        label_spec: the annotations to carry besides boxes.
        member: index of the record's dataset in a union.
    """
    side, left, top = len(image), letterbox.pad_x, letterbox.pad_y
    width, height = tile_size(record, side)
    tile = Tile(image[top : top + height, left : left + width], tile_annotations(record, side, label_spec, member))
    shift = np.array(((1.0, 0.0, left), (0.0, 1.0, top)))
    return transform_labels([place_tile(tile, 0, 0, width, height)], (width, height), shift, side)
