"""Invariant I1, from the other side: the records that still lie in `updates`, compared with their verdicts."""

from __future__ import annotations

from collections.abc import Iterator

import blake3

from refold.bus.contract import Bus, Place, Record
from refold.bus.ranges import records_in
from refold.bus.topics import Topics, is_chunk
from refold.consumers.audit.findings import ONE_VERDICT, Finding, Progress, Summary
from refold.consumers.audit.verdicts import Row, VerdictAudit
from refold.schemas.canonical import decode
from refold.schemas.errors import InvalidRecord
from refold.schemas.identity import KeyRequest
from refold.schemas.updates import ClientUpdate


class SourceAudit:
    """Reads what detection has not deleted yet. Absence is normal: what is judged is deleted."""

    def __init__(self, bus: Bus, topics: Topics, verdicts: VerdictAudit, summary: Summary) -> None:
        self._bus = bus
        self._topic = topics.updates
        self._verdicts = verdicts
        self._summary = summary

    def findings(self, progress: Progress) -> Iterator[Finding]:
        """Yield manifests without a verdict that count as judged, and verdicts that name no manifest."""
        partitions = sorted(self._verdicts.rows)
        for done, partition in enumerate(partitions):
            progress("updates", done, len(partitions))
            yield from self._partition(partition)

    def _partition(self, partition: int) -> Iterator[Finding]:
        place = Place(self._topic, partition)
        rows = self._verdicts.rows[partition]
        single = {offset: row for row in rows for offset in (row.first, row.last)}
        room = {id(row): row.count - 2 for row in rows if row.count > 2}
        found: set[int] = set()
        covered = self._verdicts.covered.get(partition)
        begin, end = self._bus.begin_offset(place), self._bus.end_offset(place)
        for record in records_in(self._bus, place, begin, end - 1):
            if is_chunk(record.headers):
                continue
            found.add(record.offset)
            row = single.get(record.offset) or _row_around(record.offset, rows, room)
            if row is None and covered is not None and covered.is_judged(record.offset):
                what = f"update {partition}/{record.offset} counts as judged and has no verdict"
                yield self._at(what, partition, record.offset, "its client was told nothing; who wrote that position?")
            elif row is None:
                self._summary.waiting += 1
            elif not self._is_it(record, row):
                what = f"update {partition}/{record.offset} is not the one that event {row.index} judges"
                yield self._at(what, partition, record.offset, "the record or the verdict was changed", row)
        # What was deleted meanwhile was there when its verdict was given.
        begin = self._bus.begin_offset(place)
        for offset, row in sorted(single.items()):
            if begin <= offset < end and offset not in found:
                yield self._at(f"event {row.index} judges an update that is not there", partition, offset, "", row)

    def _is_it(self, record: Record, row: Row) -> bool:
        """Whether a record has the digest that its verdict names."""
        data = record.value or b""
        if row.of == "record":
            return not row.names_all or blake3.blake3(data).digest() == row.digest
        try:
            found: KeyRequest | ClientUpdate = decode(data, KeyRequest, ClientUpdate)
        except InvalidRecord:
            return False
        if isinstance(found, KeyRequest) != (row.of == "request"):
            return False
        return found.body.client == row.client and (not row.names_all or found.digest == row.digest)

    def _at(self, what: str, partition: int, offset: int, hint: str, row: Row | None = None) -> Finding:
        index, client = (row.index, row.client) if row else (None, None)
        return Finding(ONE_VERDICT, what, hint, self._topic, partition, offset, index, client)


def _row_around(offset: int, rows: list[Row], room: dict[int, int]) -> Row | None:
    """Return a verdict on a row of updates whose inner ones are not named, and use up one of its places.

    Rows may overlap; offsets come in order, and so the row that ends first is the one that has no other.
    """
    around = [row for row in rows if row.first < offset < row.last and room.get(id(row), 0) > 0]
    if not around:
        return None
    found = min(around, key=lambda row: row.last)
    room[id(found)] -= 1
    return found
