"""The record types as data: fields in order, types and bounds, taken from the dataclasses themselves.

A type is ``"bool"``, ``"float"``, ``"scalar"`` (a setting's value), ``{"int": [low, high]}``, ``{"text": [low, high]}``,
``{"bin": [low, high]}``, ``{"list": type, "least": count, "most": count}``, ``{"tuple": [type, …]}``, ``{"optional": type}`` or
``{"of": name}``.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import refold.consumers.features
import refold.schemas.checks
import refold.schemas.events
import refold.schemas.health
import refold.schemas.state_tree  # noqa: F401
from refold.schemas import canonical
from refold.schemas.canonical import Scalar, Within


def kinds() -> dict[str, type]:
    """Return every record type, by number, and after them every structure that is only part of others, by name."""
    records = {kind.record.__name__: kind.record for kind in sorted(numbered().values(), key=lambda kind: kind.number)}
    found = dict(records)
    for kind in records.values():
        _collect(kind, found)
    return records | {name: found[name] for name in sorted(found.keys() - records.keys())}


def numbered() -> dict[type, Any]:
    """Return number and version of every record type of Refold's own."""
    return {kind: about for kind, about in canonical._by_type.items() if kind.__module__.startswith("refold.")}


def shapes() -> list[dict[str, Any]]:
    """Return every record type and structure as data; structures have no number."""
    about = numbered()
    found: list[dict[str, Any]] = []
    for name, kind in kinds().items():
        number = {"number": about[kind].number, "version": about[kind].version} if kind in about else {}
        found.append({"name": name, **number, "fields": _fields(kind)})
    return found


def _fields(kind: type) -> list[list[Any]]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return [[field.name, _tree(hints[field.name])] for field in dataclasses.fields(kind)]


def _collect(kind: type, into: dict[str, type]) -> None:
    into[kind.__name__] = kind
    for hint in typing.get_type_hints(kind, include_extras=True).values():
        for inner in _dataclasses(hint):
            if inner.__name__ not in into:
                _collect(inner, into)


def _dataclasses(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from _dataclasses(inner)


def _tree(hint: Any, bounds: Within | None = None) -> Any:
    """Return a field's type as data (see the head of this file)."""
    if typing.get_origin(hint) is Annotated:
        inner = next((item for item in hint.__metadata__ if isinstance(item, Within)), bounds)
        return _tree(hint.__origin__, inner)
    if hint == Scalar:
        return "scalar"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return {"optional": _tree(next(item for item in arguments if item is not type(None)), bounds)}
    if origin is tuple and arguments[-1] is Ellipsis:
        bounds = bounds or canonical.Within(0, canonical.MAX_ITEMS)
        return {"list": _tree(arguments[0]), "least": bounds.low, "most": bounds.high}
    if origin is tuple:
        return {"tuple": [_tree(item) for item in arguments]}
    if dataclasses.is_dataclass(hint):
        return {"of": typing.cast("type", hint).__name__}
    return _simple(hint, bounds)


def _simple(hint: Any, bounds: Within | None) -> Any:
    if hint in (float, bool):
        return hint.__name__
    usual = {int: Within(-(2**63), 2**63 - 1), str: Within(0, 4000), bytes: Within(0, canonical.MAX_RECORD_BYTES)}
    limit = bounds or usual[hint]
    return {{int: "int", str: "text", bytes: "bin"}[hint]: [limit.low, limit.high]}
