"""Canonical records, every type of the registry: a new one is fuzzed from the day it is registered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgpack
import numpy as np

import refold.consumers.features
import refold.schemas.checks
import refold.schemas.commits
import refold.schemas.events  # noqa: F401
from refold.cli.describe import clients_of, one_line, round_of
from refold.consumers.features import Features, PackedFeatures
from refold.jsonable import safe_text, to_json
from refold.schemas import canonical
from refold.schemas.canonical import decode, encode, number_of, version_of
from refold.schemas.layout import Layout
from refold.schemas.model import ModelSchema
from refold.schemas.payload import Payload, payload_root
from tests.fuzz import samples
from tests.fuzz.decoder import TAKEN, Decoder, Input, check_printable, check_same

GOLDEN = Path(__file__).resolve().parents[1] / "unit" / "golden"
SHOWN_BLOCKS = 64
PREFIX = "record-"


def decoders() -> Iterator[Decoder]:
    """Yield a decoder for each type."""
    for kind in sorted(canonical._by_type, key=number_of):
        if kind.__module__.startswith("refold."):
            yield Decoder(
                PREFIX + kind.__name__,
                seeds=lambda kind=kind: seeds(kind),
                judge=lambda value, kind=kind: judge(kind, value),
                mend=mend,
                is_packed=True,
                reaches=frozenset({TAKEN, "form", "unknown-type", "unknown-version", "not-canonical"}),
            )


def seeds(kind: type) -> list[Input]:
    """Return the golden bytes of every version of a type; of features those of an update, since their lengths must agree."""
    if kind is PackedFeatures:
        return [(samples.features(),)]
    return [(bytes.fromhex(path.read_text()),) for path in sorted(GOLDEN.glob(f"{kind.__name__}.v*.hex"))]


def judge(kind: type, value: Input) -> str:
    """Decode a record, write it again, and tell of it as the command line does."""
    found = decode(value[0], kind)
    again = encode(found)
    if msgpack.unpackb(value[0], use_list=False)[1] == version_of(kind):
        check_same(again, value[0], kind.__name__)
    else:
        check_same(encode(decode(again, kind)), again, kind.__name__)
    for said in (one_line(found), *clients_of(found), str(round_of(found))):
        check_printable(safe_text(said))
    json.dumps(to_json(found), allow_nan=False)
    if isinstance(found, PackedFeatures):
        look_at_features(value[0])
    if isinstance(found, ModelSchema):
        look_at_schema(found)
    return TAKEN


def look_at_features(data: bytes) -> None:
    """Ask of features what detectors ask."""
    features = Features.unpack(data)
    assert features.facts.shape[1] == 6
    assert not features.sketch.flags.writeable


def look_at_schema(schema: ModelSchema) -> None:
    """Lay a model out, without making it."""
    layout = Layout.of(schema)
    assert len(schema.digest) == 32
    for tensor in schema.tensors:
        if tensor.size == 0:
            np.empty(tensor.shape, "f4")
    for index in range(min(len(layout), SHOWN_BLOCKS)):
        block = layout[index]
        assert 0 < block.count <= 1 << 17
        assert block.start + block.count <= schema.tensors[block.tensor].size


def mend(value: Input, _chance: Random) -> Input:
    """Make payloads' roots right again, wherever in a record they are."""
    try:
        tree = msgpack.unpackb(value[0], use_list=True, raw=False, strict_map_key=False)
        _mend_payloads(tree)
        return (msgpack.packb(tree, use_bin_type=True),)
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError, msgpack.UnpackException):
        return value


def _mend_payloads(tree: object) -> None:
    if not isinstance(tree, list):
        return
    if is_payload(tree):
        _, digests, lengths, *_ = tree
        tree[0] = payload_root(digests, lengths)
    for item in tree:
        _mend_payloads(item)


def is_payload(tree: list[object]) -> bool:
    """Whether this may be a payload's fields: root, digests, lengths, inline, hint."""
    if len(tree) != len(Payload.__dataclass_fields__) or not isinstance(tree[0], bytes) or len(tree[0]) != 32:
        return False
    _, digests, lengths, *_ = tree
    return (
        isinstance(digests, list)
        and isinstance(lengths, list)
        and len(digests) == len(lengths)
        and all(isinstance(digest, bytes) for digest in digests)
        and all(type(length) is int and 0 <= length < 2**63 for length in lengths)
    )
