"""Files that must be refused without executing anything: hostile pickles, damaged files, files of other formats."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from yolor_ray.config import NetworkConfig
from yolor_ray.errors import WeightsError
from yolor_ray.model.network import Yolor
from yolor_ray.model.upstream.archive import open_archive, parse_tensor
from yolor_ray.model.upstream.checkpoint import find_network
from yolor_ray.model.upstream.importer import load_upstream
from yolor_ray.model.upstream.pickles import TENSOR, GlobalName, ObjectRecord, PersistentId
from yolor_ray.model.weights import WeightsInfo, save_weights


class Calls:
    """An object whose pickle calls `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Builds:
    """An object whose pickle builds a plain object with `state`."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return torch.nn.Identity, (), self.state


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def load(tmp_path):
    def load_bytes(data):
        path = tmp_path / "last.pt"
        path.write_bytes(data)
        return load_upstream(str(path))

    return load_bytes


def torch_file(content, **options):
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def zip_file(entries, **options):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return stream.getvalue()


def assert_refused(load, data, name, canary):
    with pytest.raises(WeightsError, match=rf"the file asks for '{name}'; nothing of it was run"):
        load(data)
    assert not canary.exists()


CALLED = {
    r"posix\.system": lambda canary: Calls(os.system, f"touch {canary}"),
    r"(builtins|__builtin__)\.eval": lambda canary: Calls(eval, f"open({str(canary)!r}, 'w')"),
    r"(builtins|__builtin__)\.getattr": lambda canary: Calls(getattr, "text", "upper"),
    r"torch\.serialization\.load": lambda canary: Calls(torch.load, str(canary)),
    r"_?io\.open": lambda canary: Calls(open, str(canary), "w"),
    r"numpy\..*load": lambda canary: Calls(np.load, str(canary)),
}


@pytest.mark.parametrize("name", CALLED)
def test_a_call_of_a_foreign_function_is_refused_at_any_position(name, load, canary):
    call, tensors = CALLED[name](canary), OrderedDict(weight=torch.zeros(2))
    for content in (
        call,
        {"model": tensors | {"last": call}},
        {"model": tensors, "best_fitness": [{"deep": (call,)}]},
        Builds({"x": call}),
    ):
        assert_refused(load, torch_file(content), name, canary)


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_outside_the_zip_container_is_refused(protocol, load, canary):
    data = pickle.dumps({"model": Calls(os.system, f"touch {canary}")}, protocol)
    assert_refused(load, data, r"posix\.system", canary)


def test_a_hostile_file_of_the_old_torch_format_is_refused(load, canary):
    data = torch_file({"model": Calls(os.system, f"touch {canary}")}, _use_new_zipfile_serialization=False)
    assert_refused(load, data, r"posix\.system", canary)


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (b"(S'touch %s'\nios\nsystem\n.", r"os\.system"),
        (b"cos\nsystem\n(S'touch %s'\ntR.", r"os\.system"),
        (b"(cos\nsystem\nS'touch %s'\no.", r"os\.system"),
        (b"\x80\x04\x8c\x08torch.nn\x8c\x11functional.system\x93.", r"torch\.nn\.functional\.system"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x16OrderedDict.__init__.x\x93.", r"collections\.OrderedDict\.__init__\.x"),
        (b"\x80\x02ctorch.nn.modules.container\nSequential\n)\x81}X\x0c\x00\x00\x00__setstate__cposix\nsystem\nsb.", r"posix\.system"),
    ],
    ids=["inst", "global", "obj", "dotted", "dunder", "build"],
)
def test_every_opcode_that_names_a_function_is_checked(program, name, load, canary):
    program = program.replace(b"%s", str(canary).encode())
    assert_refused(load, program, name, canary)
    assert_refused(load, zip_file({"archive/data.pkl": program}), name, canary)


def test_a_state_does_not_change_a_real_class(load, canary):
    program = b"\x80\x02ccollections\nOrderedDict\n}X\x0c\x00\x00\x00__setstate__X\x01\x00\x00\x00xsb."
    with pytest.raises(WeightsError, match="found no tensors"):
        load(zip_file({"archive/data.pkl": program}))
    assert not hasattr(OrderedDict, "x")
    assert "__setstate__" not in vars(OrderedDict)


def state_dict():
    return {"model": {f"module_list.{i}.Conv2d.weight": torch.rand(8, 8, 3, 3) for i in range(12)}}


def test_every_truncation_is_refused(load):
    data = torch_file(state_dict())
    for length in (*range(0, 400, 7), *range(400, len(data), 997), len(data) - 1):
        with pytest.raises(WeightsError, match=r"last\.pt: found "):
            load(data[:length])


def test_the_error_for_a_short_file_says_truncated(load):
    data = torch_file(state_dict())
    with pytest.raises(WeightsError, match=rf"found {len(data) - 9} bytes that begin as a torch checkpoint, but it is truncated"):
        load(data[:-9])


def test_a_truncated_pickle_is_refused_and_the_byte_is_named(load):
    data = pickle.dumps(list(range(1000)))
    with pytest.raises(WeightsError, match=r"breaks off or is damaged near byte \d+"):
        load(data[:-100])
    with pytest.raises(WeightsError, match=r"data\.pkl: found a pickle that breaks off"):
        load(zip_file({"archive/data.pkl": data[:-100]}))


def test_a_flipped_bit_in_the_numbers_is_detected():
    data = bytearray(torch_file(state_dict()))
    data[len(data) // 2] ^= 1
    archive = open_archive("last.pt", bytes(data))
    tensors = find_network("last.pt", archive.read_pickle()).tensors
    with pytest.raises(WeightsError, match=r"is damaged \(Bad CRC-32 for file 'archive/data/\d+'\)"):
        for name, location in tensors.items():
            archive.read_tensor(name, location)


@pytest.mark.parametrize(
    ("data", "description"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", r"a web page \(HTML\)"),
        (b"\xef\xbb\xbf<HTML>quota exceeded</HTML>", r"a web page \(HTML\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "text that begins 'version https://git-lfs"),
        (b"cat\ndog\n", "text that begins 'cat"),
        (b"\x1f\x8b\x08\x00" + bytes(range(200)), "204 bytes that begin 1f 8b 08 00"),
        (safetensors.torch.save({"a": torch.zeros(3)}), "a safetensors file; .* --weights FOLDER"),
        (pickle.dumps({"model": [1, 2]}), "a bare pickle, expected torch's zip format; load it in an environment that you trust"),
        (torch_file(state_dict(), _use_new_zipfile_serialization=False), r"a file in torch's format from before 1\.6"),
        (zip_file({"word/document.xml": b"<x/>"}), "a zip archive of word/document.xml …, expected one that torch.save wrote"),
        (zip_file({"a/data.pkl": b"\x80\x02}."}, compression=zipfile.ZIP_DEFLATED), "a compressed or encrypted zip archive"),
        (zip_file({"a/data.pkl": bytes(9 * 2**20)}), r"a data\.pkl of 9437184 bytes, expected at most 8388608"),
    ],
    ids=["empty", "web page", "bom", "text", "names", "gzip", "safetensors", "pickle", "old", "docx", "deflated", "oversized"],
)
def test_a_file_of_another_format_is_refused_and_its_content_is_described(data, description, load):
    with pytest.raises(WeightsError, match=rf"last\.pt: found {description}"):
        load(data)


def test_the_error_for_a_weights_folder_names_the_flag_weights(tmp_path):
    config = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 8, 8), depths=(1, 1, 1), neck_depth=1, levels=2)
    save_weights(str(tmp_path), Yolor(config, 1, torch.rand(2, 3, 2)), WeightsInfo("own", ("a",), 64))
    with pytest.raises(WeightsError, match=r"found a weights folder of this project, .* by --weights"):
        load_upstream(str(tmp_path))


def tensor_pickle(size, stride, offset=0, count=4, key="0"):
    """Return a pickle of a state dict with one tensor, of any geometry."""
    numbers = "".join(f"({''.join(f'I{n}{chr(10)}' for n in sizes)}t" for sizes in (size, stride))
    storage = f"(S'storage'\nctorch\nFloatStorage\nS'{key}'\nS'cpu'\nI{count}\ntQ"
    tensor = f"ctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n{numbers}I00\nNtR"
    return f"(dS'module_list.0.Conv2d.weight'\n{tensor}s.".encode()


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"size": (5,), "stride": (1,)}, r"'module_list\.0\.Conv2d\.weight': found a storage of 16 bytes, expected 20 for shape \(5,\)"),
        ({"size": (2,), "stride": (1,), "offset": 3}, "found a storage of 16 bytes, expected 20"),
        ({"size": (1000000, 1000000), "stride": (0, 0)}, r"found shape \(1000000, 1000000\) .* whose numbers overlap"),
        ({"size": (2, 2), "stride": (1, 1)}, "whose numbers overlap"),
        ({"size": (2,), "stride": (-1,), "offset": 1}, "are no sizes"),
        ({"size": (2,), "stride": (1,), "offset": -1}, "are no sizes"),
        ({"size": (2**70,), "stride": (1,)}, "are no sizes"),
        ({"size": (2, 2), "stride": (1,)}, "are no sizes"),
        ({"size": (4,), "stride": (1,), "key": "1"}, "no item named 'archive/data/1'"),
        ({"size": (4,), "stride": (1,), "key": "../data.pkl"}, "no item named"),
    ],
)
def test_tensors_with_invalid_geometry_are_refused(geometry, message, load):
    with pytest.raises(WeightsError, match=message):
        load(zip_file({"archive/data.pkl": tensor_pickle(**geometry), "archive/data/0": bytes(16)}))


def test_many_tensors_of_one_storage_are_refused(load):
    shared = torch.zeros(8, 8, 3, 3)
    tensors = {f"module_list.{i}.Conv2d.weight": shared for i in range(200)}
    with pytest.raises(WeightsError, match=r"found tensors of 460800 bytes in a file that holds \d+, expected no more than that"):
        load(torch_file(tensors))


def test_entries_that_overlap_are_refused(load):
    data = bytearray(zip_file({"archive/data.pkl": b"\x80\x02}.", "archive/data/0": bytes(64)}))
    directory = data.rindex(b"PK\x01\x02")
    struct.pack_into("<II", data, directory + 20, 2**31, 2**31)
    with pytest.raises(WeightsError, match=r"entries that overlap or exceed the file's \d+ bytes"):
        load(bytes(data))


def test_deeply_nested_modules_are_refused(load):
    data = b"\x80\x02" + b"ctorch.nn.modules.container\nSequential\n)\x81}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00a" * 40
    with pytest.raises(WeightsError, match="more than 16 modules inside each other"):
        load(zip_file({"archive/data.pkl": data + b"N" + b"sssb"[1:] * 40 + b"."}))


def test_a_module_that_holds_itself_is_read_once(load):
    module = torch.nn.Module()
    object.__setattr__(module, "_modules", {"self": module})
    with pytest.raises(WeightsError, match="found no tensors"):
        load(torch_file(module))


def test_a_deeply_nested_key_is_not_hashed(load):
    """Hashing the key would crash the process: tuples hash recursively, on the C stack."""
    program = b"\x80\x02})" + b"\x85" * 50_000 + b"Ns."
    with pytest.raises(WeightsError, match="found no tensors"):
        load(zip_file({"archive/data.pkl": program}))


NESTED_PAIRS = b"]q\x010" + b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(1, 60)) + b"h\x3c"
"""A pair of pairs of pairs: 60 small values whose text would have 2 to the 60 characters."""


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (NESTED_PAIRS + b"h\x3c\x93.", "a name that is no text"),
        (b"}" + NESTED_PAIRS + b"Ns.", "found no tensors in a pickle of , "),
        (b"}\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b"Ns.", "found no tensors in a pickle of , "),
        (b"}r\xff\xff\xff\xff.", "found no tensors in a pickle of , "),
    ],
    ids=["name", "key", "number", "memo"],
)
def test_huge_values_are_neither_printed_nor_allocated(program, message, load):
    with pytest.raises(WeightsError, match=message):
        load(zip_file({"archive/data.pkl": b"\x80\x02" + program}))


def test_a_huge_shape_is_not_printed():
    shape = ()
    for _ in range(60):
        shape = (shape, shape)
    storage = PersistentId(("storage", GlobalName("torch.FloatStorage"), "0", "cpu", 4))
    for size in (shape, (1 << 100_000,), (True,)):
        with pytest.raises(WeightsError, match="are no sizes"):
            parse_tensor("last.pt", ObjectRecord(TENSOR, (storage, 0, size, size)))


def test_the_canary_works(canary):
    pickle.loads(pickle.dumps(Calls(os.system, f"touch {canary}")))
    assert Path(canary).exists()
