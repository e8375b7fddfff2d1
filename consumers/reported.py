"""Reading the health group's reports: the newest that the server's own key signed, and whether it is too old to be true."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from refold.bus.contract import Bus, Consumer, Place, Record
from refold.bus.topics import Topics
from refold.schemas.canonical import decode
from refold.schemas.errors import InvalidRecord
from refold.schemas.events import Genesis
from refold.schemas.health import HealthReport, NodeHealth
from refold.schemas.keys import HEALTH_TAG, key_id, verify

REPORT_TYPE = b"refold.HealthReport"
LOOK_BACK = (256, 4096, 65_536, 1 << 20)
"""Records from the end of `health` in which a report is looked for; more each time, since beats lie between."""


@dataclass(slots=True)
class ReportReader:
    """The newest pages.

    Clients may write to the same topic. Where the log has keys, only what one of them signed counts.
    """

    genesis: Genesis
    refused: int = 0
    _pages: dict[int, HealthReport] = field(default_factory=dict)

    def take(self, records: Iterable[Record]) -> None:
        """Take in what was just read of partition 0 of `health`; what is no report is passed over."""
        for record in records:
            if record.header("ce_type") != REPORT_TYPE:
                continue
            try:
                report = decode(record.value or b"", HealthReport)
            except InvalidRecord:
                self.refused += 1
                continue
            if self._is_ours(report):
                self._keep(report)
            else:
                self.refused += 1

    def _is_ours(self, report: HealthReport) -> bool:
        if report.federation != self.genesis.federation:
            return False
        public = {key_id(key): key for key in self.genesis.log_keys}
        if not public:
            return True
        key = public.get(report.key_id)
        return key is not None and verify(key, HEALTH_TAG, report.digest, report.signature)

    def _keep(self, report: HealthReport) -> None:
        newest = self.newest
        if newest is not None and report.time_ms < newest.time_ms:
            return  # Of a member whose place was taken, or replayed.
        self._pages = {number: page for number, page in self._pages.items() if number < report.pages}
        self._pages[report.page] = report

    @property
    def is_whole(self) -> bool:
        """Whether every page is known."""
        newest = self.newest
        return newest is not None and len(self._pages) == newest.pages

    @property
    def newest(self) -> HealthReport | None:
        """The page that was written last, or None where there is none."""
        return max(self._pages.values(), key=lambda page: page.time_ms, default=None)

    def nodes(self) -> list[NodeHealth]:
        """Return all nodes of the newest pages, by name."""
        return [node for number in sorted(self._pages) for node in self._pages[number].nodes]

    def is_stale(self, now_ms: int) -> bool:
        """Whether nothing here says anything of now."""
        return self.newest is None or self.newest.is_stale(now_ms)


def follow_reports(bus: Bus, topics: Topics, genesis: Genesis) -> tuple[ReportReader, Consumer]:
    """Return a reader that knows the newest report, every page of it, and the consumer that brings later ones."""
    place, reader, consumer = Place(topics.health, 0), ReportReader(genesis), bus.consumer()
    consumer.assign([place])
    begin, end = bus.begin_offset(place), bus.end_offset(place)
    for back in LOOK_BACK:
        consumer.seek(place, max(begin, end - back))
        reader = ReportReader(genesis)  # Pages count in the order in which they were written.
        while consumer.position(place) < end:
            reader.take(consumer.poll(0.0))
        if reader.is_whole or end - back <= begin:
            break
    return reader, consumer
