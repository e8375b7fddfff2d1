"""What must be durable before a verdict names it: accepted payloads in `deltas`, refused bytes in `quarantine`, large features.

All of it is acknowledged by `flush` and harmless if the verdict never comes: chunks that no event names are garbage.
"""

from __future__ import annotations

from collections.abc import Iterator

from refold.bus.clock import Clock
from refold.bus.closing import close_all
from refold.bus.contract import Bus, Place, Record
from refold.bus.payloads import MAX_INDEXED, PayloadReader, Sent, send_payload
from refold.bus.topics import Topics, event_headers
from refold.consumers.attempts import Source
from refold.consumers.pending import Pending
from refold.consumers.verdicts import Ruling, Written
from refold.schemas.canonical import encode
from refold.schemas.checks import Quarantined
from refold.schemas.errors import IntegrityError
from refold.schemas.payload import Payload, PlaceHint, payload_root, split

FEATURES_INLINE_BYTES = 16 << 10
IN_FLIGHT_BYTES = 4 << 20
NOT_KEPT = frozenset({"duplicate", "declined"})


class ChunksGone(Exception):
    """A candidate's chunks are no longer in `updates`: it named bytes that were never its own, or they broke since."""

    def __init__(self, item: Pending) -> None:
        super().__init__(item.source)
        self.item = item


class Evidence:
    """Writes evidence of one federation."""

    def __init__(self, bus: Bus, topics: Topics, clock: Clock) -> None:
        self._bus = bus
        self._topics = topics
        self._clock = clock
        self._updates = PayloadReader(bus, topics.updates, max_indexed=MAX_INDEXED)
        self._producer = bus.producer(max_in_flight_bytes=IN_FLIGHT_BYTES)
        specs = bus.topics()
        self._deltas = specs[topics.deltas].partitions
        self._quarantines = specs[topics.quarantine].partitions

    def write(self, ruling: Ruling) -> Written:
        """Write all that a ruling's events will name, and return where it lies once it is durable.

        Raises
        ------
        BusError
            Not everything is durable; nothing may be committed.
        ChunksGone
            A candidate cannot be kept; the same.
        """
        # In the order in which they lie, so that `updates` is read from front to back.
        deltas = {item.source: self._keep(item) for item in sorted((one for one, _ in ruling.accepted()), key=_source)}
        features = {item.source: self._keep_features(item) for item in ruling.cohort}
        for item in (one for one in ruling.refused if one.source not in ruling.bounds.unkept):
            self._quarantine(item, (item.reason,), item.detail)
        for item, opinion in ruling.rejected():
            self._quarantine(item, opinion.reasons, "")
        self._producer.flush()
        return Written(
            {source: sent.placed() for source, sent in deltas.items()},
            {source: sent.placed() for source, sent in features.items()},
        )

    def _keep(self, item: Pending) -> Sent:
        """Copy an accepted update's chunks, unchanged, to `deltas`.

        Raises
        ------
        ChunksGone
            They are no longer in `updates`.
        """
        assert item.body is not None
        assert item.body.payload is not None
        chunks = self._updates.read(item.body.payload.at(self._hint(item)))
        try:
            return send_payload(self._producer, self._topics.deltas, self._deltas, chunks, key=item.digest)
        except IntegrityError as error:
            raise ChunksGone(item) from error

    def _keep_features(self, item: Pending) -> Sent:
        """Write an update's features, small ones inline."""
        assert item.packed is not None
        return send_payload(
            self._producer, self._topics.features, 1, [item.packed], key=item.digest, inline_bytes=FEATURES_INLINE_BYTES
        )

    def _quarantine(self, item: Pending, reasons: tuple[str, ...], detail: str) -> None:
        """Write a refused update's own bytes, as far as they came, and why it was refused.

        A repeat is in the log already, and who declines sent nothing.
        """
        if not NOT_KEPT.isdisjoint(reasons):
            return
        key = f"{item.partition}/{item.offset}".encode()
        original = self._original(item)
        sent = send_payload(
            self._producer, self._topics.quarantine, self._quarantines, self._refused_bytes(item, original), key=key
        )
        if sent.deliveries:
            self._producer.flush()
        record = Quarantined(item.partition, item.offset, item.client, reasons, detail, len(original), sent.placed())
        headers = event_headers(
            "Quarantined",
            source=self._topics.quarantine,
            subject=item.client or "unknown",
            identity=key.decode(),
            time_ms=self._clock.wall_ms(),
        )
        self._producer.send(self._topics.quarantine, encode(record), key=key, headers=headers)

    def _original(self, item: Pending) -> bytes:
        record = record_at(self._bus, self._topics.updates, item.partition, item.offset)
        return (record.value or b"") if record else item.manifest

    def _refused_bytes(self, item: Pending, original: bytes) -> Iterator[bytes]:
        yield from split(original) if original else (b"",)
        payload = item.body.payload if item.body else None
        if payload is None or payload.inline is not None:
            return
        # What never came, or came changed, is left out; a chunk that is named ten thousand times is kept once.
        yield from self._updates.read_what_is_there(_distinct(payload).at(self._hint(item)))

    def _hint(self, item: Pending) -> PlaceHint | None:
        if item.first_chunk >= item.offset:
            return None
        return PlaceHint(item.partition, item.first_chunk, item.offset - 1)

    def close(self) -> None:
        """Let go of reader and producer."""
        close_all(self._updates, self._producer)


def _source(item: Pending) -> Source:
    return item.source


def _distinct(payload: Payload) -> Payload:
    """Return a payload that names each chunk once."""
    lengths = dict(zip(payload.chunks, payload.lengths, strict=True))
    if len(lengths) == len(payload.chunks):
        return payload
    return Payload(payload_root(lengths.keys(), lengths.values()), tuple(lengths), tuple(lengths.values()), None, None)


def record_at(bus: Bus, topic: str, partition: int, offset: int) -> Record | None:
    """Return the record at an offset, or None where it is gone."""
    place = Place(topic, partition)
    with bus.consumer() as consumer:
        consumer.assign([place])
        consumer.seek(place, offset)
        if bus.end_offset(place) <= offset:
            return None
        found = consumer.poll(1.0, max_records=1)
    return found[0] if found and found[0].offset == offset else None
