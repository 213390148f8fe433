"""Read a part of the images in a task of Ray Data.

A process that runs read tasks imports this module, which must not bring torch: its import takes seconds.
"""

import pickle

import pyarrow as pa

from yolor_ray.errors import UserError
from yolor_ray.predict.sources import EncodedImage


def read_part(block: pa.Table) -> pa.Table:
    """Read the images of a part: `task` holds its pickled index, key and part, and `part` of the result its index, key and images."""
    index, key, part = pickle.loads(block["task"][0].as_py())
    # An error is passed on as a value: Ray Data would replace it by an error of its own.
    images: list[EncodedImage] | UserError
    try:
        images = list(part.read())
    except UserError as error:
        images = error
    return pa.table({"part": pa.array([pickle.dumps((index, key, images))], pa.large_binary())})
