"""Client updates from the record in `updates` to the fact in `checked`, as consistency takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from random import Random
from typing import Any

import blake3
import msgpack

from refold.bus.contract import Record
from refold.cli.describe import one_line
from refold.consumers.consistency import checked, inspect
from refold.consumers.features import Features
from refold.jsonable import safe_text, to_json
from refold.schemas.canonical import decode, encode, number_of
from refold.schemas.checks import Checked
from refold.schemas.errors import InvalidRecord
from refold.schemas.keys import UPDATE_TAG, verify
from refold.schemas.payload import Payload, chunk_digest, payload_root
from refold.schemas.updates import ClientUpdate, UpdateBody
from tests.fuzz import arrays, samples
from tests.fuzz.decoder import TAKEN, Decoder, Defect, Input, check_printable
from tests.fuzz.records import is_payload

BODY = [field.name for field in fields(UpdateBody)]
TOO_BLAND = frozenset({"taken", "form"})


def decoders() -> Iterator[Decoder]:
    """Yield one for federations that take whole deltas, one for those that take the largest entries."""
    deep = {"lengths", "layout", "compression", "schema", "wrong-federation", "examples", "codec", "signature", "missing-chunk"}
    for name, codec in (("update-whole", "grid"), ("update-sparse", "topk")):
        more = {"not-finite", "out-of-range"} if codec == "grid" else set()
        yield Decoder(
            name,
            seeds=lambda codec=codec: samples.updates(codec),
            judge=lambda value, codec=codec: judge(codec, value),
            changes=(_reframe, _retable),
            mend=mend,
            is_packed=True,
            reaches=frozenset({TAKEN, "form", "not-canonical", "root-digest", *deep, *more}),
        )


class _Chunks:
    """Stands for the window: the chunks that came with the manifest."""

    def __init__(self, chunks: Input) -> None:
        self._chunks = {chunk_digest(chunk): chunk for chunk in chunks}

    def read(self, payload: Payload, _hint: object) -> Iterator[bytes]:
        for digest in payload.chunks:
            if digest not in self._chunks:
                raise InvalidRecord("missing-chunk", "a chunk that the manifest names never came")
            yield self._chunks[digest]

    def forget(self, payload: Payload, key: bytes | None) -> None:
        assert payload.chunks
        assert key


def judge(codec: str, value: Input) -> str:
    """Inspect an update, write down what was found, and see who signed it."""
    record = Record("fuzz.updates", 0, 7, 0, b"ann", value[0], ())
    window: Any = _Chunks(value[1:])
    finding = inspect(samples.inspector(codec), window, record, lambda _client, _sealing: "sealing")
    fact = decode(encode(checked(record, finding, 6, 7, 8, "fuzz")), Checked)
    check_printable(fact.detail)
    if finding.update is None:
        return fact.fault
    check_printable(safe_text(one_line(finding.update)))
    json.dumps(to_json(finding.update), allow_nan=False)
    if not fact.fault and fact.features is not None:
        _check_features(Features.unpack(fact.features))
    signed = verify(samples.KEY.public, UPDATE_TAG, finding.update.digest, finding.update.signature)
    return fact.fault or (TAKEN if signed else "signature")


def _check_features(features: Features) -> None:
    if not features.norm < float("inf") or features.count != int(features.histogram.sum()):
        raise Defect(f"features that no delta has: norm {features.norm}, {features.count} parameters")


def mend(value: Input, chance: Random) -> Input:
    """Let the manifest name the chunks as they are now, and sign it again."""
    try:
        tree = msgpack.unpackb(value[0], use_list=True, raw=False, strict_map_key=False)
        body = tree[2]
        payload = body[BODY.index("payload")]
        if isinstance(payload, list) and len(payload) == len(Payload.__dataclass_fields__):
            _mend_payload(payload, value[1:])
        if chance.random() < 0.9:
            tree[3] = samples.KEY.sign(UPDATE_TAG, _digest(tree[1], body))
        return (msgpack.packb(tree, use_bin_type=True), *value[1:])
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError, msgpack.UnpackException):
        return value


def _digest(version: int, body: list[Any]) -> bytes:
    packed = msgpack.packb([number_of(UpdateBody), version, *body], use_bin_type=True)
    return blake3.blake3(packed, derive_key_context="refold 2026 client update").digest()


def _mend_payload(payload: list[Any], chunks: Input) -> None:
    given = [payload[3]] if isinstance(payload[3], bytes) else list(chunks)
    if given:
        payload[1], payload[2] = [chunk_digest(chunk) for chunk in given], [len(chunk) for chunk in given]
    if is_payload(payload):
        payload[0] = payload_root(payload[1], payload[2])


def _reframe(value: Input, chance: Random) -> Input:
    return _within(value, chance, arrays.reframe)


def _retable(value: Input, chance: Random) -> Input:
    return _within(value, chance, arrays.retable)


def _within(value: Input, chance: Random, change: Any) -> Input:
    """Change the chunks beside the manifest, or the one inside it."""
    if len(value) > 1:
        return (value[0], *change(value[1:], chance))
    try:
        tree = msgpack.unpackb(value[0], use_list=True, raw=False, strict_map_key=False)
        payload = tree[2][BODY.index("payload")]
        payload[3] = change((payload[3],), chance)[0]
        return (msgpack.packb(tree, use_bin_type=True),)
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError, msgpack.UnpackException):
        return value


assert ClientUpdate.__dataclass_fields__.keys() == {"body", "signature"}
