"""Sections 4 to 7 of docs/WIRE.md: canonical records, digests, signatures, payloads."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import blake3
import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SHAPES: list[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "docs" / "vectors" / "types.json").read_text())
BY_NAME = {shape["name"]: shape for shape in SHAPES}
BY_NUMBER = {shape["number"]: shape for shape in SHAPES if "number" in shape}

MAX_RECORD_BYTES = 1_000_000
MAX_INLINE_BYTES = 65_536
MAX_CHUNK_BYTES = 1_000_000

ALL_PPM = 1_000_000

Value = dict[str, Any]
"""A record or structure by its fields' names."""

Raise = Callable[[list[Any]], list[Any]]


class RefusedError(Exception):
    """Bytes or values that are not what the page asks for; `reason` is the code of section 18."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def encode(name: str, value: Value) -> bytes:
    """Return the bytes of a record."""
    shape = BY_NAME[name]
    version, items = shape["version"], _items(shape, value)
    while _is_plain(name, version, items):
        version, items = version - 1, [items[0][:-1], *items[1:]] if name == "ClientUpdate" else items[:-1]
    data: bytes = msgpack.packb([shape["number"], version, *items])
    if len(data) > MAX_RECORD_BYTES:
        raise RefusedError("too-large")
    return data


ADDING = {("UpdateBody", 2), ("Heartbeat", 3), ("Heartbeat", 4), ("ServerHeartbeat", 2)}
"""Versions that add one field to the version before, which is still written where that field says nothing."""


def _is_plain(name: str, version: int, items: list[Any]) -> bool:
    """Whether the version before says all of it: an update that is not sealed (section 12), a bare beat (15)."""
    last = items[0] if (name, version) == ("ClientUpdate", 2) else items if (name, version) in ADDING else [True]
    return not last[-1]


def decode(data: bytes) -> tuple[str, Value]:
    """Return a record's name and fields."""
    if len(data) > MAX_RECORD_BYTES:
        raise RefusedError("too-large")
    try:
        items = msgpack.unpackb(data, max_array_len=1 << 16, max_map_len=0, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise RefusedError("form") from error
    if type(items) is not list or len(items) < 2 or type(items[0]) is not int or type(items[1]) is not int:
        raise RefusedError("form")
    if msgpack.packb(items) != data:
        raise RefusedError("not-canonical")
    shape = BY_NUMBER.get(items[0])
    if shape is None:
        raise RefusedError("unknown-type")
    if not 1 <= items[1] <= shape["version"]:
        raise RefusedError("unknown-version")
    if len(items) > 2 and _is_plain(shape["name"], items[1], items[2:]):
        raise RefusedError("not-canonical")
    return shape["name"], _fields(shape, _raised(items[0], items[1], items[2:]))


def _raised(number: int, version: int, items: list[Any]) -> list[Any]:
    """Bring the fields of an older version to the newest (section 20), version by version."""
    while (number, version) in RAISES:
        items, version = RAISES[number, version](items), version + 1
    return items


def _with_density(*places: int) -> Raise:
    """Plans and policies had no density: the record itself, or what it holds at these places."""

    def raised(items: list[Any]) -> list[Any]:
        if not places:
            return [*items, ALL_PPM]
        return [[*item, ALL_PPM] if at in places and type(item) is list else item for at, item in enumerate(items)]

    return raised


def _choosing(**places: tuple[int, ...]) -> Raise:
    """Plans and policies had no requirements, no buffer and no discount: what the record holds at these places."""
    before = {at: [[], 0, *rest] for kind, rest in (("plans", []), ("policies", ["halved"])) for at in places.get(kind, ())}

    def raised(items: list[Any]) -> list[Any]:
        return [[*item, *before[at]] if at in before else item for at, item in enumerate(items)]

    return raised


def _with_nothing(items: list[Any]) -> list[Any]:
    """What caused it was not told."""
    return [*items, None]


def _unsigned(items: list[Any]) -> list[Any]:
    """A heartbeat was not signed."""
    return [*items, bytes(8), b""]


def _with_plain_body(items: list[Any]) -> list[Any]:
    """The body of a manifest was not sealed."""
    return [_with_nothing(items[0]), *items[1:]]


def _with_identity(items: list[Any]) -> list[Any]:
    """There were no log keys, and every client was known."""
    return [*items, [], [True, []]]


def _without_kind(items: list[Any]) -> list[Any]:
    """An alert did not say of what kind it was."""
    return [*items, "", "", "", []]


RAISES: dict[tuple[int, int], Raise] = {
    (11, 1): _with_density(),
    (11, 2): lambda items: [*items, [], 0, "halved"],
    (12, 1): _with_density(),
    (12, 2): lambda items: [*items, [], 0],
    (20, 1): _with_nothing,
    (21, 1): _with_plain_body,
    (22, 1): _unsigned,
    (22, 2): _with_nothing,
    (22, 3): _with_nothing,
    (40, 1): _with_density(5, 6),
    (40, 2): _with_identity,
    (40, 3): _choosing(policies=(5,), plans=(6,)),
    (41, 1): _with_nothing,
    (42, 1): _with_nothing,
    (42, 2): _with_nothing,
    (45, 1): _with_density(7),
    (45, 2): _choosing(plans=(7,)),
    (46, 1): _with_nothing,
    (50, 1): _with_density(5),
    (50, 2): _with_identity,
    (50, 3): _choosing(plans=(5,)),
    (51, 1): _with_density(11),
    (51, 2): _choosing(plans=(11,)),
    (54, 1): lambda items: [*items, b""],
    (73, 1): _without_kind,
    (141, 1): _choosing(plans=(5,)),
    (141, 2): lambda items: [*items[:-1], [], items[-1]],
    (160, 1): lambda items: [*items, []],
}
"""How the fields of a version become those of the next."""


def _items(shape: Value, value: Value) -> list[Any]:
    return [_to_wire(tree, value[name]) for name, tree in shape["fields"]]


def _fields(shape: Value, items: Any) -> Value:
    if type(items) is not list or len(items) != len(shape["fields"]):
        raise RefusedError("form")
    value = {name: _from_wire(tree, item) for (name, tree), item in zip(shape["fields"], items, strict=True)}
    if shape["name"] == "Payload":
        check_payload(value)
    return value


def _to_wire(tree: Any, value: Any) -> Any:
    if isinstance(tree, dict) and "of" in tree:
        return _items(BY_NAME[tree["of"]], value)
    if isinstance(tree, dict) and "optional" in tree:
        return None if value is None else _to_wire(tree["optional"], value)
    if isinstance(tree, dict) and "list" in tree:
        _require(tree["least"] <= len(value) <= tree["most"])
        return [_to_wire(tree["list"], item) for item in value]
    if isinstance(tree, dict) and "tuple" in tree:
        return [_to_wire(part, item) for part, item in zip(tree["tuple"], value, strict=True)]
    return _simple(tree, value)


def _from_wire(tree: Any, item: Any) -> Any:
    if isinstance(tree, dict) and "of" in tree:
        return _fields(BY_NAME[tree["of"]], item)
    if isinstance(tree, dict) and "optional" in tree:
        return None if item is None else _from_wire(tree["optional"], item)
    if isinstance(tree, dict) and "list" in tree:
        _require(type(item) is list and tree["least"] <= len(item) <= tree["most"])
        return [_from_wire(tree["list"], inner) for inner in item]
    if isinstance(tree, dict) and "tuple" in tree:
        _require(type(item) is list and len(item) == len(tree["tuple"]))
        return [_from_wire(part, inner) for part, inner in zip(tree["tuple"], item, strict=True)]
    return _simple(tree, item)


def _simple(tree: Any, value: Any) -> Any:
    """Check what is no list against its type and bounds; types are exact: true is no int, 1 no float."""
    if tree == "scalar":
        usual = {int: {"int": [-(2**63), 2**63 - 1]}, str: {"text": [0, 4000]}, float: "float", bool: "bool"}
        _require(type(value) in usual)
        return _simple(usual[type(value)], value)
    form, bounds = (tree, None) if isinstance(tree, str) else next(iter(tree.items()))
    _require(type(value) is {"bool": bool, "float": float, "int": int, "text": str, "bin": bytes}[form])
    _require(form != "float" or math.isfinite(value))
    if bounds is not None:
        _require(bounds[0] <= (value if form == "int" else len(value)) <= bounds[1])
    _require(form != "text" or all(_prints(character) for character in value))
    return value


def _prints(character: str) -> bool:
    return character == " " or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}


def _require(holds: bool) -> None:
    if not holds:
        raise RefusedError("form")


# Section 5.


def plain(data: bytes) -> bytes:
    """H of the page."""
    return blake3.blake3(data).digest()


def derived(context: str, data: bytes) -> bytes:
    """D of the page."""
    return blake3.blake3(data, derive_key_context=f"refold 2026 {context}").digest()


def log_root(topic: str) -> bytes:
    return derived("log root", topic.encode())


def update_digest(body: Value) -> bytes:
    return derived("client update", encode("UpdateBody", body))


def schema_digest(schema: Value) -> bytes:
    return derived("model schema", encode("ModelSchema", schema))


def key_id(public: bytes) -> bytes:
    return derived("key id", public)[:8]


def command_digest(federation: str, command_id: bytes, body: bytes) -> bytes:
    parts = (federation.encode(), command_id, body)
    return derived("command", b"".join(len(part).to_bytes(8, "little") + part for part in parts))


def signed_beat(value: Value, key: Ed25519PrivateKey) -> bytes:
    """Return a heartbeat, signed over itself with an empty signature."""
    digest = derived("heartbeat", encode("Heartbeat", {**value, "signature": b""}))
    return encode("Heartbeat", {**value, "signature": key.sign(b"refold 2026 heartbeat\0" + digest)})


def signed_update(body: Value, key: Ed25519PrivateKey) -> bytes:
    """Return the manifest of a body."""
    signature = key.sign(b"refold 2026 client update\0" + update_digest(body))
    return encode("ClientUpdate", {"body": body, "signature": signature})


# Section 7.


def payload_root(digests: Sequence[bytes], lengths: Sequence[int]) -> bytes:
    pairs = zip(digests, lengths, strict=True)
    return derived("payload root", b"".join(digest + length.to_bytes(8, "little") for digest, length in pairs))


def payload_of(chunks: Sequence[bytes]) -> Value:
    """Describe chunks; a single small one goes inline."""
    digests, lengths = [plain(chunk) for chunk in chunks], [len(chunk) for chunk in chunks]
    inline = chunks[0] if len(chunks) == 1 and lengths[0] <= MAX_INLINE_BYTES else None
    return {"root": payload_root(digests, lengths), "chunks": digests, "lengths": lengths, "inline": inline, "hint": None}


def check_payload(payload: Value) -> None:
    digests, lengths = payload["chunks"], payload["lengths"]
    if len(digests) != len(lengths) or any(length > MAX_CHUNK_BYTES for length in lengths):
        raise RefusedError("lengths")
    if payload_root(digests, lengths) != payload["root"]:
        raise RefusedError("root-digest")
    inline = payload["inline"]
    if inline is not None and (payload["hint"] is not None or digests != [plain(inline)]):
        raise RefusedError("chunk-digest")


# Sections 2 and 10.


def partition_of(key: bytes, partitions: int) -> int:
    """Kafka's own choice: murmur2 of the key."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(key)
    whole = len(key) // 4 * 4
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    if whole < len(key):
        h = (h ^ int.from_bytes(key[whole:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return ((h ^ h >> 15) & 0x7FFFFFFF) % partitions
