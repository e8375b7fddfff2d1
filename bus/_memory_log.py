"""One partition in memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter

from refold.bus._store import Draft
from refold.bus.contract import Record, TopicSpec

_by_offset = attrgetter("offset")


class PartitionLog:
    """Records in offset order; offsets only grow."""

    def __init__(self, spec: TopicSpec) -> None:
        self.next_offset = 0
        self._spec = spec
        self._records: list[Record] = []
        self._tombstones: dict[int, int] = {}

    def append(self, draft: Draft) -> int:
        """Append one record and return its offset."""
        offset = self.next_offset
        place = draft.place
        self._records.append(Record(*place, offset, draft.timestamp_ms, draft.key, draft.value, draft.headers))
        self.next_offset += 1
        return offset

    @property
    def begin_offset(self) -> int:
        """First offset that still exists, or the end."""
        return self._records[0].offset if self._records else self.next_offset

    def read(self, position: int, max_records: int, max_bytes: int, *, at_least_one: bool) -> tuple[list[Record], int]:
        """Return records from `position` on within the bounds, and where to go on."""
        first = bisect_left(self._records, position, key=_by_offset)
        taken: list[Record] = []
        for record in self._records[first : first + max_records]:
            if record.size_bytes > max_bytes and (taken or not at_least_one):
                break
            taken.append(record)
            max_bytes -= record.size_bytes
        if first + len(taken) == len(self._records):
            return taken, max(position, self.next_offset)
        return taken, taken[-1].offset + 1 if taken else position

    def offset_for_time(self, timestamp_ms: int) -> int | None:
        """First offset whose record is this old or younger."""
        return next((record.offset for record in self._records if record.timestamp_ms >= timestamp_ms), None)

    def delete_before(self, offset: int) -> int:
        """Delete the records below `offset` and return how many."""
        count = bisect_left(self._records, offset, key=_by_offset)
        del self._records[:count]
        return count

    def clean(self, now_ms: int, delete_retention_s: float) -> int:
        """Apply retention and compaction, and return how many records went."""
        before = len(self._records)
        if self._spec.retention_s is not None:
            kept_from = self.offset_for_time(now_ms - int(self._spec.retention_s * 1000))
            self.delete_before(self.next_offset if kept_from is None else kept_from)
        if self._spec.compacted:
            self._records = self._compacted(self._records, now_ms, int(delete_retention_s * 1000))
        return before - len(self._records)

    def _compacted(self, records: Sequence[Record], now_ms: int, grace_ms: int) -> list[Record]:
        newest = {record.key: record.offset for record in records}
        kept = [record for record in records if newest[record.key] == record.offset]
        # The grace runs from the first cleaning that sees the tombstone, as in Kafka, so that slow readers see it too.
        seen = {record.offset: self._tombstones.get(record.offset, now_ms) for record in kept if record.value is None}
        expired = {offset for offset, since_ms in seen.items() if now_ms - since_ms >= grace_ms}
        self._tombstones = {offset: since_ms for offset, since_ms in seen.items() if offset not in expired}
        return [record for record in kept if record.offset not in expired]
