"""Read the data of a pickle without running anything of it: what it asks to call is recorded, never called.

A pickle is a program for a stack machine that may call any function by name. This machine knows no function: names that
checkpoints have reason to hold become inert records, and any other name ends the reading before anything is made of it.
"""

import pickletools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from yolor_ray.errors import WeightsError

KEYS = (str, int, float, bytes, type(None))
"""Types of dict keys that are kept; others are nothing that a checkpoint is read by, and hashing them may not end."""

TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
PLAIN = ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "set", "slice", "str", "tuple")
DTYPES = ("bfloat16", "bool", "float", "float16", "float32", "float64", "half", "int16", "int32", "int64", "int8", "long", "uint8")
ALLOWED = frozenset(
    (
        *(TENSOR, *PARAMETERS, "torch.Size", "torch.device", "torch.storage.UntypedStorage", "torch.storage.TypedStorage"),
        *(f"torch.{name}" for name in DTYPES),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in PLAIN),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        *("numpy.dtype", "numpy.ndarray", "_codecs.encode", "argparse.Namespace", "collections.OrderedDict", "collections.defaultdict"),
        *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath")),
        *(f"datetime.{name}" for name in ("date", "datetime", "timedelta", "timezone")),
    )
)
"""Names that checkpoints hold for good reasons; none of them is looked up."""
ALLOWED_MODULES = ("torch.nn.", "torch.optim.", "models.", "utils.", "ultralytics.", "torchvision.", "timm.")
"""Homes of network classes; their objects become records of their state."""
STORAGE = re.compile(r"torch\.(cuda\.)?[A-Z][A-Za-z0-9]*Storage")
PLAIN_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class ForeignNameError(WeightsError):
    """A pickle asks for a name that no checkpoint has a reason to hold."""


@dataclass(frozen=True, eq=False)
class Named:
    """A function or class that the file names."""

    name: str


@dataclass(frozen=True, eq=False)
class Stored:
    """What lies outside the pickle: a storage's type, key and size."""

    reference: Any


@dataclass(eq=False)
class Made:
    """An object that the file describes: what would be called, with what, and the state it would get."""

    name: str
    arguments: tuple[Any, ...]
    state: dict[Any, Any] = field(default_factory=dict)


def read_pickle(place: str, stream: BytesIO) -> Any:
    """Return what the next pickle of a stream describes: plain values, `Made`, `Named` and `Stored`.

    Raises:
        ForeignNameError: it asks for a name that is not allowed.
        WeightsError: it is truncated or damaged.
    """
    machine = _Machine(place)
    try:
        for opcode, argument, position in pickletools.genops(stream):
            machine.position = position or 0
            OPCODES[opcode.name](machine, argument)
        return machine.stack[-1]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{place}: found a pickle that breaks off or is damaged near byte {machine.position} "
            f"({type(error).__name__}: {reason}), expected a whole one; download or copy the file again"
        ) from error


class _Machine:
    """Hold the stack, what lies below each mark, and the memo."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.position = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError("nothing left on the stack")
        taken = tuple(self.stack[-count:])
        del self.stack[-count:]
        return taken

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        full = f"{module}.{name}"
        known = full in ALLOWED or full.startswith(ALLOWED_MODULES) or STORAGE.fullmatch(full)
        # A dotted name would be looked up inside a class or module, whatever module it claims to come from.
        if not known or not PLAIN_NAME.fullmatch(full) or not name.isidentifier():
            raise ForeignNameError(
                f"{self.place}: the file asks for {full[:200]!r}; nothing of it was run. "
                "Expected tensors, numbers, text and network classes; do not load this file with other programs"
            )
        self.stack.append(Named(full))

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise TypeError("a call of something that is no name")
        made = CALLS.get(function.name)
        self.stack.append(made(*arguments) if made else Made(function.name, arguments))

    def instance(self, module: str, name: str) -> None:
        arguments = tuple(self.since_mark())
        self.name(module, name)
        self.call(self.stack.pop(), arguments)

    def build(self, made: Any, state: Any) -> None:
        """Keep the state of an object; a pair holds that of slots in second place."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(made, Made) and isinstance(part, dict):
                made.state.update(part)
        self.stack.append(made)

    def extend(self, items: Iterable[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def put(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_pairs(items))

    def push(self, value: Any) -> None:
        self.stack.append(value)


def _dict(pairs: Iterable[Any] = ()) -> dict[Any, Any]:
    return {key: value for key, value in pairs if isinstance(key, KEYS)}


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return _dict(zip(items[::2], items[1::2], strict=True))


def _call_first(machine: _Machine, items: list[Any]) -> None:
    machine.call(items[0], tuple(items[1:]))


def _refuse(machine: _Machine, _: Any) -> None:
    raise ValueError("an operation that no checkpoint needs")


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "builtins.set": lambda items=(): list(items),
    "__builtin__.set": lambda items=(): list(items),
    **dict.fromkeys(PARAMETERS, lambda tensor, *_: tensor),
}
"""Calls whose result is known without making them; all others are recorded."""

VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
"""Operations that push the value that follows them."""
Operation = Callable[[_Machine, Any], Any]
OPCODES: dict[str, Operation] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, a: None),
    **dict.fromkeys(VALUES, lambda m, a: m.push(a)),
    "NONE": lambda m, a: m.push(None),
    "NEWTRUE": lambda m, a: m.push(True),
    "NEWFALSE": lambda m, a: m.push(False),
    "EMPTY_TUPLE": lambda m, a: m.push(()),
    "EMPTY_LIST": lambda m, a: m.push([]),
    "EMPTY_SET": lambda m, a: m.push([]),
    "EMPTY_DICT": lambda m, a: m.push({}),
    "TUPLE1": lambda m, a: m.push(m.pop(1)),
    "TUPLE2": lambda m, a: m.push(m.pop(2)),
    "TUPLE3": lambda m, a: m.push(m.pop(3)),
    "MARK": lambda m, a: m.mark(),
    "TUPLE": lambda m, a: m.push(tuple(m.since_mark())),
    "LIST": lambda m, a: m.push(m.since_mark()),
    "FROZENSET": lambda m, a: m.push(m.since_mark()),
    "DICT": lambda m, a: m.push(_pairs(m.since_mark())),
    "APPEND": lambda m, a: m.extend(m.pop(1)),
    "APPENDS": lambda m, a: m.extend(m.since_mark()),
    "ADDITEMS": lambda m, a: m.extend(m.since_mark()),
    "SETITEM": lambda m, a: m.put(list(m.pop(2))),
    "SETITEMS": lambda m, a: m.put(m.since_mark()),
    "POP": lambda m, a: m.pop(1) if m.stack else m.since_mark(),
    "POP_MARK": lambda m, a: m.since_mark(),
    "DUP": lambda m, a: m.push(m.stack[-1]),
    "MEMOIZE": lambda m, a: m.memo.update({len(m.memo): m.stack[-1]}),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, a: m.memo.update({a: m.stack[-1]})),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, a: m.push(m.memo[a])),
    "GLOBAL": lambda m, a: m.name(*a.split(" ", 1)),
    "STACK_GLOBAL": lambda m, a: m.name(*m.pop(2)),
    "REDUCE": lambda m, a: m.call(*m.pop(2)),
    "NEWOBJ": lambda m, a: m.call(*m.pop(2)),
    "NEWOBJ_EX": lambda m, a: m.call(*m.pop(3)[:2]),
    "INST": lambda m, a: m.instance(*a.split(" ", 1)),
    "OBJ": lambda m, a: _call_first(m, m.since_mark()),
    "BUILD": lambda m, a: m.build(*m.pop(2)),
    "PERSID": lambda m, a: m.push(Stored(a)),
    "BINPERSID": lambda m, a: m.push(Stored(*m.pop(1))),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"), _refuse),
}
"""What each operation of a pickle does to the machine."""
