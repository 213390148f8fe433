"""Identify the kind of an upstream file by its first bytes; its name is ignored."""

from io import BytesIO

from yolor_ray.errors import WeightsError
from yolor_ray.model.upstream.darknet import is_darknet
from yolor_ray.model.upstream.pickles import ForeignNameError, read_pickle

EXPECTED_FILE = "a .pt file that torch.save wrote, or darknet .weights"
ZIP_SIGNATURE = b"PK\x03\x04"
LEGACY_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""Content of the first pickle of torch's format before 1.6; three more pickles follow."""
RESAVE_ADVICE = "load it in an environment that you trust and save its state dict again with torch.save"
MAX_PICKLED_BYTES = 8 * 2**20
"""Bytes of a file that are searched for pickles."""


def file_kind(url: str, data: bytes) -> str:
    """Return the kind of a file, `torch` or `darknet`.

    Raises:
        ForeignNameError: the file is a pickle that requests a name that no checkpoint needs.
        WeightsError: the file is of another kind; the message describes the content.
    """
    if not data:
        raise WeightsError(f"{url}: found an empty file, expected {EXPECTED_FILE}")
    if data.startswith(ZIP_SIGNATURE):
        return "torch"
    _refuse_pickle(url, data)
    if is_darknet(data):
        return "darknet"
    raise WeightsError(f"{url}: found {_describe_content(data)}, expected {EXPECTED_FILE}")


def _refuse_pickle(url: str, data: bytes) -> None:
    """Raise WeightsError if the file is a pickle outside torch's zip container, of any protocol."""
    stream, contents = BytesIO(data[:MAX_PICKLED_BYTES]), []
    has_pickle_header = data[0] == 0x80 and len(data) > 1 and data[1] <= 5
    try:
        contents.append(read_pickle(url, stream))
        while contents[0] == LEGACY_MAGIC_NUMBER and len(contents) < 4:
            contents.append(read_pickle(url, stream))
    except ForeignNameError:
        # Plain text can look like a function name in the old protocols, but a pickle ends with a full stop.
        if not has_pickle_header and not data.rstrip().endswith(b"."):
            return
        raise
    except WeightsError:
        if has_pickle_header:
            raise
        return
    if contents[0] == LEGACY_MAGIC_NUMBER:
        raise WeightsError(f"{url}: found a file in torch's format from before 1.6, expected its zip format; {RESAVE_ADVICE}")
    if has_pickle_header:
        raise WeightsError(f"{url}: found a bare pickle, expected torch's zip format; {RESAVE_ADVICE}")


def _describe_content(data: bytes) -> str:
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page (HTML), as servers send it in place of a file that is absent or needs a login"
    length = int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and length <= len(data):
        return "a safetensors file; a weights folder of this project is given by --weights FOLDER"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in data[:1024]):
        return f"text that begins {data[:40].decode('utf-8', 'replace')!r}"
    return f"{len(data)} bytes that begin {data[:8].hex(' ')}"
