"""Changes of inputs: of bytes, and of msgpack values within them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random
from typing import Any

import msgpack

from tests.fuzz.decoder import Input

BOUNDARIES = (0, 1, 2, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 1 << 16, 1 << 17, 0x7FFFFFFF, 1 << 31, 0xFFFFFFFF, 1 << 62)
BOUNDARIES += (2**63 - 1, 1 << 63, 2**64 - 1)
BYTES = (0x00, 0x01, 0x7F, 0x80, 0x90, 0x9F, 0xA0, 0xC0, 0xC1, 0xC4, 0xC6, 0xC7, 0xCA, 0xCB, 0xCF, 0xD6, 0xDB, 0xDD, 0xDF, 0xFF)
MOST_BYTES = 1 << 17
"""Inputs do not grow beyond this by repeated doubling; size itself is tried by tests of their own."""

STRANGE: tuple[Any, ...] = (
    *(0, 1, -1, 127, 128, -128, -129, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)),
    *(0.0, -0.0, 1e308, -1e308, 5e-324, float("inf"), float("-inf"), float("nan")),
    *("", "x", "x" * 201, "x" * 4001, "a\nb", "\x1b[31m", "\x9b2J", "\u202egnp", "\u2028", "\ud800", "%s%n", "\U0001f600"),
    *(b"", b"\x00", bytes(8), bytes(32), bytes(64), b"\xff" * 33, bytes(65_537)),
    *(
        True,
        False,
        None,
        [],
        [[]],
        [None] * 17,
        [0] * 300,
        {},
        {"a": 1},
        {1: {2: 3}},
        msgpack.ExtType(5, b"x"),
        msgpack.Timestamp(0),
    ),
)


TEXTS = ("²", "٣", "\x00", "\n", "\x1b[2J", "\x9b", "\u202e", "\u2028", "~", ":", ",", "%", "%41", "[" * 3000, "{" * 3000)
TEXTS += (
    "9" * 5000,
    "1" * 19,
    "-1",
    "+1",
    "1_0",
    "1e999",
    "nan",
    "inf",
    "0x10",
    '"',
    "'",
    '"""',
    "=",
    "#",
    "\\",
    "\ufeff",
    " ",
    "\t",
)


def texts(value: Input, chance: Random) -> Input:
    """Put a word into a text, in the place of some of it, that readers of numbers, paths and tables stumble over."""
    text = value[0].decode(errors="replace")
    at = chance.randrange(len(text) + 1)
    until = min(len(text), at + chance.choice((0, 0, 1, 1, 2, 8)))
    return ((text[:at] + chance.choice(TEXTS) + text[until:]).encode(errors="replace"), *value[1:])


def deep(levels: int) -> Any:
    """Return an array in an array in an array …"""
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def mutated(value: Input, others: Sequence[Input], chance: Random, *, is_packed: bool) -> Input:
    """Change an input once."""
    if chance.random() < 0.04:
        return _of_parts(value, others, chance)
    at = chance.randrange(len(value))
    part = value[at]
    if is_packed and chance.random() < 0.6:
        changed = of_packed(part, chance)
    else:
        other = chance.choice(others)
        changed = _of_bytes(part, other[chance.randrange(len(other))], chance)
    return (*value[:at], changed[:MOST_BYTES], *value[at + 1 :])


def _of_parts(value: Input, others: Sequence[Input], chance: Random) -> Input:
    """Leave a part out, repeat it, exchange two, or take one from another input."""
    parts = list(value)
    at = chance.randrange(len(parts))
    match chance.randrange(4):
        case 0 if len(parts) > 1:
            del parts[at]
        case 1 if len(parts) < 12:
            parts.insert(chance.randrange(len(parts) + 1), parts[at])
        case 2:
            to = chance.randrange(len(parts))
            parts[at], parts[to] = parts[to], parts[at]
        case _:
            parts[at] = chance.choice(chance.choice(others))
    return tuple(parts)


def _of_bytes(part: bytes, other: bytes, chance: Random) -> bytes:
    if not part:
        return chance.randbytes(chance.randrange(1, 20))
    data = bytearray(part)
    # Heads and tables lie in front: half of the changes are made there.
    at = chance.randrange(min(len(data), 64) if chance.random() < 0.5 else len(data))
    length = min(len(data) - at, 1 + int(chance.expovariate(0.15)))
    match chance.randrange(9):
        case 0 | 1:
            data[at] ^= 1 << chance.randrange(8)
        case 2:
            data[at] = chance.choice(BYTES)
        case 3:
            del data[at : at + length]
        case 4:
            data[at:at] = chance.randbytes(length)
        case 5:
            data[at:at] = data[at : at + length]
        case 6:
            return bytes(data[:at])
        case 7:
            start = chance.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + length]
        case 8:
            number = chance.choice(BOUNDARIES) + chance.choice((0, 0, -1, 1, len(data)))
            form = chance.choice("<>") + chance.choice("HIQ")
            width = struct.calcsize(form)
            data[at : at + width] = struct.pack(form, number % (1 << 8 * width))
    return bytes(data)


def of_packed(part: bytes, chance: Random) -> bytes:
    """Change a value inside a msgpack part; one that is none is changed as bytes."""
    try:
        tree = msgpack.unpackb(part, use_list=True, raw=False, strict_map_key=False, unicode_errors="surrogatepass")
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        return _of_bytes(part, part, chance)
    holder = [tree]
    where: list[Any] = holder
    at = 0
    while isinstance(where[at], list) and where[at] and chance.random() < 0.8:
        where = where[at]
        at = chance.randrange(len(where))
    try:
        _change(where, at, tree, chance)
        packed: bytes = msgpack.packb(
            holder[0], use_bin_type=True, use_single_float=chance.random() < 0.03, unicode_errors="surrogatepass"
        )
    except (ValueError, OverflowError, RecursionError):
        return part
    return _longer_form(packed, chance) if chance.random() < 0.05 else packed


def _change(where: list[Any], at: int, tree: Any, chance: Random) -> None:
    found = where[at]
    match chance.randrange(8):
        case 0:
            where[at] = chance.choice(STRANGE)
        case 1 if len(where) > 1:
            del where[at]
        case 2:
            where.insert(at, found)
        case 3:
            to = chance.randrange(len(where))
            where[at], where[to] = where[to], where[at]
        case 4 if isinstance(found, int) and not isinstance(found, bool):
            where[at] = max(-(2**63), min(2**64 - 1, found + chance.choice((1, -1, 2, 256, -256, 1 << 32))))
        case 5 if isinstance(found, bytes) and found:
            where[at] = _of_bytes(found, found, chance)
        case 6 if isinstance(found, list):
            where[at] = found[: len(found) // 2] if chance.random() < 0.5 else (found * 2)[:5000]
        case 7 if chance.random() < 0.05:
            where[at] = deep(chance.choice((3, 60, 500)))
        case _:
            where[at] = _apart(chance.choice(tree)) if isinstance(tree, list) and tree else chance.choice(STRANGE)


def _apart(value: Any) -> Any:
    """Return a copy: a list that came to lie within itself would be packed down to the deepest level, in every branch."""
    if not isinstance(value, list):
        return value
    packed = msgpack.packb(value, use_bin_type=True, unicode_errors="surrogatepass")
    return msgpack.unpackb(packed, use_list=True, raw=False, strict_map_key=False, unicode_errors="surrogatepass")


def _longer_form(packed: bytes, chance: Random) -> bytes:
    """Write the first array or a small number with a longer head than it needs."""
    head = packed[0]
    if 0x90 <= head <= 0x9F:
        return bytes((0xDC, 0, head & 0x0F)) + packed[1:]
    at = chance.randrange(len(packed))
    return packed[:at] + b"\xcc" + packed[at:] if packed[at] < 0x80 else packed
