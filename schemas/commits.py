"""Commits and the chain they form: the one rule that orders a log.

A commit is one record. It names the hash of the commit before it; a reader takes a record whose previous hash is that of the
last commit it took, and skips and counts every other. So two writers, zombies, lost acknowledgements and repeats cannot fork a
log, no matter how late their records arrive.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Annotated

import blake3

from refold.schemas.canonical import Blob, Digest, Name, Uint, Within, decode, encode, record
from refold.schemas.errors import InvalidRecord
from refold.schemas.payload import Payload

MAX_INLINE_EVENTS_BYTES = 900_000

_first = itemgetter(0)


@dataclass(frozen=True, slots=True)
class PartitionPosition:
    """How much of a partition of `updates` is judged: every manifest below `next_offset`, and those in the runs above it.

    Parameters
    ----------
    judged_above
        Runs of offsets (first, last), both inclusive, ascending and apart: every manifest in them has its verdict. There are no
        more of them than updates that wait, however many were refused meanwhile.
    """

    partition: Uint
    next_offset: Uint
    judged_above: tuple[tuple[Uint, Uint], ...]

    def is_judged(self, offset: int) -> bool:
        """Whether a manifest at this offset has its verdict."""
        if offset < self.next_offset:
            return True
        at = bisect_right(self.judged_above, offset, key=_first) - 1
        return at >= 0 and offset <= self.judged_above[at][1]


@dataclass(frozen=True, slots=True)
class Position:
    """Which input a commit covers.

    Parameters
    ----------
    updates
        One entry for each partition of `updates` that was read. Commits of `rounds` repeat those of the commit of `accepted`
        that they cover, each with its first runs: so a client sees that nobody will ever answer.
    checked, commands
        For commits of `accepted`: next offsets of these topics still needed.
    accepted_index, accepted_hash
        For commits of `rounds`: the head of `accepted` that is covered (next event index, commit hash).
    """

    updates: tuple[PartitionPosition, ...] = ()
    checked: Uint = 0
    commands: Uint = 0
    accepted_index: Uint = 0
    accepted_hash: Digest = bytes(32)


@record(30)
@dataclass(frozen=True, slots=True)
class Commit:
    """One record of a log: events, and the input they cover.

    Parameters
    ----------
    epoch
        The writer's: one more than that of the last commit it took when it began to write.
    first_index
        Index of the first event; events of a log are numbered densely from 0.
    previous
        Hash of the commit before, or the log's root hash.
    events
        Canonical bytes of each event, or empty where they travel as `chunks` (the packed list, split) just before.
    """

    epoch: Uint
    first_index: Uint
    previous: Digest
    writer: Name
    time_ms: Uint
    position: Position
    count: Annotated[int, Within(0, 1 << 16)]
    events: tuple[Blob, ...]
    chunks: Payload | None

    @property
    def next_index(self) -> int:
        """Index of the first event after this commit."""
        return self.first_index + self.count


@record(31)
@dataclass(frozen=True, slots=True)
class EventList:
    """The events of a commit too large for one record: a part of them."""

    events: tuple[Blob, ...]


def root_hash(topic: str) -> bytes:
    """Return the hash that the first commit of a log names as its previous one."""
    return blake3.blake3(topic.encode(), derive_key_context="refold 2026 log root").digest()


def commit_hash(data: bytes) -> bytes:
    """BLAKE3 of the commit record's bytes as they were read."""
    return blake3.blake3(data, derive_key_context="refold 2026 commit").digest()


@dataclass(slots=True)
class Chain:
    """The head of a log, as a reader sees it.

    Parameters
    ----------
    head
        Hash of the last commit taken.
    next_index
        Index of the next event.
    skipped
        Records that did not extend the chain: stale commits, repeats, garbage.
    """

    head: bytes
    next_index: int = 0
    epoch: int = 0
    commits: int = 0
    skipped: int = 0
    position: Position = field(default_factory=Position)

    @classmethod
    def of(cls, topic: str) -> Chain:
        """Return the chain of a log from which nothing was read."""
        return cls(root_hash(topic))

    def offer(self, data: bytes) -> Commit | None:
        """Take the record if it extends the chain; else count it and return None. Never raises for bad bytes."""
        try:
            commit = decode(data, Commit)
        except InvalidRecord:
            self.skipped += 1
            return None
        if not self._extends(commit):
            self.skipped += 1
            return None
        self.head = commit_hash(data)
        self.next_index = commit.next_index
        self.epoch = commit.epoch
        self.commits += 1
        self.position = commit.position
        return commit

    def _extends(self, commit: Commit) -> bool:
        inline = commit.chunks is None
        dense = commit.first_index == self.next_index and (len(commit.events) == commit.count if inline else not commit.events)
        return commit.previous == self.head and dense

    def copy(self) -> Chain:
        """Return a chain of its own that goes on from here."""
        return replace(self)


def next_commit(
    chain: Chain, events: tuple[bytes, ...], position: Position, *, writer: str, epoch: int, time_ms: int
) -> Commit:
    """Return the commit that would extend the chain with these events inline."""
    return Commit(epoch, chain.next_index, chain.head, writer, time_ms, position, len(events), events, None)


def pack_events(events: tuple[bytes, ...], *, most_bytes: int = MAX_INLINE_EVENTS_BYTES) -> list[bytes]:
    """Cut events into encoded `EventList` records of at most `most_bytes` of events each."""
    parts: list[bytes] = []
    group: list[bytes] = []
    size = 0
    for event in events:
        if group and size + len(event) > most_bytes:
            parts.append(encode(EventList(tuple(group))))
            group, size = [], 0
        group.append(event)
        size += len(event) + 8
    return [*parts, encode(EventList(tuple(group)))]
