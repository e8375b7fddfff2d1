"""Reading and writing a log of commits (`accepted`, `rounds`).

Durable steps of a write, in order:

1. What the commit names (chunks, quarantine, features) is acknowledged. A crash after this leaves garbage that nobody names.
2. Events too large for one record are acknowledged as `EventList` chunks. A crash after this: the same.
3. The commit is sent. A crash after this: it is there or not; a successor reads the log and sees.
4. The commit is read back as taken. Only now does it count. If another was taken first, ours is skipped by every reader for
   ever, and the writer folds what was taken and decides anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from refold.bus.clock import Clock
from refold.bus.contract import Bus, Place, Record
from refold.bus.payloads import PayloadReader
from refold.bus.topics import event_headers
from refold.schemas.canonical import decode, encode
from refold.schemas.commits import (
    MAX_INLINE_EVENTS_BYTES,
    Chain,
    Commit,
    EventList,
    Position,
    commit_hash,
    next_commit,
    pack_events,
)
from refold.schemas.errors import BusError, IntegrityError, InvalidRecord, TryAgainError
from refold.schemas.payload import Payload, chunk_digest, describe

WINDOW_BYTES = 16 << 20
"""Event lists that wait for their commit; those of a larger commit, and of writers who never came to one, are read again."""

MAX_COMMIT_BYTES = 1 << 30
"""Most that a commit's events may come to where they travel as chunks: 65,536 verdicts with features of 16 KiB each."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A commit that was taken, with its events decoded.

    Parameters
    ----------
    hash
        The commit's hash, the chain's head after it.
    offset
        The commit's offset in the topic.
    encoded
        The events' bytes as they were written.
    """

    commit: Commit
    hash: bytes
    offset: int
    events: tuple[Any, ...]
    encoded: tuple[bytes, ...] = ()

    def indexed(self) -> Iterator[tuple[int, Any]]:
        """Yield each event with its index in the log."""
        return enumerate(self.events, self.commit.first_index)


class LedgerReader:
    """Reads a log from its beginning (or from a chain already followed), taking what extends it and counting the rest.

    Parameters
    ----------
    decodes
        Whether entries hold their events; for those who want the bytes alone, which is several times as fast.
    """

    def __init__(self, bus: Bus, topic: str, *, chain: Chain | None = None, next_offset: int = 0, decodes: bool = True) -> None:
        self._bus = bus
        self.topic = topic
        self._decodes = decodes
        self.place = Place(topic, 0)
        self.chain = chain.copy() if chain else Chain.of(topic)
        self._consumer = bus.consumer()
        self._consumer.assign([self.place])
        self._consumer.seek(self.place, next_offset)
        self._window: dict[bytes, bytes] = {}
        self._window_bytes = 0
        self._payloads: PayloadReader | None = None

    @property
    def next_offset(self) -> int:
        """Offset read next at the earliest."""
        return self._consumer.position(self.place)

    def poll(self, timeout_s: float = 0.0) -> list[Entry]:
        """Return the commits taken from what is new, waiting up to `timeout_s` for a first record.

        Raises
        ------
        IntegrityError
            A commit that extends the chain holds events that cannot be read.
        """
        entries: list[Entry] = []
        for record in self._consumer.poll(timeout_s):
            try:
                entry = self._take(record)
            except (IntegrityError, BusError):
                # What was taken before it is handed over first; the next poll comes to this record again.
                self._consumer.seek(self.place, record.offset)
                if not entries:
                    raise
                break
            if entry is not None:
                entries.append(entry)
        return entries

    def read_to_end(self) -> Iterator[Entry]:
        """Yield commits up to where the topic ended when this was called."""
        end = self._bus.end_offset(self.place)
        while self.next_offset < end:
            yield from self.poll(1.0)

    def read_past(self, next_offset: int) -> None:
        """Follow the chain up to an offset, keeping nothing, and stand there."""
        end = min(next_offset, self._bus.end_offset(self.place))
        while self.next_offset < end:
            for record in self._consumer.poll(1.0):
                if record.offset >= end:
                    self._consumer.seek(self.place, end)
                    return
                self._take(record)

    def _take(self, record: Record) -> Entry | None:
        data = record.value or b""
        if ("ce_type", b"refold.EventList") in record.headers:
            self._remember(data)
            return None
        before = self.chain.copy()
        commit = self.chain.offer(data)
        if commit is None:
            return None
        try:
            encoded = self._event_bytes(commit)
            events: tuple[Any, ...] = tuple(decode(event) for event in encoded) if self._decodes else ()
        except (IntegrityError, BusError):
            self.chain = before
            raise
        except InvalidRecord as error:
            self.chain = before
            raise IntegrityError(
                f"the log holds an event that this Refold cannot read: {error.message}",
                topic=self.topic,
                offset=record.offset,
                hint="a newer Refold wrote it; upgrade this one",
            ) from error
        self._window.clear()
        self._window_bytes = 0
        return Entry(commit, commit_hash(data), record.offset, events, encoded)

    def _remember(self, data: bytes) -> None:
        digest = chunk_digest(data)
        if digest not in self._window:
            self._window[digest] = data
            self._window_bytes += len(data)
        while self._window_bytes > WINDOW_BYTES:
            self._window_bytes -= len(self._window.pop(next(iter(self._window))))

    def _event_bytes(self, commit: Commit) -> tuple[bytes, ...]:
        if commit.chunks is None:
            return commit.events
        if commit.chunks.size_bytes > MAX_COMMIT_BYTES:
            raise IntegrityError(f"a commit's events come to {commit.chunks.size_bytes:,} bytes", topic=self.topic)
        events: list[bytes] = []
        for part in self._chunks(commit.chunks):
            events.extend(decode(part, EventList).events)
            if len(events) > commit.count:
                break
        if len(events) != commit.count:
            raise IntegrityError(f"a commit names {commit.count} events and has {len(events)}", topic=self.topic)
        return tuple(events)

    def _chunks(self, payload: Payload) -> Iterator[bytes]:
        if all(digest in self._window for digest in payload.chunks):
            yield from (self._window[digest] for digest in payload.chunks)
            return
        self._payloads = self._payloads or PayloadReader(self._bus, self.topic)
        yield from self._payloads.read(payload)

    def close(self) -> None:
        """Let go of the consumers."""
        self._consumer.close()
        if self._payloads:
            self._payloads.close()


@dataclass(frozen=True, slots=True)
class Appended:
    """What a reader took since the writer last looked: `taken` says whether the writer's own commit is among it."""

    entries: tuple[Entry, ...]
    taken: bool


class LedgerWriter:
    """Appends commits to the log that `reader` follows."""

    def __init__(self, bus: Bus, reader: LedgerReader, *, writer: str, clock: Clock) -> None:
        self._bus = bus
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._epoch = reader.chain.epoch + 1
        self._producer = bus.producer()

    def append(self, events: tuple[object, ...], position: Position) -> Appended:
        """Write one commit and read the log back until it is decided whether it was taken.

        Everything the events name must be acknowledged already. The reader moves; fold what comes back, in order.

        Raises
        ------
        BusError
            The bus failed before the commit could be read back. It may still arrive; read the log before deciding anything.
        """
        encoded = tuple(encode(event) for event in events)
        commit = next_commit(
            self._reader.chain,
            encoded,
            position,
            writer=self._writer,
            epoch=self._epoch,
            time_ms=self._clock.wall_ms(),
        )
        # 2. Large commits: their events first.
        if not _fits(commit):
            commit = replace(commit, events=(), chunks=self._send_events(encoded, commit.time_ms))
        # 3. The commit.
        data = encode(commit)
        self._send_commit(data, commit)
        # 4. Taken, or not.
        entries = tuple(self._reader.read_to_end())
        ours = commit_hash(data)
        return Appended(entries, any(entry.hash == ours for entry in entries))

    def _send_events(self, encoded: tuple[bytes, ...], time_ms: int) -> Payload:
        parts = pack_events(encoded)
        topic = self._reader.topic
        headers = event_headers("EventList", source=topic, subject=self._writer, identity="", time_ms=time_ms)
        for part in parts:
            self._producer.send(topic, part, partition=0, headers=headers)
        self._producer.flush()
        return describe(parts, inline_bytes=-1)

    def _send_commit(self, data: bytes, commit: Commit) -> None:
        headers = event_headers(
            "Commit",
            source=self._reader.topic,
            subject=self._writer,
            identity=str(commit.first_index),
            time_ms=commit.time_ms,
        )
        self._producer.send(self._reader.topic, data, partition=0, headers=headers)
        try:
            self._producer.flush()
        except (BusError, TryAgainError):
            # The acknowledgement may be lost and the record there, so only the log can tell; a producer that failed is not
            # used again, or it might send the record once more, behind a successor's.
            self._renew_producer()
            raise

    def _renew_producer(self) -> None:
        self._producer = self._bus.producer()

    def close(self) -> None:
        """Let go of the producer."""
        self._producer.close()


def _fits(commit: Commit) -> bool:
    """Whether a commit goes into one record with its events: the position and each event's own head count too."""
    if sum(map(len, commit.events)) > MAX_INLINE_EVENTS_BYTES:
        return False
    try:
        encode(commit)
    except InvalidRecord as error:
        if error.reason == "too-large":
            return False
        raise
    return True


def read_all(bus: Bus, topic: str) -> list[Entry]:
    """Return every commit of a log as it stands."""
    reader = LedgerReader(bus, topic)
    try:
        return list(reader.read_to_end())
    finally:
        reader.close()
