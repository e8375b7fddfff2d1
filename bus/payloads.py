"""Writing and reading payloads: chunks in a partition, named by their digests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from refold.bus.contract import Bus, Consumer, Delivery, Place, Producer, Record, partition_for
from refold.bus.topics import chunk_headers
from refold.schemas.errors import IntegrityError
from refold.schemas.payload import INLINE_BYTES, Payload, PlaceHint, chunk_digest, describe, payload_root

SLACK_RECORDS = 64
"""How many records past the hint a reader looks at before it builds an index."""

MOST_RECORDS_A_CHUNK = 16
"""How many records a reader looks at for each chunk, on average, before it builds an index: a client's hint is only a claim,
and a wide one must not cost a pass over the topic for each update."""


MAX_INDEXED = 1 << 17
"""Most chunks that are indexed of a topic that clients write, the newest: some 32 MiB. A chunk that neither the hint leads to
nor these hold counts as missing."""

NEAR_RECORDS = 8
"""How many records between two payloads are read and passed over rather than sought past: a manifest, most often."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A payload whose chunks were sent; `placed` is right once the producer was flushed."""

    payload: Payload
    partition: int
    deliveries: tuple[Delivery, ...]

    def placed(self) -> Payload:
        """Return the payload with the hint of where its chunks lie. Call after the producer's `flush`."""
        if self.payload.inline is not None or not self.deliveries:
            return self.payload
        offsets = [delivery.result(0.0) for delivery in self.deliveries]
        return self.payload.at(PlaceHint(self.partition, min(offsets), max(offsets)))


def send_payload(
    producer: Producer,
    topic: str,
    partitions: int,
    chunks: Iterable[bytes],
    *,
    key: bytes,
    inline_bytes: int = INLINE_BYTES,
    key_of: Callable[[int], bytes] | None = None,
) -> Sent:
    """Send chunks, all to the key's partition, unless the payload is small enough to travel inline.

    Chunks are sent as they are produced; only their digests are kept. A single small chunk is not sent. In a compacted topic
    `key_of` gives each chunk, by its number, a key of its own; `key` still chooses the partition.
    """
    stream = iter(chunks)
    first = next(stream, b"")
    second = next(stream, None)
    if second is None and len(first) <= inline_bytes:
        return Sent(describe([first], inline_bytes=inline_bytes), 0, ())
    partition = partition_for(key, partitions)
    digests, lengths, deliveries = [], [], []
    for index, chunk in enumerate(_chain(first, second, stream)):
        digests.append(chunk_digest(chunk))
        lengths.append(len(chunk))
        own = key_of(index) if key_of else key
        deliveries.append(producer.send(topic, chunk, key=own, partition=partition, headers=chunk_headers()))
    payload = Payload(payload_root(digests, lengths), tuple(digests), tuple(lengths), None, None)
    return Sent(payload, partition, tuple(deliveries))


def _chain(first: bytes, second: bytes | None, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    if second is not None:
        yield second
    yield from rest


class PayloadReader:
    """Reads payloads of one topic by digest; the hint is tried first, an index of the topic second.

    Not thread-safe. Holds one consumer, and at most its bytes in flight.

    Parameters
    ----------
    max_indexed
        Most chunks in the index; None for a topic that only the server writes, where the log itself bounds them.
    near_records
        How many records between two payloads are read and passed over rather than sought past; 0 where they may be large.
    """

    def __init__(
        self,
        bus: Bus,
        topic: str,
        *,
        max_in_flight_bytes: int = 4 << 20,
        max_indexed: int | None = None,
        near_records: int = NEAR_RECORDS,
    ) -> None:
        self._bus = bus
        self._near_records = near_records
        self._most_indexed = max_indexed
        self.topic = topic
        self._consumer: Consumer = bus.consumer(max_in_flight_bytes=max_in_flight_bytes)
        self._assigned: Place | None = None
        self._index: dict[Place, dict[bytes, int]] = {}
        self._indexed_to: dict[Place, int] = {}
        self._known_end: dict[Place, int] = {}

    def read(self, payload: Payload) -> Iterator[bytes]:
        """Yield the payload's chunks in order, each checked against its digest.

        Raises
        ------
        IntegrityError
            A chunk is not in the topic, or no longer what its digest says.
        """
        if payload.inline is not None:
            yield payload.inline
            return
        wanted = list(zip(payload.chunks, payload.lengths, strict=True))
        taken = 0
        if payload.hint is not None:
            for chunk in self._read_hinted(payload, payload.hint):
                yield chunk
                taken += 1
        for digest, length in wanted[taken:]:
            yield self._read_indexed(digest, length)

    def read_what_is_there(self, payload: Payload) -> Iterator[bytes]:
        """Yield those of the payload's chunks that can be found, in order, each checked against its digest."""
        if payload.inline is not None:
            yield payload.inline
            return
        taken = 0
        for chunk in self._read_hinted(payload, payload.hint) if payload.hint is not None else ():
            yield chunk
            taken += 1
        self._index_all()
        for digest, length in list(zip(payload.chunks, payload.lengths, strict=True))[taken:]:
            found = self._at_index(digest, length)
            if found is not None:
                yield found

    def read_bytes(self, payload: Payload) -> bytes:
        """Return the payload's bytes joined."""
        return b"".join(self.read(payload))

    def _read_hinted(self, payload: Payload, hint: PlaceHint) -> Iterator[bytes]:
        """Yield chunks from the hinted range on, until one is missing there."""
        place = Place(self.topic, hint.partition)
        if hint.partition >= self._partitions:
            return
        wanted = list(zip(payload.chunks, payload.lengths, strict=True))
        most = hint.first_offset + MOST_RECORDS_A_CHUNK * len(wanted) + SLACK_RECORDS
        hinted, slack = (min(last + 1, most) for last in (hint.last_offset, hint.last_offset + SLACK_RECORDS))
        at = 0
        # First no further than the hint: what lies behind it is most often the next payload's, and read for nothing.
        for first, end in ((hint.first_offset, hinted), (hinted, slack)):
            for record in self._records(place, first, end) if at < len(wanted) else ():
                value = record.value
                if value is not None and len(value) == wanted[at][1] and chunk_digest(value) == wanted[at][0]:
                    yield value
                    at += 1
                    if at == len(wanted):
                        return

    def _records(self, place: Place, first: int, end: int) -> Iterator[Record]:
        """Yield the records of a range of offsets, `end` not included, as far as they exist."""
        if self._assigned != place:
            self._consumer.assign([place])
            self._assigned = place
        if end > self._known_end.get(place, 0):
            self._known_end[place] = self._bus.end_offset(place)
        end = min(end, self._known_end[place])
        if first >= end:
            return  # A hint from a longer log, or a moved one.
        # Payloads that follow one another are read on, without throwing away what was fetched ahead.
        if not 0 <= first - self._consumer.position(place) <= self._near_records:
            begin = self._bus.begin_offset(place)
            if begin >= end:
                return
            self._consumer.seek(place, max(first, begin))
        while (at := self._consumer.position(place)) < end:
            records = self._consumer.poll(1.0, max_records=max(1, min(500, end - at)))
            if not records and self._bus.begin_offset(place) >= end:
                return  # Deleted meanwhile.
            for record in records:
                if record.offset >= end:
                    return
                if record.offset >= first:
                    yield record

    @cached_property
    def _most_of_a_place(self) -> float:
        return math.inf if self._most_indexed is None else self._most_indexed // self._partitions

    @cached_property
    def _partitions(self) -> int:
        return self._bus.topics()[self.topic].partitions

    def _read_indexed(self, digest: bytes, length: int) -> bytes:
        """Return a chunk found by its digest anywhere in the topic, indexing what is not indexed yet."""
        found = self._at_index(digest, length)
        if found is None:
            self._index_all()  # It may have come since, or anew where the one that was indexed is damaged.
            found = self._at_index(digest, length)
        if found is None:
            raise IntegrityError(
                f"chunk {digest.hex()[:16]} is not in the topic",
                topic=self.topic,
                hint="it was pruned, lost or changed; `refold verify` says what can still be derived",
            )
        return found

    def _at_index(self, digest: bytes, length: int) -> bytes | None:
        """Return a chunk, unless its length is not as named: what a payload says of its size would bound nothing."""
        found = self._found(digest)
        if found is None:
            return None
        place, offset = found
        for record in self._records(place, offset, offset + 1):
            if record.value is not None and len(record.value) == length and chunk_digest(record.value) == digest:
                return record.value
        return None

    def _found(self, digest: bytes) -> tuple[Place, int] | None:
        return next(((place, offsets[digest]) for place, offsets in self._index.items() if digest in offsets), None)

    def _index_all(self) -> None:
        for partition in range(self._partitions):
            self._extend_index(Place(self.topic, partition))

    def _extend_index(self, place: Place) -> None:
        """Index what came since, and forget what was deleted, so that the index is no larger than the topic."""
        start = self._indexed_to.get(place, 0)
        end = self._bus.end_offset(place)
        if start == end:
            return
        begin = self._bus.begin_offset(place)
        offsets = self._index[place] = {d: at for d, at in self._index.get(place, {}).items() if at >= begin}
        for record in self._records(place, start, end):
            if record.value is not None:
                offsets[chunk_digest(record.value)] = record.offset
                if len(offsets) > self._most_of_a_place:
                    # A flood in one partition pushes out what lies there, and nothing of another.
                    del offsets[next(iter(offsets))]
        self._indexed_to[place] = end

    def close(self) -> None:
        """Let go of the consumer."""
        self._consumer.close()
