"""Every record type: round trips, one value one byte string, and nothing but `InvalidRecord` for anything else."""

import dataclasses
import math
import struct
import tracemalloc
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import msgpack
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import refold.consumers.features  # registers the features' record
import refold.schemas.checks
import refold.schemas.commits
import refold.schemas.events  # noqa: F401
from refold.schemas import canonical
from refold.schemas.canonical import (
    MAX_ITEMS,
    MAX_RECORD_BYTES,
    Name,
    Scalar,
    Text,
    Uint,
    Within,
    decode,
    encode,
    number_of,
    record,
    record_type,
    version_of,
)
from refold.schemas.checks import Alert, EnrolClient
from refold.schemas.errors import InvalidRecord
from refold.schemas.model import INTEGER_DTYPES, ModelSchema, TensorSchema
from refold.schemas.payload import Payload, chunk_digest, describe, payload_root
from refold.schemas.plans import DISCOUNTS
from refold.schemas.reasons import REASONS
from refold.schemas.requirements import COMPARISONS

LONGEST = 40
"""Longest text, bytes or tuple that is drawn."""

PRINTABLE = st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" ")


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register records of its own."""
    monkeypatch.setattr(canonical, "_by_number", dict(canonical._by_number))
    monkeypatch.setattr(canonical, "_by_type", dict(canonical._by_type))


def text(bounds: Within) -> st.SearchStrategy[str]:
    drawn = st.text(PRINTABLE, min_size=bounds.low, max_size=min(bounds.high, LONGEST))
    return drawn.filter(lambda value: not value or value.isprintable())


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Return the values that a field of this type may have."""
    bounds = None
    if typing.get_origin(hint) is Annotated:
        bounds = next((item for item in hint.__metadata__ if isinstance(item, Within)), None)
        hint = hint.__origin__
    if hint == Scalar:
        return st.one_of(st.booleans(), whole(None), floats(), text(Within(0, LONGEST)))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (one,) = [item for item in inner if item is not type(None)]
        return st.none() | values_of(Annotated[one, bounds] if bounds else one)
    if origin is tuple:
        return many(inner, bounds)
    if dataclasses.is_dataclass(hint):
        return records_of(typing.cast("type", hint))
    simple = {
        int: lambda: whole(bounds),
        float: floats,
        bool: st.booleans,
        str: lambda: text(bounds or Within(0, LONGEST)),
        bytes: lambda: blobs(bounds or Within(0, 64)),
    }
    return simple[hint]()


def blobs(bounds: Within) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=bounds.low, max_size=min(bounds.high, max(64, bounds.low)))


def many(inner: tuple[Any, ...], bounds: Within | None) -> st.SearchStrategy[tuple[Any, ...]]:
    if len(inner) == 2 and inner[1] is Ellipsis:
        most = min((bounds or Within(0, 3)).high, 3)
        return st.lists(values_of(inner[0]), min_size=(bounds or Within(0, 0)).low, max_size=most).map(tuple)
    return st.tuples(*map(values_of, inner))


def whole(bounds: Within | None) -> st.SearchStrategy[int]:
    low, high = (bounds.low, bounds.high) if bounds else (-(2**63), 2**63 - 1)
    near = st.integers(low, high)
    return near | st.sampled_from([edge for edge in (low, high, 0, 127, 128, 255, 256, 2**32) if low <= edge <= high])


def floats() -> st.SearchStrategy[float]:
    return st.floats(allow_nan=False, allow_infinity=False)


def tensors() -> st.SearchStrategy[TensorSchema]:
    shapes = st.lists(st.integers(0, 50), max_size=4).map(tuple)
    names = text(Within(1, LONGEST))
    of_floats = st.builds(TensorSchema, names, st.just("float32"), shapes, st.integers(-100, 40), st.just("mean"))
    kinds = (names, st.sampled_from(INTEGER_DTYPES), shapes, st.just(0), st.sampled_from(("max", "sum", "last")))
    return of_floats | st.builds(TensorSchema, *kinds)


# Types whose fields must agree with each other, which no type hint can say.
SPECIAL: dict[type, st.SearchStrategy[Any]] = {
    TensorSchema: tensors(),
    ModelSchema: st.lists(tensors(), min_size=1, max_size=4, unique_by=lambda t: t.name).map(
        lambda found: ModelSchema(tuple(found))
    ),
    Payload: st.lists(st.binary(max_size=50), max_size=3).flatmap(
        lambda chunks: st.sampled_from((describe(chunks), describe(chunks, inline_bytes=-1)))
    ),
}


def records_of(cls: type) -> st.SearchStrategy[Any]:
    if cls in SPECIAL:
        return SPECIAL[cls]
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: values_of(hints[field.name]) for field in dataclasses.fields(cls)}
    if "every" in fields:  # A schedule changes every one round or more.
        fields["every"] = st.integers(1, 2**63 - 1)
    for name, words in (("comparison", COMPARISONS), ("discount", DISCOUNTS)):
        if name in fields:
            fields[name] = st.sampled_from(sorted(words))
    return st.builds(cls, **fields)


KINDS = sorted(canonical._by_type, key=number_of)
ANY_RECORD = st.sampled_from(KINDS).flatmap(records_of)


def refused(data: bytes) -> str:
    with pytest.raises(InvalidRecord) as caught:
        decode(data)
    assert caught.value.reason in REASONS
    return caught.value.reason


def taken_or_refused(data: bytes) -> object | None:
    """Decode; whatever is wrong must be an `InvalidRecord` with a known reason."""
    try:
        found: object = decode(data)
    except InvalidRecord as error:
        found, reason = None, error.reason
    else:
        return found
    assert reason in REASONS
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=25)
def test_a_record_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    value = data.draw(records_of(kind))
    written = encode(value)
    assert decode(written) == value
    assert decode(memoryview(written), kind) == value
    assert record_type(written) is kind
    assert encode(decode(written)) == written


def test_every_event_has_a_number_of_its_own_and_a_place_in_the_registry() -> None:
    numbers = [number_of(kind) for kind in KINDS]
    assert len(set(numbers)) == len(numbers) > 25
    assert all(version_of(kind) >= 1 for kind in KINDS)


@given(ANY_RECORD, st.data())
@settings(max_examples=150)
def test_bytes_that_were_changed_are_refused_or_another_record_that_is_just_as_canonical(
    value: object, data: st.DataObject
) -> None:
    written = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(written) - 1))
        match data.draw(st.sampled_from(("flip", "cut", "insert", "repeat"))):
            case "flip":
                written[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del written[place : place + data.draw(st.integers(1, 9))]
            case "insert":
                written[place:place] = data.draw(st.binary(min_size=1, max_size=9))
            case "repeat":
                written[place:place] = written[place : place + 9]
        assume(written)
    found = taken_or_refused(bytes(written))
    if found is not None:
        assert encode(found) == bytes(written), "two byte strings mean one record"


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_f30_no_bytes_at_all_do_more_than_be_refused(data: bytes) -> None:
    taken_or_refused(data)


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=40,
)


@given(st.sampled_from(KINDS).map(number_of), st.lists(SHAPES, max_size=20))
@settings(max_examples=300)
def test_f30_any_msgpack_in_the_place_of_the_fields_is_refused(number: int, fields: list[object]) -> None:
    taken_or_refused(msgpack.packb([number, 1, *fields], use_bin_type=True))


@given(ANY_RECORD, st.integers(0, 30), SHAPES)
@settings(max_examples=200)
def test_f30_one_field_of_another_kind_is_refused(value: object, place: int, other: object) -> None:
    fields = list(msgpack.unpackb(encode(value), use_list=False))
    fields[2 + place % max(1, len(fields) - 2) if len(fields) > 2 else 1] = other
    found = taken_or_refused(msgpack.packb(fields, use_bin_type=True))
    assert found is None or encode(found) == msgpack.packb(fields, use_bin_type=True)


def packed(*parts: bytes) -> bytes:
    return b"".join(parts)


ENROL = EnrolClient("ward-7", bytes(32))
HEAD = bytes([0x94, 80, 1])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "form"),
        (b"\xc0", "form"),
        (b"\x90", "form"),
        (b"\x91\x50", "form"),
        (b"\x92\xc3\x01", "form"),
        (b"\x92\xcd\x7f\xff\x01", "unknown-type"),
        (encode(ENROL)[:-1], "form"),
        (encode(ENROL) + b"\xc0", "form"),
        (encode(ENROL) * 2, "form"),
        (encode(ENROL).replace(b"\x94\x50\x01", b"\x94\x50\x02"), "unknown-version"),
        (encode(ENROL).replace(b"\x94\x50\x01", b"\x94\x50\x00"), "unknown-version"),
        (encode(ENROL).replace(b"\x94\x50\x01", b"\x94\x50\xff"), "unknown-version"),
        (encode(ENROL).replace(b"\x94\x50\x01", b"\x95\x50\x01"), "form"),
        (b"\x95" + encode(ENROL)[1:] + b"\xc0", "form"),
    ],
)
def test_f30_a_record_with_a_wrong_outside_has_its_own_reason(data: bytes, reason: str) -> None:
    assert refused(data) == reason


def test_a_record_that_is_not_expected_here_is_refused() -> None:
    with pytest.raises(InvalidRecord) as caught:
        decode(encode(ENROL), Alert)
    assert caught.value.reason == "unknown-type"
    with pytest.raises(InvalidRecord):
        record_type(b"\x92\xcd\x7f\xff\x01")


@pytest.mark.parametrize(
    "data",
    [
        HEAD.replace(b"\x50", b"\xcc\x50") + encode(ENROL)[3:],  # 80 in two bytes
        HEAD.replace(b"\x50", b"\xcf" + bytes(7) + b"\x50") + encode(ENROL)[3:],  # in nine
        HEAD.replace(b"\x50", b"\xd0\x50") + encode(ENROL)[3:],  # signed
        b"\xdc\x00\x04" + encode(ENROL)[1:],  # a short array with a long head
        HEAD + b"\xd9\x06ward-7" + encode(ENROL)[10:],  # a short text with a long head
        HEAD + encode(ENROL)[3:10] + b"\xc5\x00\x20" + bytes(32),  # the same for bytes
    ],
)
def test_f30_a_value_written_otherwise_than_shortest_is_not_canonical(data: bytes) -> None:
    assert refused(data) == "not-canonical"


def test_f30_a_float_in_four_bytes_is_not_canonical() -> None:
    from refold.schemas.plans import Schedule

    written = encode(Schedule(0.5, 0.5, 1, 0.0))
    short = written.replace(struct.pack(">Bd", 0xCB, 0.5), struct.pack(">Bf", 0xCA, 0.5))
    assert short != written
    assert refused(short) == "not-canonical"


def test_f33_numbers_that_are_none_are_refused_and_minus_zero_is_kept() -> None:
    from refold.schemas.plans import Schedule

    written = encode(Schedule(0.5, 0.5, 1, 0.0))
    for odd in (math.nan, math.inf, -math.inf):
        assert refused(written.replace(struct.pack(">d", 0.5), struct.pack(">d", odd), 1)) == "form"
    negative = typing.cast("Schedule", decode(written.replace(struct.pack(">d", 0.0), struct.pack(">d", -0.0))))
    assert math.copysign(1, negative.floor) == -1.0


@pytest.mark.parametrize(
    "name", ["a\nb", "a\r", "\x1b[31mred", "\x00", "\x7f", "\u202egnp", "\u2028", "\ud800", "a\tb", "\ue000"]
)
def test_f40_names_that_could_forge_a_line_or_move_a_cursor_are_refused(name: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        encode(EnrolClient(name, bytes(32)))
    assert caught.value.reason == "form"
    if name != "\ud800":
        assert refused(msgpack.packb([80, 1, name, bytes(32)])) == "form"


@pytest.mark.parametrize("name", ["", "x" * 201, 7, b"ward", None, True])
def test_a_name_of_the_wrong_length_or_kind_is_refused_both_ways(name: Any) -> None:
    with pytest.raises(InvalidRecord):
        encode(EnrolClient(name, bytes(32)))
    assert refused(msgpack.packb([80, 1, name, bytes(32)])) == "form"


@pytest.mark.parametrize("odd", [2**63, -1, True, 1.0, "1", None])
def test_a_number_out_of_its_bounds_or_of_another_kind_is_refused(odd: Any) -> None:
    with pytest.raises(InvalidRecord):
        encode(Alert("a", "b", "c", "d", odd, 0))
    assert refused(msgpack.packb([73, 1, "a", "b", "c", "d", odd, 0])) == "form"


def test_a_record_too_large_is_refused_both_ways() -> None:
    assert refused(bytes(MAX_RECORD_BYTES + 1)) == "too-large"
    from refold.schemas.commits import EventList

    with pytest.raises(InvalidRecord) as caught:
        encode(EventList((bytes(600_000), bytes(600_000))))
    assert caught.value.reason == "too-large"


def hostile() -> Iterator[tuple[str, bytes]]:
    yield "ten million empty maps", b"\xdd" + struct.pack(">I", 10_000_000) + b"\x80" * 900_000
    yield "empty maps within bounds", b"\xdc\xff\xff" + b"\x80" * 0xFFFF
    yield "a map", b"\x81\x01\x01"
    yield "a map with one key twice", b"\x82\x01\x01\x01\x02"
    yield "deep nesting", b"\x91" * 900_000
    yield "nesting that can be read and not written", b"\x91" * 1000 + b"\x90"
    yield "an array that says it is long", b"\xdd\xff\xff\xff\xff"
    yield "a text that says it is long", b"\x92\xdb\xff\xff\xff\xff"
    yield "bytes that say they are long", b"\x92\xc6\xff\xff\xff\xff"
    yield "an extension", b"\xc7\x05\x01abcde"
    yield "a timestamp", b"\xd6\xff\x00\x00\x00\x00"
    yield "text that is not UTF-8", b"\x94\x50\x01\xa2\xff\xfe\xc4\x00"
    yield "a million nils", b"\xdd" + struct.pack(">I", 999_990) + b"\xc0" * 999_990
    yield "the widest tree", b"\xdc\xff\xff" + b"\x9d" + b"\xc0" * 13
    yield "many small arrays", b"\xdc\xff\xff" + (b"\x91" * 12 + b"\xc0") * 0xFFFF
    yield "only long numbers", b"\xdc\xff\xff" + (b"\xcf" + b"\xff" * 8) * 0xFFFF


@pytest.mark.parametrize(("what", "data"), list(hostile()), ids=[what for what, _ in hostile()])
def test_f30_hostile_records_are_refused_in_bounded_memory(what: str, data: bytes) -> None:
    tracemalloc.start()
    try:
        refused(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80 * MAX_RECORD_BYTES, what


def test_f30_the_dearest_record_within_bounds_takes_at_most_what_is_promised() -> None:
    """One byte buys at most 64: a chain of arrays of one is the dearest thing that msgpack can say."""
    chain = b"\x91" * 400 + b"\xc0"
    data = b"\xdc" + struct.pack(">H", 2000) + chain * 2000
    tracemalloc.start()
    try:
        refused(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80 * len(data)


def test_f32_more_tensors_or_elements_than_any_model_has_are_refused() -> None:
    tensor = ("t", "float32", (2**62, 2**62), 0, "mean")
    assert refused(msgpack.packb([1, 1, *tensor])) == "schema"
    small = [(f"t{i}", "float32", (), 0, "mean") for i in range(9000)]
    assert refused(msgpack.packb([2, 1, small])) == "schema"
    assert refused(msgpack.packb([1, 1, "t", "object", (1,), 0, "mean"])) == "schema"
    assert refused(msgpack.packb([2, 1, [small[0], small[0]]])) == "schema"
    assert refused(msgpack.packb([1, 1, "t", "float32", (1,) * 17, 0, "mean"])) == "form"


def test_a_tuple_longer_than_its_bound_is_refused_both_ways() -> None:
    from refold.schemas.commits import EventList

    with pytest.raises(InvalidRecord):
        encode(EventList((b"",) * (MAX_ITEMS + 1)))
    assert refused(b"\x93\x1f\x01\xdd" + struct.pack(">I", MAX_ITEMS + 1) + b"\xc4\x00" * (MAX_ITEMS + 1)) == "form"


def test_an_old_version_is_read_as_the_newest(scratch_registry: None) -> None:
    @dataclass(frozen=True, slots=True)
    class Toy:
        name: Name

    record(9001)(Toy)
    old = encode(Toy("cradle"))

    @dataclass(frozen=True, slots=True)
    class Newer:
        name: Name
        colour: Text
        count: Uint

    upcasts = {1: lambda fields: (*fields, "grey"), 2: lambda fields: (*fields, 1)}
    canonical._by_number.pop(9001)
    record(9001, version=3, upcasts=upcasts)(Newer)
    assert decode(old) == Newer("cradle", "grey", 1)
    assert encode(decode(old)) != old
    assert decode(msgpack.packb([9001, 2, "cradle", "red"])) == Newer("cradle", "red", 1)
    assert version_of(Newer) == 3
    assert refused(msgpack.packb([9001, 4, "cradle", "red", 1])) == "unknown-version"
    assert refused(msgpack.packb([9001, 1])) == "form"
    assert refused(msgpack.packb([9001, 1, "two", "fields"])) == "form"


def test_an_upcast_that_cannot_read_its_fields_is_the_records_fault(scratch_registry: None) -> None:
    @dataclass(frozen=True, slots=True)
    class Toy:
        count: Uint

    record(9002, version=2, upcasts={1: lambda fields: (fields[0]["x"],)})(Toy)
    assert refused(msgpack.packb([9002, 1, 5])) == "form"
    assert refused(msgpack.packb([9002, 1])) == "form"


def test_a_version_without_its_upcasts_and_a_number_twice_cannot_be_registered(scratch_registry: None) -> None:
    @dataclass(frozen=True, slots=True)
    class Toy:
        count: Uint

    with pytest.raises(TypeError, match="upcast"):
        record(9003, version=2)(Toy)
    with pytest.raises(TypeError, match="taken by EnrolClient"):
        record(80)(Toy)


def test_a_type_that_has_no_wire_form_cannot_be_registered(scratch_registry: None) -> None:
    @dataclass(frozen=True, slots=True)
    class Toy:
        table: dict[str, int]

    with pytest.raises(TypeError, match="no wire form"):
        record(9004)(Toy)


@pytest.mark.parametrize("shape", [(0, 2**62, 2**62), (2**41, 0), (2**20, 0, 2**21)])
def test_f32_a_shape_that_no_array_can_have_is_refused_though_it_is_empty(shape: tuple[int, ...]) -> None:
    assert refused(msgpack.packb([1, 1, "t", "float32", shape, 0, "mean"])) == "schema"


@pytest.mark.parametrize("length", [0, 4, 6, 1_000_000])
def test_f30_an_inline_payload_that_lies_about_its_length_is_refused(length: int) -> None:
    digest = chunk_digest(b"12345")
    with pytest.raises(InvalidRecord) as caught:
        Payload(payload_root([digest], [length]), (digest,), (length,), b"12345", None)
    assert caught.value.reason == "lengths"
