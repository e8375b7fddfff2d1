"""Faults of integrity, each made of a real signed update: what a disk, a network or a liar makes of one.

A kind is a function of a `Forge`; it writes to `updates` and returns the places of its manifests, each of which must be
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

from refold.bus.contract import partition_for
from refold.federation import Federation
from refold.producers.outbox import Parcel
from refold.schemas.canonical import encode
from refold.schemas.codec import decode_integers, encode_floats, encode_integers
from refold.schemas.errors import InvalidRecord
from refold.schemas.keys import UPDATE_TAG, SigningKey
from refold.schemas.layout import Integers, Layout
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.payload import Payload, chunk_digest, describe, payload_root
from refold.schemas.updates import TRAIN, ClientUpdate, UpdateBody, update_digest
from refold.testing import send_update

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
CHUNK_BYTES = 600
"""So small that every update has several chunks."""


Place = tuple[int, int]
Sent = tuple[str, Parcel]
"""An update, and who sent it."""


@dataclass(slots=True)
class Scene:
    """What is known of the open round, read once for all who send."""

    federation: Federation
    schema: ModelSchema
    head: int
    digests: dict[int, bytes]
    next_index: int
    common: list[Integers]
    before: list[Sent]
    """Updates that were accepted for earlier rounds, as they were sent."""

    now: list[Sent]
    """Honest updates of this round that lie before."""


class Forge:
    """One client that can sign, and what it makes."""

    def __init__(self, name: str, key: SigningKey, scene: Scene, sequence: int, chance: Random) -> None:
        self.name, self.key, self.scene, self.sequence, self.chance = name, key, scene, sequence, chance
        self.session = (1, bytes(8))

    def arrays(self) -> list[Integers]:
        """Return a delta like everyone's: the common direction with noise of its own."""
        rng = np.random.default_rng(self.chance.getrandbits(63))
        return [
            (part + rng.normal(0, 900, len(part))).astype(np.int32) if part.dtype == np.int32 else np.ones(len(part), np.int64)
            for part in self.scene.common
        ]

    def chunks(self) -> tuple[bytes, ...]:
        """Return a delta's chunks."""
        return tuple(encode_integers(self.arrays(), Layout.of(self.scene.schema), max_chunk_bytes=CHUNK_BYTES))

    def body(self, chunks: tuple[bytes, ...], **changes: Any) -> UpdateBody:
        """Return what a client says of these chunks, other than an honest one in what is given."""
        scene, schema = self.scene, self.scene.schema
        base = changes.get("base_round", scene.head)
        said = UpdateBody(
            scene.federation.name,
            self.name,
            self.key.key_id,
            *self.session,
            self.sequence,
            TRAIN,
            base,
            scene.digests.get(base, bytes(32)),
            schema.digest,
            "grid",
            tuple(0 for _ in schema.tensors),
            10,
            (),
            describe(chunks, inline_bytes=-1),
            Layout.of(schema).size_bytes,
            "",
            0,
        )
        return replace(said, **changes)

    def signed(self, body: UpdateBody, chunks: tuple[bytes, ...]) -> Parcel:
        """Return a body signed as its client would."""
        digest = update_digest(body)
        return Parcel(digest, encode(ClientUpdate(body, self.key.sign(UPDATE_TAG, digest))), chunks)

    def honest(self) -> Parcel:
        """Return an update that nothing is wrong with."""
        chunks = self.chunks()
        return self.signed(self.body(chunks), chunks)

    def send(self, parcel: Parcel, *, chunks: Sequence[bytes] | None = None, name: str = "") -> Place:
        """Write an update, as this client or under another's name; return where its manifest lies."""
        federation, name = self.scene.federation, name or self.name
        partitions = federation.bus.topics()[federation.topics.updates].partitions
        return partition_for(name.encode(), partitions), send_update(federation, parcel, name, chunks=chunks)

    def repeat(self, sent: list[Sent]) -> list[Place]:
        """Write somebody's update again, behind itself."""
        name, parcel = self.chance.choice(sent)
        return [self.send(parcel, name=name)]

    def said(self, **changes: Any) -> list[Place]:
        """Send an update whose body says something else, truly signed."""
        chunks = self.chunks()
        return [self.send(self.signed(self.body(chunks, **changes), chunks))]

    def carried(self, chunks: tuple[bytes, ...], **changes: Any) -> list[Place]:
        """Send an update of other chunks, truly described and signed."""
        return [self.send(self.signed(self.body(chunks, **changes), chunks))]

    def described(self, change: Callable[[Payload], Payload]) -> list[Place]:
        """Send an update that describes its chunks otherwise than they are."""
        chunks = self.chunks()
        payload = describe(chunks, inline_bytes=-1)
        return [self.send(self.signed(self.body(chunks, payload=change(payload)), chunks))]

    def flipped(self, data: bytes) -> bytes:
        """Return bytes with one bit changed."""
        changed = bytearray(data)
        changed[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
        return bytes(changed)

    def cut(self, data: bytes) -> bytes:
        """Return less than all of the bytes."""
        return data[: self.chance.randrange(len(data))]

    def one_changed(self, parts: Sequence[bytes], change: Callable[[bytes], bytes]) -> list[bytes]:
        """Return the parts, one of them changed."""
        at = self.chance.randrange(len(parts))
        return [change(part) if index == at else part for index, part in enumerate(parts)]


def _payload(digests: Sequence[bytes], lengths: Sequence[int]) -> Payload:
    return Payload(payload_root(digests, lengths), tuple(digests), tuple(lengths), None, None)


def _floats(forge: Forge, value: float) -> list[Place]:
    arrays = [part * np.float32(2.0**-20) if part.dtype == np.int32 else part for part in map(np.asarray, forge.arrays())]
    arrays = [array.astype(np.float32) if array.dtype != np.int64 else array for array in arrays]
    arrays[0][forge.chance.randrange(len(arrays[0]))] = value
    layout = Layout.of(forge.scene.schema)
    return forge.carried(tuple(encode_floats(arrays, layout, max_chunk_bytes=CHUNK_BYTES)), codec="float32")


def _other_model(forge: Forge, *tensors: TensorSchema, claims: bool) -> list[Place]:
    """Send a delta of another model, saying so or not."""
    schema = ModelSchema(tensors)
    arrays: list[Integers] = [
        np.ones(t.size, np.int32 if t.is_float else np.int64) * forge.chance.randrange(1, 200) for t in tensors
    ]
    layout = Layout.of(schema)
    chunks = tuple(encode_integers(arrays, layout, max_chunk_bytes=CHUNK_BYTES))
    if not claims:
        return forge.carried(chunks)
    exponents = tuple(0 for _ in tensors)
    return forge.carried(chunks, schema_digest=schema.digest, exponents=exponents, raw_bytes=layout.size_bytes)


def _signature(forge: Forge, change: Callable[[bytes], bytes]) -> list[Place]:
    chunks = forge.chunks()
    body = forge.body(chunks)
    digest = update_digest(body)
    signature = change(forge.key.sign(UPDATE_TAG, digest))
    return [forge.send(Parcel(digest, encode(ClientUpdate(body, signature)), chunks))]


def _malleable(signature: bytes) -> bytes:
    """Return the same signature with the group's order added to its scalar, which a lax check takes for good."""
    scalar = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    return signature[:32] + scalar.to_bytes(32, "little")


def _equivocation(forge: Forge) -> list[Place]:
    """Say two things under one number: the second, and whatever waits of the first, must not be applied."""
    return [forge.send(forge.honest()), forge.send(forge.honest())]


def _far(forge: Forge) -> list[Place]:
    arrays = forge.arrays()
    arrays[0][forge.chance.randrange(len(arrays[0]))] = 2**28 + forge.chance.randrange(2**20)
    return forge.carried(tuple(encode_integers(arrays, Layout.of(forge.scene.schema), max_chunk_bytes=CHUNK_BYTES)))


def _as(forge: Forge, **changes: Any) -> list[Place]:
    """Send with a key that was never enrolled."""
    stranger = Forge(forge.name, SigningKey.generate(), forge.scene, forge.sequence, forge.chance)
    chunks = stranger.chunks()
    return [forge.send(stranger.signed(stranger.body(chunks, **changes), chunks))]


def _bit_of_a_block(forge: Forge) -> list[Place]:
    """Flip a bit before the update is described and signed; not one that zstd does not read, since that changes nothing.

    Some are of that kind (`integrity.py --bits` counts them): the blocks decode to the same integers.
    """
    chunks, layout = forge.chunks(), Layout.of(forge.scene.schema)
    changed = chunks
    while changed == chunks or _same(changed, chunks, layout):
        changed = tuple(forge.one_changed(chunks, forge.flipped))
    return forge.carried(changed)


def _same(changed: tuple[bytes, ...], chunks: tuple[bytes, ...], layout: Layout) -> bool:
    try:
        pairs = zip(decode_integers(changed, layout), decode_integers(chunks, layout), strict=True)
        return all(np.array_equal(one, other) for (_, one), (_, other) in pairs)
    except InvalidRecord:
        return False


def _swapped(payload: Payload) -> Payload:
    return _payload(payload.chunks[::-1], payload.lengths[::-1])


def _renamed(forge: Forge) -> list[Place]:
    """Name one chunk by another's digest."""
    other = chunk_digest(forge.chance.randbytes(8))
    return forge.described(lambda p: _payload((*p.chunks[:-1], other), p.lengths))


KINDS: dict[str, Callable[[Forge], list[Place]]] = {
    "bit of a manifest": lambda f: [f.send(replace(p, manifest=f.flipped(p.manifest))) for p in [f.honest()]],
    "cut manifest": lambda f: [f.send(replace(p, manifest=f.cut(p.manifest) or b"\0")) for p in [f.honest()]],
    "bytes after a manifest": lambda f: [f.send(replace(p, manifest=p.manifest + f.chance.randbytes(3))) for p in [f.honest()]],
    "bit of a chunk": lambda f: [f.send(p, chunks=f.one_changed(p.chunks, f.flipped)) for p in [f.honest()]],
    "cut chunk": lambda f: [f.send(p, chunks=f.one_changed(p.chunks, f.cut)) for p in [f.honest()]],
    "lost chunk": lambda f: [f.send(p, chunks=p.chunks[1:]) for p in [f.honest()]],
    "bit of a block, signed": _bit_of_a_block,
    "cut block, signed": lambda f: f.carried(tuple(f.one_changed(f.chunks(), lambda part: f.cut(part) or b"\0"))),
    "swapped chunks, signed": lambda f: f.carried(f.chunks()[::-1]),
    "swapped digests": lambda f: f.described(_swapped),
    "wrong digest": _renamed,
    "lying length": lambda f: f.described(lambda p: _payload(p.chunks, (p.lengths[0] + 1, *p.lengths[1:]))),
    "lying raw length": lambda f: f.said(raw_bytes=f.chance.randrange(1 << 30) + 7),
    "repeat of this round": lambda f: f.repeat(f.scene.now),
    "replay of an earlier round": lambda f: f.repeat(f.scene.before or f.scene.now),
    "equivocation": _equivocation,
    "later session's number": lambda f: f.said(session_index=f.scene.next_index + 1000 + f.chance.randrange(99)),
    "wrong base": lambda f: f.said(base_digest=f.chance.randbytes(32)),
    "another round's base": lambda f: f.said(base_digest=f.flipped(f.scene.digests[f.scene.head])),
    "future base": lambda f: f.said(base_round=f.scene.head + 1 + f.chance.randrange(9)),
    "stale base": lambda f: f.said(base_round=max(0, f.scene.head - 2), **({} if f.scene.head > 1 else {"num_examples": 0})),
    "NaN": lambda f: _floats(f, float("nan")),
    "infinity": lambda f: _floats(f, f.chance.choice((float("inf"), -float("inf")))),
    "far too large": _far,
    "other shape": lambda f: _other_model(f, TensorSchema("w", "float32", (30, 21), 20, "mean"), claims=True),
    "other shape, not said": lambda f: _other_model(f, TensorSchema("w", "float32", (30, 21), 20, "mean"), claims=False),
    "other dtype": lambda f: _other_model(f, TensorSchema("w", "int64", (30, 20), 0, "sum"), claims=True),
    "other dtype, not said": lambda f: _other_model(f, TensorSchema("w", "int64", (30, 20), 0, "sum"), claims=False),
    "forged signature": lambda f: _signature(f, lambda s: f.chance.randbytes(len(s))),
    "bit of a signature": lambda f: _signature(f, f.flipped),
    "malleable signature": lambda f: _signature(f, _malleable),
    "key that was never enrolled": lambda f: _as(f),
    "key under another's id": lambda f: _as(f, key_id=f.key.key_id),
    "nobody's name": lambda f: f.said(client=f"nobody-{f.chance.randrange(10**6)}"),
    "another federation": lambda f: f.said(federation="elsewhere"),
    "codec that there is not": lambda f: f.said(codec="gzip"),
    "sparse where whole is asked": lambda f: f.said(codec="topk"),
    "exponents of another model": lambda f: f.said(exponents=(0,) * (len(f.scene.schema.tensors) + 1)),
    "no examples": lambda f: f.said(num_examples=0),
    "kind that there is not": lambda f: f.said(kind="gossip"),
    "no payload": lambda f: f.said(payload=None),
    "nothing changed": lambda f: f.carried(
        tuple(encode_integers([np.zeros_like(part) for part in f.arrays()], Layout.of(f.scene.schema)))
    ),
}
