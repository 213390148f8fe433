"""Tell by its first bytes what a file is that was given as a published checkpoint; names and endings do not count."""

from io import BytesIO

from yolor_ray.errors import WeightsError
from yolor_ray.model.upstream.darknet import is_darknet
from yolor_ray.model.upstream.pickles import ForeignNameError, read_pickle

EXPECTED = "a .pt file that torch.save wrote, or darknet .weights"
ZIP = b"PK\x03\x04"
OLD_TORCH = 0x1950A86A20F9469CFC6C
"""The number that torch's format before 1.6 begins with, as a pickle of its own; three more pickles follow."""
AGAIN = "load it in an environment that you trust and save its state dict again with torch.save"
MOST_PICKLED = 8 * 2**20


def file_kind(place: str, data: bytes) -> str:
    """Return `torch` or `darknet`.

    Raises:
        ForeignNameError: the file is a pickle that asks for something that it has no reason to.
        WeightsError: the file is neither; the message says what it is.
    """
    if not data:
        raise WeightsError(f"{place}: found an empty file, expected {EXPECTED}")
    if data.startswith(ZIP):
        return "torch"
    _refuse_pickle(place, data)
    if is_darknet(data):
        return "darknet"
    raise WeightsError(f"{place}: found {_described(data)}, expected {EXPECTED}")


def _refuse_pickle(place: str, data: bytes) -> None:
    """Raise if the file is a pickle outside torch's zip container, whatever its protocol."""
    stream, read = BytesIO(data[:MOST_PICKLED]), []
    looks_pickled = data[0] == 0x80 and len(data) > 1 and data[1] <= 5
    try:
        read.append(read_pickle(place, stream))
        while read[0] == OLD_TORCH and len(read) < 4:
            read.append(read_pickle(place, stream))
    except ForeignNameError:
        # Text may read like the old protocols' way to name a function; a pickle ends with a full stop.
        if not looks_pickled and not data.rstrip().endswith(b"."):
            return
        raise
    except WeightsError:
        if looks_pickled:
            raise
        return
    if read[0] == OLD_TORCH:
        raise WeightsError(f"{place}: found a file in torch's format from before 1.6, expected its zip format; {AGAIN}")
    if looks_pickled:
        raise WeightsError(f"{place}: found a bare pickle, expected torch's zip format; {AGAIN}")


def _described(data: bytes) -> str:
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page (HTML), as servers send it in place of a file that is gone or needs a login"
    length = int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and length <= len(data):
        return "a safetensors file; a weights folder of this project is given by --weights FOLDER"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in data[:1024]):
        return f"text that begins {data[:40].decode('utf-8', 'replace')!r}"
    return f"{len(data)} bytes that begin {data[:8].hex(' ')}"
