"""Writing one place of a copy: records at the offsets that they had, fillers where there was none."""

from __future__ import annotations

from collections.abc import Callable

from refold.bus.comparing import FILLER_HEADER, is_filler
from refold.bus.contract import Bus, Delivery, Headers, Place, Producer, Record, TopicSpec
from refold.bus.ranges import records_in
from refold.bus.topics import chunk_headers
from refold.schemas.errors import IntegrityError

BATCH_BYTES = 16 << 20
BATCH_RECORDS = 10_000

FILLER_KEY = b"refold-gap"
FILLER_HEADERS: Headers = (*chunk_headers(), (FILLER_HEADER, b""))


class PlaceWriter:
    """Appends to a place in batches, bounded by bytes and by number, and checks that each lies where it should.

    Parameters
    ----------
    records, size_bytes, fillers
        Sent so far.
    told
        Called after each batch with the number of records and fillers that are durable.

    Raises
    ------
    IntegrityError
        From `send`, `fill_to` and `flush`: a record did not get its offset, so somebody else writes to the target.
    """

    def __init__(self, target: Bus, producer: Producer, place: Place, spec: TopicSpec, told: Callable[[int], None]) -> None:
        self._target = target
        self._producer = producer
        self._place = place
        self._told = told
        # Kafka deletes no records of a topic that is only compacted.
        self._is_deletable = not spec.compacted or spec.retention_s is not None
        self._next = target.end_offset(place)
        self._last: Delivery | None = None
        self._bytes = self._count = self._written = 0
        self.records = self.size_bytes = self.fillers = 0

    def send(self, record: Record) -> None:
        """Send a record, whose offset is the next."""
        self.records += 1
        self.size_bytes += record.size_bytes
        self._send(record.key, record.value, record.headers)

    def fill_to(self, end: int) -> None:
        """Write fillers up to an offset, deleting them again where nothing lies before them."""
        if self._next >= end:
            return
        front = self._is_deletable and self._target.begin_offset(self._place) == self._next
        while self._next < end:
            self.fillers += 1
            if self._send(FILLER_KEY, None, FILLER_HEADERS) and front:
                self._target.delete_records(self._place, self._next)
        if front:
            self.flush()
            self._target.delete_records(self._place, end)

    def drop_front(self) -> None:
        """Delete fillers at the front, which a killed run left."""
        if not self._is_deletable:
            return
        first = begin = self._target.begin_offset(self._place)
        for record in records_in(self._target, self._place, begin, self._target.end_offset(self._place) - 1):
            if not is_filler(record):
                break
            first = record.offset + 1
        if first > begin:
            self._target.delete_records(self._place, first)

    def _send(self, key: bytes | None, value: bytes | None, headers: Headers) -> bool:
        """Send; return whether all so far is durable."""
        place = self._place
        self._last = self._producer.send(place.topic, value, key=key, partition=place.partition, headers=headers)
        self._next += 1
        self._bytes += len(value or b"")
        self._count += 1
        if self._bytes < BATCH_BYTES and self._count < BATCH_RECORDS:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Make everything sent durable, and see that it lies where it should."""
        if self._last is None:
            return
        self._producer.flush()
        got = self._last.result(0.0)
        if got != self._next - 1:
            raise IntegrityError(
                f"the copied record got offset {got}: somebody else writes to the target",
                topic=self._place.topic,
                partition=self._place.partition,
                offset=self._next - 1,
                hint="copy to a new target, and let nobody write there meanwhile",
            )
        self._written += self._count
        self._last, self._bytes, self._count = None, 0, 0
        self._told(self._written)
