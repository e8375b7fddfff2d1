"""Canonical msgpack: one value, one sequence of bytes.

A record is the array ``[number, version, field, field, …]``; a record inside another is the array of its fields alone, governed
by the outer version. Only nil, bool, int, float64, str, bin and array occur; maps and extensions are refused. Decoding
re-encodes what it read and compares, so that no two byte strings mean the same record and a digest of the bytes is a digest of
the record.

Bounds: `MAX_RECORD_BYTES` a record, `MAX_ITEMS` an array, so decoding takes at most about 64 times the record's size in memory.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import types
import typing
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast, overload

import msgpack

from refold.schemas.errors import InvalidRecord

MAX_RECORD_BYTES = 1_000_000
MAX_ITEMS = 1 << 16

T = TypeVar("T")
U = TypeVar("U")
Fields = tuple[Any, ...]
Convert = Callable[[Any], Any]
Narrow = Callable[[Fields], Fields | None]


@dataclass(frozen=True, slots=True)
class Within:
    """Bounds of a value: an int's own, else a length (characters, bytes, items)."""

    low: int
    high: int


Uint = Annotated[int, Within(0, 2**63 - 1)]
Int = Annotated[int, Within(-(2**63), 2**63 - 1)]
Small = Annotated[int, Within(-128, 127)]
Name = Annotated[str, Within(1, 200)]
Text = Annotated[str, Within(0, 4000)]
Digest = Annotated[bytes, Within(32, 32)]
Blob = Annotated[bytes, Within(0, MAX_RECORD_BYTES)]
Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one record class is written."""

    number: int
    version: int
    record: type
    to_wire: Convert
    from_wire: Convert
    upcasts: dict[int, Callable[[Fields], Fields]]
    downcasts: dict[int, Narrow]

    def narrowed(self, version: int, fields: Fields) -> Fields | None:
        """Return the fields of a version as those of the one before it, where that one holds all that they say."""
        narrow = self.downcasts.get(version)
        return narrow(fields) if narrow else None


_by_number: dict[int, _Kind] = {}
_by_type: dict[type, _Kind] = {}


def record(
    number: int,
    *,
    version: int = 1,
    upcasts: dict[int, Callable[[Fields], Fields]] | None = None,
    downcasts: dict[int, Narrow] | None = None,
) -> Callable[[type[T]], type[T]]:
    """Give a frozen dataclass its place on the wire.

    Parameters
    ----------
    number
        The type's number, for ever.
    version
        The version written. A reader takes every version from 1 to this one.
    upcasts
        For each older version, a function from its fields to those of the next.
    downcasts
        For versions that add to one that is hashed or signed: a function from their fields to those of the version before, or
        None where that cannot hold them. Such a record is written in the oldest version that holds it, and refused in any
        other, so that its bytes, and with them its digest, are the same whichever program writes it again.
    """

    def register(cls: type[T]) -> type[T]:
        if number in _by_number:
            raise TypeError(f"record number {number} is taken by {_by_number[number].record.__name__}")
        steps = upcasts or {}
        if sorted(steps) != list(range(1, version)):
            raise TypeError(f"{cls.__name__} version {version} needs an upcast from each version before it")
        to_wire, from_wire = _dataclass_converters(cls)
        kind = _Kind(number, version, cls, to_wire, from_wire, steps, downcasts or {})
        _by_number[number] = kind
        _by_type[cls] = kind
        return cls

    return register


def number_of(cls: type) -> int:
    """Return the number of a record type."""
    return _by_type[cls].number


def version_of(cls: type) -> int:
    """Return the version of a record type that is written today."""
    return _by_type[cls].version


def encode(value: object) -> bytes:
    """Return the record's canonical bytes.

    Raises
    ------
    InvalidRecord
        A field is outside its bounds (``form``), or the bytes exceed `MAX_RECORD_BYTES` (``too-large``).
    """
    kind = _by_type[type(value)]
    version, fields = kind.version, kind.to_wire(value)
    while (narrower := kind.narrowed(version, fields)) is not None:
        version, fields = version - 1, narrower
    data = _pack((kind.number, version, *fields))
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidRecord("too-large", f"a {kind.record.__name__} of {len(data):,} bytes exceeds {MAX_RECORD_BYTES:,}")
    return data


@overload
def decode(data: bytes | memoryview) -> Any: ...
@overload
def decode(data: bytes | memoryview, one: type[T], /) -> T: ...
@overload
def decode(data: bytes | memoryview, one: type[T], other: type[U], /) -> T | U: ...
def decode(data: bytes | memoryview, *expected: type[Any]) -> Any:
    """Return the record that these bytes are; one of the `expected` types, or any if none are named.

    Raises
    ------
    InvalidRecord
        The bytes are not a canonical record of an expected type. Reasons: ``too-large``, ``form``, ``not-canonical``,
        ``unknown-type``, ``unknown-version``.
    """
    number, version, *fields = _unpack_record(data)
    kind = _by_number.get(number)
    if kind is None or (expected and kind.record not in expected):
        raise InvalidRecord("unknown-type", f"record number {number} is not expected here")
    if not 1 <= version <= kind.version:
        raise InvalidRecord("unknown-version", f"{kind.record.__name__} version {version} is newer than {kind.version}")
    values: Fields = tuple(fields)
    try:
        if kind.narrowed(version, values) is not None:
            raise InvalidRecord(
                "not-canonical", f"a {kind.record.__name__} that version {version - 1} holds is written in that"
            )
        for older in range(version, kind.version):
            values = kind.upcasts[older](values)
        return kind.from_wire(values)
    except InvalidRecord:
        raise
    except (TypeError, ValueError, OverflowError, KeyError, IndexError) as error:
        raise InvalidRecord("form", f"not a {kind.record.__name__}: {error}") from error


def record_type(data: bytes | memoryview) -> type:
    """Return the class of an encoded record, having checked its outer form only.

    Raises
    ------
    InvalidRecord
        As `decode`.
    """
    number = _unpack_record(data)[0]
    if number not in _by_number:
        raise InvalidRecord("unknown-type", f"record number {number} is not known")
    return _by_number[number].record


def _unpack_record(data: bytes | memoryview) -> Fields:
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidRecord("too-large", f"{len(data):,} bytes exceed {MAX_RECORD_BYTES:,}")
    try:
        value = msgpack.unpackb(
            data, use_list=False, raw=False, max_array_len=MAX_ITEMS, max_map_len=0, max_ext_len=0, strict_map_key=True
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise InvalidRecord("form", f"not msgpack within bounds: {type(error).__name__}") from error
    well_formed = type(value) is tuple and len(value) >= 2 and type(value[0]) is int and type(value[1]) is int
    if not well_formed:
        raise InvalidRecord("form", "not an array that begins with a type's number and version")
    try:
        canonical = _pack(value) == data
    except (ValueError, RecursionError, OverflowError) as error:
        raise InvalidRecord("form", f"cannot be written again: {type(error).__name__}") from error
    if not canonical:
        raise InvalidRecord("not-canonical", "the same value has shorter or other bytes")
    return cast(Fields, value)


def _pack(value: object) -> bytes:
    return cast(bytes, msgpack.packb(value, use_bin_type=True, use_single_float=False))


def _dataclass_converters(cls: type) -> tuple[Convert, Convert]:
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    pairs = [_converters(hints[name]) for name in names]
    writers, readers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    values_of = operator.attrgetter(*names) if len(names) > 1 else lambda value: (getattr(value, names[0]),)

    # Records are coded by the thousand: what is wrong with one is looked for only once something is.
    def to_wire(value: Any) -> Fields:
        items = values_of(value)
        try:
            return tuple([write(item) for write, item in zip(writers, items, strict=True)])
        except InvalidRecord:
            raise
        except (TypeError, ValueError) as error:
            raise _misformed(names, writers, items) from error

    def from_wire(fields: Any) -> Any:
        if type(fields) is not tuple or len(fields) != len(names):
            raise ValueError(f"{cls.__name__} has {len(names)} fields")
        try:
            values = [read(item) for read, item in zip(readers, fields, strict=True)]
        except InvalidRecord:
            raise
        except (TypeError, ValueError) as error:
            raise _misformed(names, readers, fields) from error
        return cls(*values)

    return to_wire, from_wire


def _misformed(names: list[str], converters: list[Convert], items: Fields) -> InvalidRecord:
    """Return the error that names the first field that cannot be converted."""
    for name, convert, item in zip(names, converters, items, strict=True):
        try:
            convert(item)
        except (TypeError, ValueError) as error:
            return InvalidRecord("form", f"{name}: {error}")
    raise AssertionError("every field can be converted")


def _converters(hint: Any) -> tuple[Convert, Convert]:
    """Return (to wire, from wire) for a type."""
    bounds = None
    if typing.get_origin(hint) is Annotated:
        bounds = next((item for item in hint.__metadata__ if isinstance(item, Within)), None)
        hint = hint.__origin__
    if hint == Scalar:
        return _scalar, _scalar
    origin = typing.get_origin(hint)
    if origin is types.UnionType or origin is typing.Union:
        return _optional(hint, bounds)
    if origin is tuple:
        return _tuple(hint, bounds)
    if dataclasses.is_dataclass(hint):
        return _dataclass_converters(cast(type, hint))
    check = _checker(hint, bounds)
    return check, check


def _optional(hint: Any, bounds: Within | None) -> tuple[Convert, Convert]:
    inner = [item for item in typing.get_args(hint) if item is not type(None)]
    if len(inner) != 1:
        raise TypeError(f"only X | None can be written, not {hint}")
    annotated = Annotated[inner[0], bounds] if bounds else inner[0]
    write, read = _converters(annotated)
    return (lambda v: None if v is None else write(v)), (lambda v: None if v is None else read(v))


def _tuple(hint: Any, bounds: Within | None) -> tuple[Convert, Convert]:
    items = typing.get_args(hint)
    if len(items) == 2 and items[1] is Ellipsis:
        write, read = _converters(items[0])
        bounds = bounds or Within(0, MAX_ITEMS)
        return _each(write, bounds), _each(read, bounds)
    pairs = [_converters(item) for item in items]
    return _fixed([pair[0] for pair in pairs]), _fixed([pair[1] for pair in pairs])


def _each(convert: Convert, bounds: Within) -> Convert:
    low, high = bounds.low, bounds.high

    def run(values: Any) -> Fields:
        if type(values) is tuple and low <= len(values) <= high:
            return tuple([convert(value) for value in values])
        raise _out_of(values, tuple, bounds)

    return run


def _fixed(converters: list[Convert]) -> Convert:
    if len(converters) == 2:
        return _pair(*converters)

    def run(values: Any) -> Fields:
        if type(values) is not tuple or len(values) != len(converters):
            raise TypeError(f"expected a tuple of {len(converters)}")
        return tuple([convert(value) for convert, value in zip(converters, values, strict=True)])

    return run


def _pair(first: Convert, second: Convert) -> Convert:
    """Names with their values are most of what a heartbeat is made of."""

    def run(values: Any) -> Fields:
        if type(values) is not tuple or len(values) != 2:
            raise TypeError("expected a tuple of 2")
        return first(values[0]), second(values[1])

    return run


def _checker(hint: Any, bounds: Within | None) -> Convert:
    if hint is int:
        return _integer(bounds) if bounds else _any_integer
    if hint is float:
        return _finite
    if hint is bool:
        return lambda v: _exactly(v, bool)
    if hint is str:
        return _clean_text(bounds) if bounds else _any_text
    if hint is bytes:
        return _bytes(bounds or Within(0, MAX_RECORD_BYTES))
    raise TypeError(f"no wire form for {hint}")


def _exactly(value: Any, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, not {type(value).__name__}")
    return value


def _integer(bounds: Within) -> Convert:
    low, high = bounds.low, bounds.high

    def check(value: Any) -> int:
        if type(value) is int and low <= value <= high:
            return value
        raise ValueError(f"{_exactly(value, int)} is outside {low} … {high}")

    return check


def _bytes(bounds: Within) -> Convert:
    low, high = bounds.low, bounds.high

    def check(value: Any) -> bytes:
        if type(value) is bytes and low <= len(value) <= high:
            return value
        raise _out_of(value, bytes, bounds)

    return check


def _finite(value: Any) -> float:
    if type(value) is float and math.isfinite(value):
        return value
    _exactly(value, float)
    raise ValueError("not a finite number")


def _out_of(value: Any, kind: type, bounds: Within) -> Exception:
    """Return what is wrong with a value that is not of this type, or not of a length within bounds."""
    if not isinstance(value, Sized) or type(value) is not kind:
        return TypeError(f"expected {kind.__name__}, not {type(value).__name__}")
    return ValueError(f"length {len(value)} is outside {bounds.low} … {bounds.high}")


def _clean_text(bounds: Within) -> Convert:
    """Refuse control characters, so that no name can forge a line of a log or move a terminal's cursor."""
    low, high = bounds.low, bounds.high

    def check(value: Any) -> str:
        if type(value) is not str or not low <= len(value) <= high:
            raise _out_of(value, str, bounds)
        if not value.isprintable():
            raise ValueError("holds characters that do not print")
        return value

    return check


_any_integer = _integer(Within(-(2**63), 2**63 - 1))
_any_text = _clean_text(Within(0, 4000))


def _scalar(value: Any) -> Any:
    kind = type(value)
    if kind is bool:
        return value
    if kind is int:
        return _any_integer(value)
    if kind is float:
        return _finite(value)
    return _any_text(value)
