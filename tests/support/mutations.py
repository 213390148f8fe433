"""Change bytes at random, as rot and attackers do: bits, lengths, numbers, and values of JSON.

The same seed makes the same changes.
"""

import json
import random
import re
from collections.abc import Callable
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")),
    *(2**31, -(2**31), 2**63, 2**64, 10**12, 10**30, 10**300),
    *("", " ", "0", "-1", "nan", "..", "../../etc/passwd", "/etc/passwd", "s3://other/key", "a\0b", "\x1b[31mred", "line\nline", "\ud800"),
    *([], {}, [None], [[]], {"": {}}, [0] * 1000, "x" * 10_000, [[[[[[[[]]]]]]]]),
)
"""Values that a reader may not expect."""
ODD_TEXTS = (
    b"",
    b"-1",
    b"0",
    b"1e999",
    b"nan",
    b"inf",
    b"99999999999999999999",
    b"9" * 5000,
    b"../..",
    b"\x00",
    b"\xff\xfe",
    b"&a;",
    b"*a",
)
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
MAX_BYTES = 1 << 17
"""Longest text."""
NESTING = 200_000
"""Depth of nested lists that no parser may follow by recursion."""


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change a few bytes anywhere."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        rng.choice(BYTE_CHANGES)(changed, rng)
    return bytes(changed)


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _delete(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.choice((1, 2, 4, 100))]


def _insert(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = rng.randbytes(rng.choice((1, 2, 8, 64)))


def _repeat(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = data[start : start + rng.choice((1, 8, 100))] * rng.choice((1, 2, 50))


def _set_number(data: bytearray, rng: random.Random) -> None:
    size = rng.choice((1, 2, 4, 8))
    if len(data) >= size:
        start = rng.randrange(len(data) - size + 1)
        number = rng.choice(INTERESTING) % 256**size
        data[start : start + size] = number.to_bytes(size, rng.choice(("little", "big")))


BYTE_CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _flip,
    _flip,
    _truncate,
    _delete,
    _insert,
    _repeat,
    _set_number,
)


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    """Replace words and numbers, drop or repeat lines, or change bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 5))):
        words = list(re.finditer(rb"[\w.+-]+", data))
        lines = data.splitlines(keepends=True)
        if words and rng.random() < 0.7:
            word = rng.choice(words)
            data = data[: word.start()] + rng.choice(ODD_TEXTS) + data[word.end() :]
        elif lines:
            number = rng.randrange(len(lines))
            lines[number : number + 1] = lines[number : number + 1] * rng.choice((0, 2, 100))
            data = b"".join(lines)[:MAX_BYTES]
    return data


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replace or remove values of a JSON document, nest it too deep, or change its bytes."""
    kind = rng.random()
    if kind < 0.15:
        return mutate_bytes(data, rng)
    content = json.loads(data)
    if kind < 0.16:
        return b'{"a":' * NESTING
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(content))
        if places:
            _change_value(*rng.choice(places), rng)
    return json.dumps(content).encode("utf-8", "surrogatepass")


def _places(content: Any) -> Any:
    """Yield each container with each of its keys."""
    for key, value in list(content.items() if isinstance(content, dict) else enumerate(content)):
        yield content, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _change_value(container: Any, key: Any, rng: random.Random) -> None:
    value, kind = container[key], rng.random()
    if kind < 0.1:
        del container[key]
    elif kind < 0.2 and isinstance(value, list) and value:
        container[key] = value * 2
    elif kind < 0.35 and isinstance(value, int | float) and not isinstance(value, bool):
        container[key] = rng.choice((-value, value + 1, value - 1, value * 1_000_000, value / 2))
    elif kind < 0.45 and isinstance(container, dict):
        container[rng.choice(("", "x", "../x", "\x1b[0m"))] = value
    else:
        container[key] = json.loads(json.dumps(rng.choice(ODD_VALUES)))
