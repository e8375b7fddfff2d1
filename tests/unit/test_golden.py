"""Golden bytes: what was written once is read for ever, and today's writer writes the same.

``tests/unit/golden/<Type>.v<version>.hex`` holds one specimen of each record type and version. After adding a type or version::

    python tests/unit/test_golden.py

writes the files that are not there yet, and never touches those that are. A change of a type that makes this test fail needs a
new version with an upcast (CONTRIBUTING), not a new golden file.
"""

import dataclasses
import math
import types
import typing
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

import refold.consumers.features
import refold.schemas.checks
import refold.schemas.commits
import refold.schemas.events
import refold.schemas.health
import refold.schemas.state_tree  # noqa: F401
from refold.schemas import canonical
from refold.schemas.canonical import Name, Scalar, Uint, Within, decode, encode, record, version_of
from refold.schemas.errors import InvalidRecord
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.payload import Payload, PlaceHint, describe
from refold.schemas.plans import PlanPolicy, Schedule
from refold.schemas.requirements import Requirement

FOLDER = Path(__file__).parent / "golden"
KINDS = sorted((kind for kind in canonical._by_type if kind.__module__.startswith("refold.")), key=canonical.number_of)


def specimen(kind: type) -> Any:
    """Return a value of a record type in which no two fields are alike, so that swapped ones show."""
    return _of(kind, kind.__name__)


def _of(hint: Any, path: str) -> Any:
    bounds = None
    if typing.get_origin(hint) is Annotated:
        bounds = next((item for item in hint.__metadata__ if isinstance(item, Within)), None)
        hint = hint.__origin__
    if hint == Scalar:
        return (True, 7, 0.125, path)[zlib.crc32(path.encode()) % 4]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _of(Annotated[inner[0], bounds] if bounds else inner[0], path)
    if origin is tuple:
        items = (inner[0],) * 2 if inner[-1] is Ellipsis else inner
        return tuple(_of(item, f"{path}.{index}") for index, item in enumerate(items))
    if dataclasses.is_dataclass(hint):
        return _record(typing.cast("type", hint), path)
    return _simple(hint, bounds, path)


def _simple(hint: type, bounds: Within | None, path: str) -> Any:
    draw = zlib.crc32(path.encode())
    low, high = (bounds.low, bounds.high) if bounds else (0, 200)
    if hint is int:
        return low + draw % (min(high, 2**40) - low + 1)
    if hint is float:
        return draw / 2**16
    if hint is bool:
        return bool(draw % 2)
    if hint is str:
        return path[-max(low, min(high, 24)) :]
    size = max(low, min(high, 12))
    return (draw.to_bytes(4, "big") * math.ceil(size / 4))[:size]


def _record(kind: type, path: str) -> Any:
    """Return a record; those whose fields must agree with each other are given."""
    if kind is TensorSchema:
        return TensorSchema(path[-24:], "float32", (3, 5), 11, "mean")
    if kind is ModelSchema:
        return ModelSchema((_record(TensorSchema, "w"), TensorSchema("n", "int64", (), 0, "max")))
    if kind is Payload:
        return describe([path.encode(), b"second"]).at(PlaceHint(3, 14, 15))
    if kind is Schedule:
        return Schedule(0.5, 0.25, 3, 0.125)
    hints = typing.get_type_hints(kind, include_extras=True)
    given = {Requirement: {"comparison": ">="}, PlanPolicy: {"discount": "root"}}.get(kind, {})
    others = [field.name for field in dataclasses.fields(kind) if field.name not in given]
    return kind(**{name: _of(hints[name], f"{path}.{name}") for name in others}, **given)


def file_of(kind: type, version: int) -> Path:
    return FOLDER / f"{kind.__name__}.v{version}.hex"


def golden(kind: type, version: int) -> bytes:
    return bytes.fromhex(file_of(kind, version).read_text())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_todays_writer_writes_the_golden_bytes(kind: type) -> None:
    assert encode(specimen(kind)).hex() == golden(kind, version_of(kind)).hex()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_todays_reader_reads_every_version_there_ever_was(kind: type) -> None:
    for version in range(1, version_of(kind) + 1):
        assert isinstance(decode(golden(kind, version)), kind)
    assert decode(golden(kind, version_of(kind))) == specimen(kind)


def test_no_golden_file_is_of_a_type_that_is_gone() -> None:
    known = {file_of(kind, version) for kind in KINDS for version in range(1, version_of(kind) + 1)}
    assert set(FOLDER.glob("*.hex")) == known


def test_a_field_added_without_a_new_version_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker can fail: the same two comparisons, on a type that somebody changed."""
    monkeypatch.setattr(canonical, "_by_number", dict(canonical._by_number))
    monkeypatch.setattr(canonical, "_by_type", dict(canonical._by_type))

    @dataclass(frozen=True, slots=True)
    class Toy:
        name: Name

    record(9001)(Toy)
    before = encode(specimen(Toy))
    del canonical._by_number[9001]

    @dataclass(frozen=True, slots=True)
    class Grown:
        name: Name
        count: Uint

    record(9001)(Grown)
    assert encode(specimen(Grown)) != before
    with pytest.raises(InvalidRecord):
        decode(before)


def write_missing() -> list[Path]:
    """Write the golden files that are not there yet, of today's versions, and return them."""
    FOLDER.mkdir(exist_ok=True)
    missing = [kind for kind in KINDS if not file_of(kind, version_of(kind)).exists()]
    for kind in missing:
        file_of(kind, version_of(kind)).write_text(encode(specimen(kind)).hex() + "\n")
    return [file_of(kind, version_of(kind)) for kind in missing]


if __name__ == "__main__":
    print("\n".join(map(str, write_missing())))
