"""Buffers of batches that the trainer and the process of its loader share.

Legend: B images of the largest batch, S side of the square network input in pixels.
"""

import mmap
import os
import tempfile

import numpy as np

from yolor_ray.data.loading.loader import BUFFERS

SHARED_BUFFERS = BUFFERS + 2
"""The loader's process is up to two batches ahead of the trainer."""


def open_memory() -> int:
    """Return the descriptor of an empty file in memory, or on disk where the system has none in memory.

    The file has no name, so it ends with the processes that hold it, and no limit of /dev/shm holds for it.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("yolor-batches")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class SharedBuffers:
    """Images and instance maps of the newest batches of an epoch, at the same place in both processes."""

    def __init__(self, memory: int, batch: int, image_px: int, has_instances: bool) -> None:
        """Map the file, which grows to the size that is needed.

        Args:
            memory: descriptor of the file.
            batch: B.
            image_px: S.
            has_instances: batches have instance maps.
        """
        pixels = SHARED_BUFFERS * batch * image_px**2
        size = max(pixels * (7 if has_instances else 3), 1)
        if os.fstat(memory).st_size < size:
            os.ftruncate(memory, size)
        mapped = mmap.mmap(memory, size)
        shape = (SHARED_BUFFERS, batch, image_px, image_px)
        self.images = np.frombuffer(mapped, np.uint8, pixels * 3).reshape(*shape, 3)
        """(SHARED_BUFFERS, B, S, S, 3): images of each batch."""
        self.instances = np.frombuffer(mapped, np.int32, pixels, pixels * 3).reshape(shape) if has_instances else None
        """(SHARED_BUFFERS, B, S, S): instance maps of each batch; None if there are none."""
