"""Test doubles for those who build on Refold: a bus that fails on demand, updates signed by hand, waits for conditions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, cast

import numpy as np

from refold.bus.clock import ManualClock
from refold.bus.contract import Bus, Delivery, Producer, partition_for
from refold.bus.topics import chunk_headers, event_headers, hint_header
from refold.bus.wrapping import Wrapped
from refold.consumers.server import DECIDING, Server
from refold.federation import Federation
from refold.producers.outbox import Parcel
from refold.schemas.canonical import encode
from refold.schemas.codec import encode_integers
from refold.schemas.errors import BusError, TryAgainError
from refold.schemas.keys import UPDATE_TAG, SigningKey
from refold.schemas.layout import Integers, Layout
from refold.schemas.model import ModelSchema
from refold.schemas.payload import describe
from refold.schemas.updates import TRAIN, ClientUpdate, UpdateBody, update_digest

LOST, UNSAID = "lost", "unsaid"
"""What a `FlakyBus` does to a flush: the records never arrive, or they do and the acknowledgement does not."""

Trouble = Callable[[str, bytes | None], str | None]


def eventually(condition: Callable[[], bool], *, timeout_s: float = 20.0, what: str = "the condition") -> None:
    """Return as soon as the condition holds.

    Raises
    ------
    TryAgainError
        It did not in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TryAgainError(f"{what} did not come true within {timeout_s:g} s")
        time.sleep(0.005)


class FlakyBus(Wrapped):
    """A bus whose producers fail as told; all else is the bus behind it.

    Parameters
    ----------
    trouble
        Asked about each record as it is sent: `LOST`, `UNSAID` or None. The next flush of that producer then raises BusError.
    """

    def __init__(self, bus: Bus, trouble: Trouble) -> None:
        super().__init__(bus)
        self._trouble = trouble

    def producer(self, **settings: Any) -> Producer:
        """Open a producer that fails as told."""
        return cast(Producer, _FlakyProducer(self._inner, self._trouble, settings))


class _FlakyProducer(Wrapped):
    def __init__(self, bus: Bus, trouble: Trouble, settings: dict[str, Any]) -> None:
        super().__init__(bus.producer(**settings))
        self._bus = bus
        self._trouble = trouble
        self._fate: str | None = None

    def send(self, topic: str, value: bytes | None, **where: Any) -> Delivery:
        fate = self._trouble(topic, value)
        if fate is not None:
            self._fate = fate
        return cast(Delivery, self._inner.send(topic, value, **where))

    def flush(self, timeout_s: float = 30.0) -> None:
        fate, self._fate = self._fate, None
        if fate == LOST:
            self._inner = self._bus.producer()
        else:
            self._inner.flush(timeout_s)
        if fate is not None:
            raise BusError(f"the bus was told to fail: {fate}")


class SteppedServer:
    """A server without threads: its members take turns when told, by a clock that is set by hand.

    Parameters
    ----------
    groups
        Which of the groups take turns, and in which order.
    member
        Its members' names; one that takes another's place after a crash has another.
    """

    def __init__(
        self,
        federation: Federation,
        *,
        groups: Sequence[str] = DECIDING,
        member: str = "stepped",
        clock: ManualClock | None = None,
    ) -> None:
        self.clock = clock or ManualClock()
        self._server = Server(
            federation.bus,
            federation.topics,
            federation.keyring.secret(federation.genesis.secret_digest),
            groups=groups,
            member=member,
            clock=self.clock,
            keys=federation.keyring.sealing,
        )
        self.members = {group: self._server._factory(group, f"{member}-{group}")() for group in groups}

    def step(self, *groups: str) -> bool:
        """Let these groups (all if none are named) take one turn each; return whether anything was done."""
        done = [self.members[group].step(0.0) for group in groups or self.members]
        return any(done)

    def settle(self, *groups: str) -> None:
        """Take turns until two in a row did nothing.

        Raises
        ------
        TryAgainError
            They never come to rest.
        """
        quiet = 0
        for _ in range(10_000):
            quiet = 0 if self.step(*groups) else quiet + 1
            if quiet == 2:
                return
        raise TryAgainError("the groups do not come to rest")

    def close(self) -> None:
        """Leave all groups."""
        for member in self.members.values():
            member.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def craft_update(
    federation: Federation,
    client: str,
    key: SigningKey,
    /,
    *,
    chunks: Sequence[bytes] | None = None,
    inline: bool = True,
    session: tuple[int, bytes] | None = None,
    sequence: int = 0,
    seed: int = 0,
    **changes: Any,
) -> Parcel:
    """Return a correctly signed update as any client could write it, however wrong its content.

    Parameters
    ----------
    chunks
        What it carries; a small random delta, drawn from `seed`, if None.
    inline
        Whether a small payload travels inside the manifest.
    session
        The newest if None.
    changes
        Fields of `refold.schemas.updates.UpdateBody` to be other than an honest client's.
    """
    history = federation.history()
    try:
        lineage, schema = history.lineage, history.schema
    finally:
        history.close()
    carried = tuple(chunks) if chunks is not None else random_delta(schema, seed)
    base = changes.get("base_round", lineage.head)
    body = UpdateBody(
        federation.name,
        client,
        key.key_id,
        *(session or (lineage.next_index, os.urandom(8))),
        sequence,
        TRAIN,
        base,
        lineage.parameters_digest(base) or bytes(32),
        schema.digest,
        "grid",
        tuple(0 for _ in schema.tensors),
        10,
        (),
        describe(carried) if inline else describe(carried, inline_bytes=-1),
        Layout.of(schema).size_bytes,
        "",
        0,
    )
    body = replace(body, **changes)
    digest = update_digest(body)
    in_manifest = body.payload is not None and body.payload.inline is not None
    return Parcel(digest, encode(ClientUpdate(body, key.sign(UPDATE_TAG, digest))), () if in_manifest else carried)


def random_delta(schema: ModelSchema, seed: int = 0, *, spread: float = 2000.0) -> tuple[bytes, ...]:
    """Return the chunks of a random change: for float tensors normal, with this spread in lattice steps; 1 for integer ones."""
    rng = np.random.default_rng(seed)
    arrays: list[Integers] = [
        rng.normal(0, spread, tensor.size).astype(np.int32) if tensor.is_float else np.ones(tensor.size, np.int64)
        for tensor in schema.tensors
    ]
    return tuple(encode_integers(arrays, Layout.of(schema)))


def send_update(
    federation: Federation,
    parcel: Parcel,
    client: str,
    *,
    chunks: Sequence[bytes] | None = None,
    hint: bool = True,
    headers: Mapping[str, bytes] | None = None,
) -> int:
    """Write an update to `updates` as its client would, and return its manifest's offset.

    Parameters
    ----------
    chunks
        Written in the place of the update's own.
    hint
        Say in a header where the chunks lie.
    headers
        Further headers of the manifest.
    """
    topic, key = federation.topics.updates, client.encode()
    partition = partition_for(key, federation.bus.topics()[topic].partitions)
    about = event_headers("ClientUpdate", source=topic, subject=client, identity=parcel.digest.hex(), time_ms=0)
    with federation.bus.producer() as producer:
        written = parcel.chunks if chunks is None else chunks
        sent = [producer.send(topic, chunk, key=key, partition=partition, headers=chunk_headers()) for chunk in written]
        offsets = [delivery.result() for delivery in sent]
        if offsets and hint:
            about += (hint_header(min(offsets), max(offsets)),)
        about += tuple((headers or {}).items())
        return producer.send(topic, parcel.manifest, key=key, partition=partition, headers=about).result()
