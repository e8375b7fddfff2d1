"""Logs of commits, and payloads in a topic, as they are read back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from random import Random

import msgpack

from refold.bus.contract import Place, TopicSpec
from refold.bus.ledger import LedgerReader
from refold.bus.memory import MemoryBus
from refold.bus.payloads import PayloadReader
from refold.bus.topics import chunk_headers, event_headers
from refold.schemas.canonical import decode, encode
from refold.schemas.checks import Quarantined
from refold.schemas.commits import Chain, Commit, EventList, Position, commit_hash, next_commit, pack_events
from refold.schemas.errors import IntegrityError, InvalidRecord
from refold.schemas.events import ClientEnrolled, FederationEnded
from refold.schemas.payload import PlaceHint, chunk_digest, describe
from tests.fuzz.decoder import TAKEN, Decoder, Defect, Input
from tests.fuzz.records import mend as mend_payloads

TOPIC = "fuzz.accepted"
COMMIT = [field.name for field in fields(Commit)]


def decoders() -> Iterator[Decoder]:
    """Yield the chain's rule, a log's reader, and the reader of payloads."""
    seen = frozenset({TAKEN, "skipped"})
    yield Decoder("chain", log_seeds, judge_chain, mend=mend_chain, is_packed=True, reaches=seen)
    yield Decoder(
        "ledger",
        log_seeds,
        judge_ledger,
        errors=(InvalidRecord, IntegrityError),
        mend=mend_chain,
        is_packed=True,
        reaches=seen | {"IntegrityError"},
    )
    yield Decoder(
        "payloads",
        payload_seeds,
        judge_payload,
        errors=(InvalidRecord, IntegrityError),
        mend=_mend_first,
        is_packed=True,
        reaches=frozenset({TAKEN, "IntegrityError", "form", "root-digest"}),
    )


@cache
def log_seeds() -> tuple[Input, ...]:
    """Return short logs: commits with events inline, in chunks, and without any."""
    chain, records = Chain.of(TOPIC), []
    position = Position(checked=3, commands=1)
    for number in range(3):
        events = tuple(encode(ClientEnrolled(f"c{number}{i}", bytes(32), bytes(16))) for i in range(number))
        commit = next_commit(chain, events, position, writer="w", epoch=1, time_ms=number)
        records.append(encode(commit))
        chain.offer(records[-1])
    parts = pack_events((encode(FederationEnded(1, "over")), encode(FederationEnded(2, "again"))), most_bytes=20)
    large = next_commit(chain, (), position, writer="w", epoch=2, time_ms=4)
    large = replace(large, count=2, chunks=describe(parts, inline_bytes=-1).at(PlaceHint(0, 3, 4)))
    return (tuple(records), (*records, *parts, encode(large)), tuple(records[:1]))


def judge_chain(value: Input) -> str:
    """Offer every record to a chain, and see that it moved by what it took and by nothing else."""
    chain = Chain.of(TOPIC)
    for data in value:
        before = chain.copy()
        commit = chain.offer(data)
        if commit is None:
            same = replace(chain, skipped=before.skipped) == before
            if not same or chain.skipped != before.skipped + 1:
                raise Defect("a record that was skipped moved the chain")
        elif (chain.head, chain.next_index) != (commit_hash(data), before.next_index + commit.count):
            raise Defect("the chain does not stand behind the commit that it took")
    return "skipped" if chain.skipped else TAKEN


def judge_ledger(value: Input) -> str:
    """Read the records as a log from a bus."""
    with MemoryBus() as bus:
        bus.create_topics([TopicSpec(TOPIC)])
        with bus.producer() as producer:
            for data in value:
                headers = event_headers(_kind(data), source=TOPIC, subject="w", identity="", time_ms=0)
                producer.send(TOPIC, data, partition=0, headers=headers)
        reader = LedgerReader(bus, TOPIC)
        try:
            events = sum(len(entry.events) for entry in reader.read_to_end())
        finally:
            reader.close()
        if events != reader.chain.next_index:
            raise Defect(f"{events} events in a log of {reader.chain.next_index}")
        return "skipped" if reader.chain.skipped else TAKEN


def _kind(data: bytes) -> str:
    """Return what the record's writer would say that it is."""
    return "EventList" if data[1:3] == b"\x1f\x01" else "Commit"


def mend_chain(value: Input, _chance: Random) -> Input:
    """Let every commit name the one before it, and the chunks before it."""
    chain, mended = Chain.of(TOPIC), []
    parts: list[bytes] = []
    for data in value:
        try:
            if _kind(data) == "EventList":
                parts.append(data)
                decode(data, EventList)
            else:
                data = _linked(data, chain, parts)
                chain.offer(data)
                parts = []
        except (InvalidRecord, ValueError, TypeError, LookupError, RecursionError, OverflowError, msgpack.UnpackException):
            pass
        mended.append(data)
    return tuple(mended)


def _linked(data: bytes, chain: Chain, parts: list[bytes]) -> bytes:
    tree = msgpack.unpackb(data, use_list=True, raw=False, strict_map_key=False)
    tree[2 + COMMIT.index("previous")] = chain.head
    tree[2 + COMMIT.index("first_index")] = chain.next_index
    chunks = tree[2 + COMMIT.index("chunks")]
    if chunks is None:
        tree[2 + COMMIT.index("count")] = len(tree[2 + COMMIT.index("events")])
    elif parts:
        chunks[1], chunks[2] = [chunk_digest(part) for part in parts], [len(part) for part in parts]
    packed: bytes = msgpack.packb(tree, use_bin_type=True)
    return mend_payloads((packed,), Random(0))[0]


@cache
def payload_seeds() -> tuple[Input, ...]:
    """Return a record that names a payload, and the chunks; hinted, not hinted, and inline."""
    found: list[Input] = []
    for chunks in ((b"one", b"two" * 50, b"three"), (b"x" * 300,), (b"twice", b"twice")):
        plain = describe(chunks, inline_bytes=-1)
        payloads = (plain, plain.at(PlaceHint(0, 0, len(chunks) - 1)), describe(chunks[:1]))
        found += [(encode(Quarantined(0, 1, "ann", ("form",), "why", 3, payload)), *chunks) for payload in payloads]
    return tuple(found)


def judge_payload(value: Input) -> str:
    """Read a payload from a topic that holds these chunks."""
    payload = decode(value[0], Quarantined).payload
    with MemoryBus() as bus:
        bus.create_topics([TopicSpec("fuzz.quarantine")])
        with bus.producer() as producer:
            for chunk in value[1:]:
                producer.send("fuzz.quarantine", chunk, partition=0, headers=chunk_headers())
        reader = PayloadReader(bus, "fuzz.quarantine")
        try:
            some = list(reader.read_what_is_there(payload))
            whole = list(reader.read(payload))
        finally:
            reader.close()
        assert bus.end_offset(Place("fuzz.quarantine", 0)) == len(value) - 1
    if whole != some or tuple(map(chunk_digest, whole)) != payload.chunks or tuple(map(len, whole)) != payload.lengths:
        raise Defect("a payload came as something else than it names")
    return TAKEN


def _mend_first(value: Input, chance: Random) -> Input:
    return (*mend_payloads(value[:1], chance), *value[1:])
