"""Read the data of a pickle without executing it: requested calls are recorded, never made.

A pickle is a program for a stack machine that can call any function by name. The machine here has no functions. Names that
checkpoints need become inert records. Any other name ends the reading before an object is made of the name.
"""

import pickletools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from yolor_ray.errors import WeightsError

KEYS = (str, int, float, bytes, type(None))
"""Types of dict keys that are kept. Other keys are not needed to read a checkpoint, and hashing them may not terminate."""

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
"""Names that checkpoints contain legitimately; none of the names is looked up."""
ALLOWED_MODULES = ("torch.nn.", "torch.optim.", "models.", "utils.", "ultralytics.", "torchvision.", "timm.")
"""Modules of network classes; objects of the classes become records of their state."""
STORAGE = re.compile(r"torch\.(cuda\.)?[A-Z][A-Za-z0-9]*Storage")
PLAIN_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class ForeignNameError(WeightsError):
    """A pickle requests a name that no checkpoint needs."""


@dataclass(frozen=True, eq=False)
class GlobalName:
    """A function or class named in a pickle (opcode GLOBAL)."""

    name: str


@dataclass(frozen=True, eq=False)
class PersistentId:
    """A reference to data outside the pickle (opcode PERSID): the type, key and size of a storage."""

    reference: Any


@dataclass(eq=False)
class ObjectRecord:
    """An object described in a pickle: the function to call, its arguments, and the object's state (opcodes REDUCE and BUILD)."""

    name: str
    arguments: tuple[Any, ...]
    state: dict[Any, Any] = field(default_factory=dict)


def read_pickle(location: str, stream: BytesIO) -> Any:
    """Return the content of the next pickle of a stream: plain values, `ObjectRecord`, `GlobalName` and `PersistentId`.

    Args:
        location: the file's URL, for messages.
        stream: bytes at the start of the pickle.

    Raises:
        ForeignNameError: the pickle requests a name that is not allowed.
        WeightsError: the pickle is truncated or damaged.
    """
    machine = _StackMachine(location)
    try:
        for opcode, argument, position in pickletools.genops(stream):
            machine.position = position or 0
            OPCODES[opcode.name](machine, argument)
        return machine.stack[-1]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{location}: found a pickle that breaks off or is damaged near byte {machine.position} "
            f"({type(error).__name__}: {reason}), expected a complete pickle; download or copy the file again"
        ) from error


class _StackMachine:
    """State of the pickle machine: the stack, the stacks below each mark, and the memo."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.position = 0
        self.stack: list[Any] = []
        self.stacks_below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError("nothing left on the stack")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def mark(self) -> None:
        self.stacks_below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """Return the items above the last mark and restore the stack below the mark."""
        items, self.stack = self.stack, self.stacks_below.pop()
        return items

    def push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        full_name = f"{module}.{name}"
        is_allowed = full_name in ALLOWED or full_name.startswith(ALLOWED_MODULES) or STORAGE.fullmatch(full_name)
        # A dotted name would be looked up inside a class or module, for any module part.
        if not is_allowed or not PLAIN_NAME.fullmatch(full_name) or not name.isidentifier():
            raise ForeignNameError(
                f"{self.location}: the file asks for {full_name[:200]!r}; nothing of it was run. "
                "Expected tensors, numbers, text and network classes; do not load this file with other programs"
            )
        self.stack.append(GlobalName(full_name))

    def reduce(self, function: Any, arguments: Any) -> None:
        """Push the result of a call: a value for the few functions in `SAFE_CALLS`, a record for all others."""
        if not isinstance(function, GlobalName) or not isinstance(arguments, tuple):
            raise TypeError("a call of something that is no name")
        evaluate = SAFE_CALLS.get(function.name)
        self.stack.append(evaluate(*arguments) if evaluate else ObjectRecord(function.name, arguments))

    def push_instance(self, module: str, name: str) -> None:
        arguments = tuple(self.pop_mark())
        self.push_name(module, name)
        self.reduce(self.stack.pop(), arguments)

    def build(self, instance: Any, state: Any) -> None:
        """Set the state of an object; the second item of a pair is the state of its slots."""
        for values in state if isinstance(state, tuple) else (state,):
            if isinstance(instance, ObjectRecord) and isinstance(values, dict):
                instance.state.update(values)
        self.stack.append(instance)

    def append_items(self, items: Iterable[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_dict_of_items(items))


def _dict_of_pairs(pairs: Iterable[Any] = ()) -> dict[Any, Any]:
    return {key: value for key, value in pairs if isinstance(key, KEYS)}


def _dict_of_items(items: list[Any]) -> dict[Any, Any]:
    """Return the dict of keys and values that alternate."""
    return _dict_of_pairs(zip(items[::2], items[1::2], strict=True))


def _push_object(machine: _StackMachine, items: list[Any]) -> None:
    machine.reduce(items[0], tuple(items[1:]))


def _refuse(machine: _StackMachine, _: Any) -> None:
    raise ValueError("an operation that no checkpoint needs")


SAFE_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict_of_pairs,
    "builtins.set": lambda items=(): list(items),
    "__builtin__.set": lambda items=(): list(items),
    **dict.fromkeys(PARAMETERS, lambda tensor, *_: tensor),
}
"""Calls that are evaluated here, without the function of that name; all others are recorded."""

VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
"""Opcodes that push their argument."""
Operation = Callable[[_StackMachine, Any], Any]
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
    "TUPLE": lambda m, a: m.push(tuple(m.pop_mark())),
    "LIST": lambda m, a: m.push(m.pop_mark()),
    "FROZENSET": lambda m, a: m.push(m.pop_mark()),
    "DICT": lambda m, a: m.push(_dict_of_items(m.pop_mark())),
    "APPEND": lambda m, a: m.append_items(m.pop(1)),
    "APPENDS": lambda m, a: m.append_items(m.pop_mark()),
    "ADDITEMS": lambda m, a: m.append_items(m.pop_mark()),
    "SETITEM": lambda m, a: m.set_items(list(m.pop(2))),
    "SETITEMS": lambda m, a: m.set_items(m.pop_mark()),
    "POP": lambda m, a: m.pop(1) if m.stack else m.pop_mark(),
    "POP_MARK": lambda m, a: m.pop_mark(),
    "DUP": lambda m, a: m.push(m.stack[-1]),
    "MEMOIZE": lambda m, a: m.memo.update({len(m.memo): m.stack[-1]}),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, a: m.memo.update({a: m.stack[-1]})),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, a: m.push(m.memo[a])),
    "GLOBAL": lambda m, a: m.push_name(*a.split(" ", 1)),
    "STACK_GLOBAL": lambda m, a: m.push_name(*m.pop(2)),
    "REDUCE": lambda m, a: m.reduce(*m.pop(2)),
    "NEWOBJ": lambda m, a: m.reduce(*m.pop(2)),
    "NEWOBJ_EX": lambda m, a: m.reduce(*m.pop(3)[:2]),
    "INST": lambda m, a: m.push_instance(*a.split(" ", 1)),
    "OBJ": lambda m, a: _push_object(m, m.pop_mark()),
    "BUILD": lambda m, a: m.build(*m.pop(2)),
    "PERSID": lambda m, a: m.push(PersistentId(a)),
    "BINPERSID": lambda m, a: m.push(PersistentId(*m.pop(1))),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"), _refuse),
}
"""Effect of each opcode on the machine; `a` is the opcode's argument."""
