"""Damages of files as disks and transfers make them."""

from collections.abc import Callable
from pathlib import Path


def flip(share: float) -> Callable[[Path], None]:
    """Return a function that changes one bit, at a share of a file's length."""

    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[round(share * (len(data) - 1))] ^= 4
        file.write_bytes(data)

    return damage


def cut(share: float) -> Callable[[Path], None]:
    """Return a function that keeps a share of a file."""

    def damage(file: Path) -> None:
        data = file.read_bytes()
        file.write_bytes(data[: int(share * len(data))])

    return damage


DAMAGES = {f"bit at {share}": flip(share) for share in (0.0, 0.25, 0.5, 0.9, 1.0)}
DAMAGES |= {"half": cut(0.5), "without the last byte": cut(0.9999), "empty": cut(0.0), "missing": Path.unlink}
