"""What every bus does, in Kafka's own words.

A *topic* has *partitions*; a partition is a sequence of records at growing *offsets*. Offsets may have gaps (compaction,
markers), so a reader is caught up when ``position >= end``, never by counting. A *group* shares the partitions of its topics
among its members; a member that dies loses them to the others. Group offsets are for display and for attached consumers:
Refold's own groups start where the log says (invariant I8).

Drivers: `refold.bus.memory`, `refold.bus.sqlite`, `refold.bus.kafka`. Source of the semantics: the Apache Kafka
protocol and its consumer contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

from refold.bus.symptoms import Symptom

Headers = tuple[tuple[str, bytes], ...]

MAX_RECORD_BYTES = 1_048_576
"""Largest record (key, value and headers): a default Kafka broker's `message.max.bytes`, which is 1,048,588 with overhead."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it is created.

    Parameters
    ----------
    name
        Full name, ``<federation>.<topic>``; letters, digits, ``.``, ``_`` and ``-``, at most 249 characters.
    partitions
        How many, at least 1.
    compacted
        Keep only the newest record of each key (a record whose value is None is a tombstone).
    retention_s
        Age in seconds after which the broker may delete; None keeps for ever.
    """

    name: str
    partitions: int = 1
    compacted: bool = False
    retention_s: float | None = None


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read. `value` None is a tombstone; `timestamp_ms` is the writer's wall clock and decides nothing."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    @property
    def size_bytes(self) -> int:
        """Key, value and header bytes."""
        size = len(self.key or b"") + len(self.value or b"")
        return size + sum(len(name) + len(value) for name, value in self.headers)

    def header(self, name: str) -> bytes | None:
        """Return the first header called `name`, or None."""
        return next((value for key, value in self.headers if key == name), None)


class Delivery(Protocol):
    """The acknowledgement of one sent record, in time."""

    def result(self, timeout_s: float | None = None) -> int:
        """Wait until the record is durable and return its offset.

        Raises
        ------
        BusError
            The bus refused the record or did not answer; whether it is there is not known.
        TryAgainError
            `timeout_s` ran out.
        """
        ...


class Producer(Protocol):
    """Sends records; those with one key go to one partition, in the order sent."""

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> Delivery:
        """Queue a record. Blocks, flushing, while more than the producer's bytes in flight are not yet acknowledged.

        Nothing promises that the record goes out before `flush`, `close` or its delivery's `result`. If `send` raises, the
        record was not queued. Without `partition` the key decides (`partition_for`), without a key partition 0 takes it.

        Raises
        ------
        UsageError
            The record is larger than `MAX_RECORD_BYTES`, the partition does not exist, or the topic is compacted and there is
            no key.
        NotFoundError
            No such topic.
        """
        ...

    def flush(self, timeout_s: float = 30.0) -> None:
        """Return once everything sent is durable.

        Raises
        ------
        StorageFullError, TryAgainError
            Not everything sent is durable yet; the rest stays queued, and a later flush writes it once.
        BusError
            Whether the rest is there is not known; it is given up, and its deliveries raise the same.
        """
        ...

    def close(self) -> None:
        """Flush and let go. Idempotent."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


class Committed(NamedTuple):
    """A group's stored position: the next offset to read, and words of the reader's own."""

    next_offset: int
    metadata: str = ""


Listener = Callable[[frozenset[Place]], None]


class Consumer(Protocol):
    """Reads records, either from places it names (`assign`) or from those its group gives it (`subscribe`).

    A consumer belongs to one thread. `poll` also keeps the group membership alive: who does not poll for the session timeout,
    or whose process ends, is removed. Its next `poll` gives all its places to `on_revoked` and joins anew; its `commit` raises
    PlaceTakenError, and `poll` raises FencedError where another consumer has joined with the same `instance`. A member that
    was alone, and finds that nobody joined while it was silent, goes on with what it held.
    """

    def assign(self, places: Iterable[Place]) -> None:
        """Read these places, from their beginning unless `seek` says otherwise; no group takes part."""
        ...

    def subscribe(
        self, topics: Iterable[str], *, on_assigned: Listener | None = None, on_revoked: Listener | None = None
    ) -> None:
        """Join the group. The listeners run inside `poll`, revoked before assigned, each with the places that changed.

        Newly assigned places start at the group's committed offset, or the beginning; `on_assigned` may `seek`, and
        `on_revoked` may still `commit` (it raises PlaceTakenError where the place was lost rather than asked back).

        Raises
        ------
        NotFoundError
            No such topic.
        """
        ...

    def assignment(self) -> frozenset[Place]:
        """Places read at present."""
        ...

    def poll(self, timeout_s: float = 0.0, *, max_records: int = 500) -> list[Record]:
        """Return new records, in offset order within each place, waiting up to `timeout_s` for the first.

        At most `max_records`, and at most the consumer's bytes in flight (but always at least one record if there is one).
        Places take turns, so that a full one starves no other. What was acknowledged before the call is returned; a bus over a
        network may take a quarter of a second for that, however short the timeout.

        What others wrote and nobody can read within bounds (Kafka: a batch that decompresses without end) comes as one record
        at the first offset concerned, with its bytes as they lie there and the header ``refold-unreadable`` that says why.
        """
        ...

    def stay(self) -> None:
        """Keep the membership through long work between two polls; to be called as that work gets on, at any rate.

        Reads nothing, calls no listener and raises nothing: what the group decided meanwhile, the next `poll` tells.
        """
        ...

    def seek(self, place: Place, next_offset: int) -> None:
        """Go on from this offset; one that was deleted or compacted away means the next that exists.

        Raises
        ------
        UsageError
            The offset is negative or past the end, or the consumer does not read the place.
        """
        ...

    def position(self, place: Place) -> int:
        """Offset that `poll` reads next at the earliest."""
        ...

    def commit(self, offsets: Mapping[Place, Committed]) -> None:
        """Store the group's positions. A consumer that was given its places by `assign` may, while the group has no members.

        Raises
        ------
        PlaceTakenError
            This consumer no longer holds one of the places in its group; nothing was stored.
        """
        ...

    def close(self) -> None:
        """Leave the group and let go, calling no listener. Idempotent."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


class Bus(Protocol):
    """A message bus. Thread-safe, except that each producer and consumer belongs to one thread."""

    @property
    def url(self) -> str:
        """The URL that opens it again."""
        ...

    def create_topics(self, specs: Iterable[TopicSpec]) -> None:
        """Create what is not there. Idempotent.

        Raises
        ------
        ConfigurationError
            A topic exists with other settings.
        """
        ...

    def topics(self) -> dict[str, TopicSpec]:
        """All topics by name."""
        ...

    def producer(self, *, max_in_flight_bytes: int = 16 << 20) -> Producer:
        """Open a producer."""
        ...

    def consumer(
        self,
        *,
        group: str | None = None,
        instance: str | None = None,
        max_in_flight_bytes: int = 16 << 20,
        session_timeout_s: float = 10.0,
    ) -> Consumer:
        """Open a consumer; `instance` is a stable name of this member (static membership), unique within the group."""
        ...

    def begin_offset(self, place: Place) -> int:
        """First offset that still exists (or `end_offset` of an empty partition)."""
        ...

    def end_offset(self, place: Place) -> int:
        """Offset that the next record will get at the earliest."""
        ...

    def offset_for_time(self, place: Place, timestamp_ms: int) -> int | None:
        """First offset whose record has this timestamp or a later one; None if there is none."""
        ...

    def delete_records(self, place: Place, before_offset: int) -> None:
        """Delete every record below `before_offset`. Idempotent; offsets are not used again.

        Raises
        ------
        UsageError
            The topic is compacted and has no retention: Kafka refuses that; send tombstones.
        """
        ...

    def committed(self, group: str, place: Place) -> Committed | None:
        """The group's stored position, or None."""
        ...

    def lag(self, group: str) -> dict[Place, int]:
        """For each place where the group stored a position: end offset − stored next offset."""
        ...

    def examine(self, specs: Iterable[TopicSpec], *, thorough: bool = False) -> list[Symptom]:
        """Look at the bus, and at topics against how they are to be; what is well is told too. Changes nothing.

        Parameters
        ----------
        thorough
            Also what takes long: reading all of a bus file.
        """
        ...

    def close(self) -> None:
        """Let go. Producers and consumers that are still open stay usable and want their own `close`. Idempotent."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


def partition_for(key: bytes | None, partitions: int) -> int:
    """Choose a key's partition the way Kafka's default partitioner does, so that a moved log keeps its places.

    Source: Kafka's `BuiltInPartitioner` (murmur2 of the key, made positive, modulo the number of partitions).
    """
    if key is None or partitions == 1:
        return 0
    return (_murmur2(key) & 0x7FFFFFFF) % partitions


def _murmur2(data: bytes) -> int:
    """MurmurHash2, 32 bits, seed 0x9747b28c. Source: Austin Appleby, as used by Kafka."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    length = len(data)
    h = (0x9747B28C ^ length) & mask
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    if length & 3:
        h ^= int.from_bytes(data[whole:], "little")
        h = h * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)
