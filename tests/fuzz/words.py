"""Short texts from outside: refs, URLs, hints, headers, positions' notes, group members' claims."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import cache

from refold.bus import parse_url
from refold.bus._groups import Group, Member
from refold.bus._kafka_sharing import pack_claim, share
from refold.bus._sqlite_groups import load_group, save_group
from refold.bus._sqlite_records import pack_headers, unpack_headers
from refold.bus.contract import Place, Record
from refold.bus.topics import HINT_HEADER, hint_header, hint_of
from refold.cli.doctor import _ahead
from refold.cli.quarantine import _place
from refold.cli.status import _said
from refold.producers.lineage import Lineage, LineageReader
from refold.refs import parse_ref
from refold.schemas.errors import ConfigurationError, IntegrityError, NotFoundError, UsageError
from tests.fuzz import samples
from tests.fuzz.decoder import TAKEN, Decoder, Defect, Input, check_same
from tests.fuzz.mutating import texts

REFS = ("r12", "HEAD~3", "@", "client:ann", "digest:abcd", "ab" * 32, "0")
URLS = ("sqlite:a.db?federation=x", "memory:x", "kafka://h:9092,i:1/f?replication=3", "sqlite:/a/%20b")
RECORD = Record("fuzz.updates", 0, 99, 1_000, b"ann", b"", ())


def decoders() -> Iterator[Decoder]:
    """Yield one for each kind of text."""
    for name, words, judge, errors, reaches in (
        ("refs", REFS, judge_ref, (UsageError, NotFoundError), {"UsageError", "NotFoundError"}),
        ("urls", URLS, judge_url, (ConfigurationError,), {"ConfigurationError"}),
        ("hints", (hint_header(3, 17)[1].decode(),), judge_hint, (), {"none"}),
        ("places", ("0/17",), judge_place, (UsageError,), {"UsageError"}),
        ("notes", ("host/a 1700000000000",), judge_note, (), {"none"}),
        ("clocks", ("2026-01-01T00:00:00.000Z", "2026-01-01"), judge_clock, (), {"none"}),
    ):
        seeds = _texts(*words)
        yield Decoder(name, lambda seeds=seeds: seeds, judge, errors, (texts,), reaches=frozenset({TAKEN, *reaches}))
    wrong = frozenset({TAKEN, "IntegrityError"})
    yield Decoder("headers", _header_seeds, judge_headers, errors=(IntegrityError,), reaches=wrong)
    yield Decoder("groups", _group_seeds, judge_group, errors=(IntegrityError,), changes=(texts,), reaches=wrong)
    yield Decoder("kafka-claims", _claim_seeds, judge_claim, reaches=frozenset({TAKEN, "nothing"}))


def _texts(*texts: str) -> list[Input]:
    return [(text.encode(),) for text in texts]


@cache
def _lineage() -> Lineage:
    made = samples.federation()
    reader = LineageReader(made.bus, made.topics)
    try:
        return reader.read_to_end()
    finally:
        reader.close()


def judge_ref(value: Input) -> str:
    """Say what a word names."""
    parse_ref(value[0].decode(errors="replace"), _lineage(), {"ann", "r12x", "abcd"})
    return TAKEN


def judge_url(value: Input) -> str:
    """Take a bus URL apart."""
    parse_url(value[0].decode(errors="replace"))
    return TAKEN


def judge_hint(value: Input) -> str:
    """Read a manifest's hint."""
    hint = hint_of(replace(RECORD, headers=((HINT_HEADER, value[0]),)))
    if hint is not None and not 0 <= hint.first_offset <= hint.last_offset < RECORD.offset:
        raise Defect("a hint that points nowhere")
    return TAKEN if hint else "none"


def judge_place(value: Input) -> str:
    """Read PARTITION/OFFSET."""
    partition, offset = _place(value[0].decode(errors="replace"))
    assert min(partition, offset) >= 0
    return TAKEN


def judge_note(value: Input) -> str:
    """Read what a member said beside its position."""
    member, _ = _said(value[0].decode(errors="replace"))
    return TAKEN if member else "none"


def judge_clock(value: Input) -> str:
    """Read what a writer says the time is."""
    subject, _ = _ahead(replace(RECORD, headers=(("ce_time", value[0]), ("ce_subject", b"ann"))))
    return TAKEN if subject else "none"


@cache
def _header_seeds() -> tuple[Input, ...]:
    made = [(("a", b"b"), ("ce_type", b"refold.Chunk")), (("x", b""),)]
    return tuple((pack_headers(headers) or b"",) for headers in made)


def judge_headers(value: Input) -> str:
    """Read a record's headers from the bus's file."""
    found = unpack_headers(value[0])
    check_same(pack_headers(found) or b"", value[0], "headers")
    return TAKEN


@cache
def _group_seeds() -> tuple[Input, ...]:
    member = Member("a", "host", ("fuzz.updates",), 1.5, 2.5)
    with closing(_groups_table()) as connection:
        save_group(connection, "g", Group(3, {"a": member}, {Place("fuzz.updates", 0): "a"}, {Place("fuzz.updates", 0): "a"}))
        return ((connection.execute("SELECT membership FROM groups").fetchone()[0].encode(),),)


def _groups_table() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE groups (name TEXT PRIMARY KEY, generation INTEGER, membership TEXT)")
    return connection


def judge_group(value: Input) -> str:
    """Read a group's membership from the bus's file."""
    with closing(_groups_table()) as connection:
        connection.execute("INSERT INTO groups VALUES ('g', 3, ?)", (value[0].decode(errors="replace"),))
        group = load_group(connection, "g")
    for place in (*group.assigned, *group.held):
        if not isinstance(place.topic, str) or type(place.partition) is not int:
            raise Defect(f"a place that is none: {place}")
    return TAKEN


@cache
def _claim_seeds() -> tuple[Input, ...]:
    return ((pack_claim(["fuzz.updates", "fuzz.checked"], [Place("fuzz.updates", 1)], 5),),)


def judge_claim(value: Input) -> str:
    """Share places out between a member that says this and one that is sound."""
    given = share({"odd": value[0], "sound": _claim_seeds()[0][0]}, lambda _topic: 3)
    if len({place for places in given.values() for place in places}) != sum(map(len, given.values())):
        raise Defect("one place was given to two")
    return TAKEN if given["odd"] else "nothing"
