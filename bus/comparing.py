"""Comparing what two buses hold: records by their bytes, logs by their chains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

import blake3

from refold.bus.contract import Bus, Place, Record
from refold.bus.ledger import Entry, LedgerReader
from refold.bus.ranges import records_in
from refold.schemas.commits import Chain
from refold.schemas.errors import IntegrityError

LOGS = ("accepted", "rounds")
"""Topics that are chains of commits."""

FILLER_HEADER = "refold-gap"


def is_filler(record: Record) -> bool:
    """Whether a record only stands where its copy's source has none."""
    return record.value is None and record.header(FILLER_HEADER) is not None


def content(record: Record) -> bytes:
    """Return the digest of all that a copy keeps: key, value and headers."""
    hasher = blake3.blake3(derive_key_context="refold 2026 record content")
    for part in (record.key, record.value, *(part for name, value in record.headers for part in (name.encode(), value))):
        hasher.update(b"\0" if part is None else b"\1" + len(part).to_bytes(8, "little"))
        hasher.update(part or b"")
    return hasher.digest()


TAIL_RECORDS = 4
LOG_TAIL_RECORDS = 64
"""Records compared before a copy goes on. A commit names the hash of all before it, so the last one of a log stands for all of
it; between the last two lie at most the chunks of one commit's events."""


def require_same(source: Bus, target: Bus, place: Place, *, is_log: bool) -> None:
    """Refuse a target whose records are not the source's, as far as its last ones tell.

    Raises
    ------
    IntegrityError
        It holds other records, or more.
    """
    have, there = target.end_offset(place), source.end_offset(place)
    common = min(have, there)
    if is_log:
        _compare_range(source, target, place, 0, min(0, common - 1))  # The genesis: the clearest word on another federation.
    _compare_range(source, target, place, max(0, common - (LOG_TAIL_RECORDS if is_log else TAIL_RECORDS)), common - 1)
    if have > there:
        raise IntegrityError(
            f"the target has {have - there} records more than the source",
            topic=place.topic,
            partition=place.partition,
            offset=there,
            hint="somebody went on there; copy the other way round, or name another target",
        )


def _compare_range(source: Bus, target: Bus, place: Place, first: int, last: int) -> None:
    mine = {r.offset: content(r) for r in records_in(target, place, first, last) if not is_filler(r)}
    for record in records_in(source, place, first, last) if mine else ():
        if mine.get(record.offset, content(record)) != content(record):
            raise IntegrityError(
                f"the target holds another log of a federation named {place.topic.rpartition('.')[0]!r}",
                topic=place.topic,
                partition=place.partition,
                offset=record.offset,
                hint="name another target; `refold diff --with URL` says where the two part",
            )


def head_at(bus: Bus, topic: str, end: int) -> Chain:
    """Return the chain of a log as its records below an offset make it."""
    chain = Chain.of(topic)
    for record in records_in(bus, Place(topic, 0), 0, end - 1):
        if ("ce_type", b"refold.EventList") not in record.headers and not is_filler(record):
            chain.offer(record.value or b"")
    return chain


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two logs part.

    Parameters
    ----------
    index
        Of the first event of the first commit that differs.
    left, right
        That commit on either side; None where the log ends before it.
    """

    topic: str
    index: int
    left: Entry | None
    right: Entry | None

    @property
    def is_end(self) -> bool:
        """Whether one log is only longer than the other."""
        return self.left is None or self.right is None

    def events(self) -> Iterator[tuple[int, object, object]]:
        """Yield (index, left's, right's) of every event of the commits that differs."""
        left, right = self.left.events if self.left else (), self.right.events if self.right else ()
        for index, (ours, theirs) in enumerate(zip_longest(left, right), self.index):
            if ours != theirs:
                yield index, ours, theirs


def parting(left: Bus, right: Bus, topic: str) -> tuple[Parting | None, int]:
    """Return where a log parts on two buses, or None, and how many events they have in common."""
    readers = LedgerReader(left, topic), LedgerReader(right, topic)
    index = 0
    try:
        for ours, theirs in zip_longest(*(reader.read_to_end() for reader in readers)):
            if ours is None or theirs is None or ours.hash != theirs.hash:
                return Parting(topic, index, ours, theirs), index
            index = ours.commit.next_index
    finally:
        for reader in readers:
            reader.close()
    return None, index


def compare_records(source: Bus, target: Bus, place: Place, end: int, *, compacted: bool) -> int:
    """Compare every record below an offset, and return how many there were.

    What the source no longer has is passed over; of a compacted topic the newest record of each key counts.

    Raises
    ------
    IntegrityError
        A record of the source is not in the target, or is another there.
    """
    return (_compare_newest if compacted else _compare_each)(source, target, place, end)


def _compare_each(source: Bus, target: Bus, place: Place, end: int) -> int:
    count = 0
    theirs = records_in(target, place, source.begin_offset(place), end - 1)
    mine = next(theirs, None)
    for record in records_in(source, place, 0, end - 1):
        while mine is not None and mine.offset < record.offset:
            mine = next(theirs, None)
        if mine is None or mine.offset != record.offset or content(mine) != content(record):
            raise _differs(place, record.offset)
        count += 1
    return count


def _compare_newest(source: Bus, target: Bus, place: Place, end: int) -> int:
    wanted, found = _newest(source, place, end), _newest(target, place, end)
    for key, (offset, digest) in wanted.items():
        if found.get(key, (0, b""))[1] != digest:
            raise _differs(place, offset)
    return len(wanted)


def _newest(bus: Bus, place: Place, end: int) -> dict[bytes | None, tuple[int, bytes]]:
    """Return offset and digest of the newest value of each key that has one."""
    found: dict[bytes | None, tuple[int, bytes]] = {}
    for record in records_in(bus, place, 0, end - 1):
        found.pop(record.key, None)
        if record.value is not None:
            found[record.key] = record.offset, content(record)
    return found


def _differs(place: Place, offset: int) -> IntegrityError:
    return IntegrityError(
        "the copy lacks a record or holds another in its place",
        topic=place.topic,
        partition=place.partition,
        offset=offset,
        hint="copy to a new target",
    )
