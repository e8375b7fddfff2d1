"""Records as JSON: every field by its name, bytes as hexadecimal digits, nested records as objects, tuples as lists.

Bytes that nobody reads as digits (inline payloads, packed features, whole manifests) are given as their length, under the
field's name with ``_bytes``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from refold.bus.ledger import Entry
from refold.schemas.checks import Checked
from refold.schemas.payload import Payload

_LENGTH_ONLY: dict[type, frozenset[str]] = {Payload: frozenset({"inline"}), Checked: frozenset({"features", "manifest"})}


def to_json(record: Any) -> dict[str, Any]:
    """Return a record as what `json.dumps` takes.

    Raises
    ------
    TypeError
        A field holds something that no record may hold.
    """
    lengths = _LENGTH_ONLY.get(type(record), frozenset())
    found: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name in lengths:
            found[f"{field.name}_bytes"] = None if value is None else len(value)
        else:
            found[field.name] = _value(value)
    return found


def event_json(log: str, entry: Entry, index: int, event: Any) -> dict[str, Any]:
    """Return an event of a log with where it lies: ``log``, ``index``, ``offset``, ``commit``, ``time_ms``, ``type``.

    ``time_ms`` is the commit's, which is what orders lines of one log.
    """
    place = {
        "log": log,
        "index": index,
        "offset": entry.offset,
        "commit": entry.hash.hex(),
        "time_ms": entry.commit.time_ms,
        "type": type(event).__name__,
    }
    return {**place, **{name: value for name, value in to_json(event).items() if name not in place}}


def safe_text(text: str) -> str:
    """Return text with every character that does not print written as an escape, so that it cannot move a terminal's cursor."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON whose every character prints, line breaks of `indent` aside; it is read as the same value."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    """Return a character as JSON's own escape; such ones occur inside its strings alone."""
    return json.dumps(character)[1:-1]


def _value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, tuple | list):
        return [_value(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str):
        return safe_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a record")
