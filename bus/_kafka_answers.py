"""What a fetch asks of a broker, and what its answer holds for one place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kafka.protocol.consumer import FetchRequest

from refold.bus._kafka_batches import Batch, damaged, read_records, split_batches
from refold.bus.contract import Place, Record


def fetch_request(offsets: dict[Place, int], max_bytes: int, wait_s: float) -> Any:
    """Return the request for records from these offsets on, read uncommitted (see `_kafka_fetching`)."""
    kind = FetchRequest.FetchTopic
    topics: dict[str, list[Any]] = {}
    for place, offset in offsets.items():
        part = kind.FetchPartition(
            partition=place.partition,
            current_leader_epoch=-1,
            fetch_offset=offset,
            last_fetched_epoch=-1,
            log_start_offset=-1,
            partition_max_bytes=max_bytes,
        )
        topics.setdefault(place.topic, []).append(part)
    return FetchRequest(
        replica_id=-1,
        max_wait_ms=int(wait_s * 1000),
        min_bytes=1,
        max_bytes=max_bytes,
        isolation_level=0,
        session_id=0,
        session_epoch=-1,
        topics=[kind(topic=topic, partitions=parts) for topic, parts in topics.items()],
        forgotten_topics_data=[],
        rack_id="",
        max_version=12,
    )


class Held:
    """What one answer brought for one place, handed out record by record.

    Parameters
    ----------
    offset, end_offset
        What was asked for, and where the broker says that the place ends.
    """

    def __init__(self, place: Place, offset: int, end_offset: int, data: memoryview) -> None:
        self.position = offset
        self._end_offset = end_offset
        self.size_bytes = len(data)
        self._place = place
        self._batches = split_batches(data, place)
        self._batch: Batch | None = None
        self._records: Iterator[Record] = iter(())
        self._next: Record | None = None

    def peek(self) -> Record | None:
        """Return the record that is next, or None at the end; `position` then is behind all that was brought.

        Raises
        ------
        BusError
            Its batch is damaged; `position` stays before it.
        """
        while self._next is None:
            self._next = next(self._records, None)
            if self._next is None and not self._open_next_batch():
                return None
        return self._next

    def _open_next_batch(self) -> bool:
        if self._batch is not None:
            # Whatever a batch lacks (compacted, or a transaction's marker) is passed over with it.
            self.position = max(self.position, self._batch.last_offset + 1)
        self._batch = next(self._batches, None)
        if self._batch is None:
            return False
        base, last = self._batch.base_offset, self._batch.last_offset
        if not self.position <= last < self._end_offset:
            # A batch's checksum does not cover its offset: taken at its word, a changed bit would pass over records.
            self._batch, self._batches = None, iter(())
            raise damaged(self._place, self.position, f"it says that it lies at {base} to {last}, of {self._end_offset}")
        self._records = read_records(self._batch, self._place, self.position)
        return True

    def take(self) -> None:
        """Pass over the record that was peeked at."""
        assert self._next is not None
        self.position, self._next = self._next.offset + 1, None
