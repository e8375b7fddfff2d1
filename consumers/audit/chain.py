"""Invariant I5: a log's chain, read record by record, with every record that is not part of it explained.

A record that does not extend the chain is one of these:

- *stale*: a commit that builds on a commit of the log and came second, or a repeat. Writers that lose a race leave them.
- *foreign*: no commit at all, or one that builds on nothing in the log, while the log goes on behind it. No reader takes it.
- *a break*: a commit that builds on nothing in the log, behind its last good commit. What lay between was changed or is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from refold.bus.contract import Bus, Place, Record
from refold.bus.ledger import Entry
from refold.bus.payloads import PayloadReader
from refold.consumers.audit.findings import CHAIN, NOTICE, Finding, LogCount
from refold.schemas.canonical import decode
from refold.schemas.commits import Chain, Commit, EventList, commit_hash, root_hash
from refold.schemas.errors import IntegrityError, InvalidRecord
from refold.schemas.payload import Payload, chunk_digest

MAX_BREAKS = 20
"""Breaks of one chain that are named one by one; a log with more is told as such."""

WINDOW_CHUNKS = 256


@dataclass(frozen=True, slots=True)
class _Loose:
    """A record that did not extend the chain when it came, and that no race explains."""

    offset: int
    commit_hash: bytes
    commit: Commit | None


class ChainScan:
    """Reads one log up to where it ended when the scan was made.

    Holds the hash of every commit, 32 bytes each, and what does not belong.
    """

    def __init__(self, bus: Bus, topic: str) -> None:
        self._bus = bus
        self._topic = topic
        self._chain = Chain.of(topic)
        self._end = bus.end_offset(Place(topic, 0))
        self._known = {root_hash(topic)}
        self._loose: list[_Loose] = []
        self._parts: dict[bytes, bytes] = {}
        self._payloads: PayloadReader | None = None
        self._last_offset = -1
        self._next_offset = 0
        self.count = LogCount()
        self.findings: list[Finding] = []

    @property
    def progress(self) -> tuple[int, int]:
        """How many offsets were read, and how many there are."""
        return self._next_offset, self._end

    @property
    def next_index(self) -> int:
        """Index of the event after the last one read."""
        return self._chain.next_index

    def entries(self) -> Iterator[Entry]:
        """Yield the commits that readers take; afterwards `findings` says what is wrong with the rest."""
        with self._bus.consumer() as consumer:
            consumer.assign([Place(self._topic, 0)])
            while consumer.position(Place(self._topic, 0)) < self._end:
                for record in consumer.poll(1.0):
                    self._next_offset = record.offset + 1
                    entry = self._take(record) if record.offset < self._end else None
                    if entry is not None:
                        yield entry
        self._explain()
        self.count.head = self._chain.head.hex()

    def _take(self, record: Record) -> Entry | None:
        data = record.value or b""
        if ("ce_type", b"refold.EventList") in record.headers:
            self._remember(data)
            return None
        commit = self._chain.offer(data)
        if commit is None:
            self._set_aside(record.offset, data)
            return None
        found = commit_hash(data)
        self._known.add(found)
        self._last_offset = record.offset
        self.count.commits += 1
        self.count.events += commit.count
        encoded = self._encoded(commit, record.offset)
        self._parts.clear()
        if encoded is None:
            return Entry(commit, found, record.offset, (None,) * commit.count)
        events = tuple(self._event(data, commit.first_index + at, record.offset) for at, data in enumerate(encoded))
        return Entry(commit, found, record.offset, events, encoded)

    def _remember(self, data: bytes) -> None:
        self._parts[chunk_digest(data)] = data
        while len(self._parts) > WINDOW_CHUNKS:
            del self._parts[next(iter(self._parts))]

    def _set_aside(self, offset: int, data: bytes) -> None:
        try:
            commit: Commit | None = decode(data, Commit)
        except InvalidRecord:
            commit = None
        found = commit_hash(data)
        if found in self._known or (commit is not None and commit.previous in self._known and self._is_late(commit)):
            self.count.stale += 1
        else:
            self._loose.append(_Loose(offset, found, commit))

    def _is_late(self, commit: Commit) -> bool:
        """Whether the chain had gone on when this commit came; one that names the head and yet does not extend it lies."""
        return commit.previous != self._chain.head

    def _encoded(self, commit: Commit, offset: int) -> tuple[bytes, ...] | None:
        """Return the bytes of a commit's events; None, and a finding, where they are not there."""
        try:
            encoded = commit.events if commit.chunks is None else self._joined(commit.chunks)
        except (InvalidRecord, IntegrityError) as error:
            what = f"the events of a commit cannot be read: {error.message}"
            self._broken(what, commit.first_index, offset, "restore the log from a copy")
            return None
        if len(encoded) != commit.count:
            what = f"a commit names {commit.count} events and has {len(encoded)}"
            self._broken(what, commit.first_index, offset, "restore the log from a copy")
            return None
        return encoded

    def _joined(self, payload: Payload) -> tuple[bytes, ...]:
        if all(digest in self._parts for digest in payload.chunks):
            parts: Iterator[bytes] = iter([self._parts[digest] for digest in payload.chunks])
        else:
            self._payloads = self._payloads or PayloadReader(self._bus, self._topic)
            parts = self._payloads.read(payload)
        return tuple(event for part in parts for event in decode(part, EventList).events)

    def _event(self, data: bytes, index: int, offset: int) -> Any:
        try:
            return decode(data)
        except InvalidRecord as error:
            self._broken(f"an event cannot be read: {error.message}", index, offset, "was it written by a newer Refold?")
            return None

    def _explain(self) -> None:
        """Tell breaks from what does no harm, once the end of the chain is known."""
        breaks = [loose for loose in self._loose if loose.commit is not None and loose.offset > self._last_offset]
        starts = self._starts(breaks)
        for loose in starts[:MAX_BREAKS]:
            self._broken_before(loose)
        if len(starts) > MAX_BREAKS:
            self._broken(f"the chain breaks {len(starts)} times", self._chain.next_index, starts[0].offset, "")
        within = {loose.offset for loose in breaks}
        for loose in self._loose:
            if loose.offset not in within:
                self.count.foreign += 1
                self._foreign(loose, is_tail=loose.offset > self._last_offset and not starts)

    def _foreign(self, loose: _Loose, *, is_tail: bool) -> None:
        """Name a record that is no commit; behind the last good one it may be what is left of another."""
        if loose.commit is None and loose.offset > self._last_offset:
            if is_tail:
                what = f"the record behind event {self._chain.next_index - 1} is no commit"
                self._broken(what, self._chain.next_index, loose.offset, "if it was one, restore it from a copy")
            return
        if loose.commit is not None and loose.commit.previous in self._known:
            first = loose.commit.first_index
            what = f"the commit with event {first} lies before the one that it builds on: their order was changed"
            self._broken(what, first, loose.offset, "restore the log from a copy")
            return
        what = "a record is no part of the log" if loose.commit is None else "a commit builds on nothing in the log"
        hint = "no reader takes it; who wrote it?"
        self.findings.append(Finding(CHAIN, what, hint, self._topic, 0, loose.offset, severity=NOTICE))

    def _starts(self, breaks: list[_Loose]) -> list[_Loose]:
        """Return the commits behind the end that do not build on one another."""
        hashes = {loose.commit_hash for loose in breaks}
        return [loose for loose in breaks if loose.commit is not None and loose.commit.previous not in hashes]

    def _broken_before(self, loose: _Loose) -> None:
        assert loose.commit is not None
        first, due = loose.commit.first_index, self._chain.next_index
        lost = f"; events {due} to {first - 1} are missing" if first > due else ""
        what = f"the chain breaks before event {first}: this commit does not follow the one before it{lost}"
        hint = f"the log is sound up to event {due - 1} (offset {self._last_offset}); restore the rest from a copy"
        self._broken(what, min(first, due), loose.offset, hint)

    def _broken(self, what: str, index: int, offset: int, hint: str) -> None:
        self.findings.append(Finding(CHAIN, what, hint, self._topic, 0, offset, index))

    def close(self) -> None:
        """Let go of the reader of chunks."""
        if self._payloads:
            self._payloads.close()
