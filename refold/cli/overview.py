"""One look at all of a federation, kept up to date: rounds, verdicts, groups, nodes' health and alerts. Bounded memory."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from refold.bus.closing import close_all
from refold.bus.contract import Consumer, Place
from refold.bus.ledger import LedgerReader
from refold.cli.status import GroupStatus, StatusReader
from refold.consumers.reported import ReportReader, follow_reports
from refold.consumers.server import GROUPS
from refold.federation import Federation
from refold.producers.lineage import LineageReader
from refold.schemas.canonical import decode
from refold.schemas.checks import Alert
from refold.schemas.errors import InvalidRecord
from refold.schemas.events import RoundCommitted, Unattributed, UpdateAccepted, UpdateRejected
from refold.schemas.identity import UpdatesRefused
from refold.schemas.reasons import REASONS
from refold.schemas.updates import TRAIN

KEPT_ALERTS, KEPT_ROUNDS = 64, 32
OTHER = "other"
OUTCOMES = ("applied", "void")


@dataclass(slots=True)
class Verdicts:
    """What became of updates, by reason; names that no program of this version writes are counted as `OTHER`."""

    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unattributed: int = 0

    def fold(self, events: Iterable[object]) -> None:
        """Take in events of `accepted`."""
        for event in events:
            match event:
                case UpdateAccepted():
                    self.accepted += event.origin.kind == TRAIN
                case UpdateRejected():
                    self.rejected[_known(event.reasons[0])] += event.count
                case UpdatesRefused():
                    self.rejected[_known(event.reason)] += event.count
                case Unattributed():
                    self.unattributed += event.count


def _known(reason: str) -> str:
    return reason if reason in REASONS else OTHER


def _known_outcome(outcome: str) -> str:
    return outcome if outcome in OUTCOMES else OTHER


class Overview:
    """Follows a federation; `refresh` takes in what is new.

    Parameters
    ----------
    past_alerts
        Count and keep what is in `alerts` already, not only what comes from now on.
    """

    def __init__(self, federation: Federation, *, past_alerts: bool = True) -> None:
        self.federation = federation
        self.verdicts = Verdicts()
        self.rounds: deque[RoundCommitted] = deque(maxlen=KEPT_ROUNDS)
        self.outcomes: Counter[str] = Counter()
        self.durations_s: list[float] = []
        self.alerts: deque[Alert] = deque(maxlen=KEPT_ALERTS)
        self.alert_counts: Counter[tuple[str, str]] = Counter()
        self.groups: list[GroupStatus] = []
        self.round_time_ms = 0
        self._status = StatusReader(federation)
        self._accepted = LedgerReader(federation.bus, federation.topics.accepted)
        self._lineage = LineageReader(federation.bus, federation.topics)
        self.reports: ReportReader
        self.reports, self._beats = follow_reports(federation.bus, federation.topics, federation.genesis)
        self._alerts = _reader(federation, federation.topics.alerts, from_start=past_alerts)

    @property
    def head(self) -> int:
        """The newest round."""
        return self._lineage.lineage.head

    @property
    def has_ended(self) -> bool:
        """Whether the federation has ended."""
        return self._lineage.lineage.ended is not None

    def refresh(self) -> None:
        """Take in what is new."""
        for entry in self._accepted.read_to_end():
            self.verdicts.fold(entry.events)
        self._take_rounds()
        for records in iter(lambda: self._beats.poll(0.0), []):
            self.reports.take(records)
        self._take_alerts()
        self.groups = self._status.read(GROUPS)

    def _take_rounds(self) -> None:
        for entries in iter(self._lineage.poll, []):
            for entry in entries:
                committed = [event for event in entry.events if isinstance(event, RoundCommitted)]
                if committed and self.round_time_ms:
                    self.durations_s.append(max(0, entry.commit.time_ms - self.round_time_ms) / 1000)
                if committed or not self.round_time_ms:
                    self.round_time_ms = entry.commit.time_ms
                self.rounds.extend(committed)
                self.outcomes.update(_known_outcome(event.outcome) for event in committed)

    def _take_alerts(self) -> None:
        for records in iter(lambda: self._alerts.poll(0.0), []):
            for record in records:
                try:
                    alert = decode(record.value or b"", Alert)
                except InvalidRecord:
                    continue
                self.alerts.append(alert)
                self.alert_counts[alert.severity, alert.kind] += 1

    def close(self) -> None:
        """Let go of the readers."""
        close_all(self._status, self._accepted, self._lineage, self._beats, self._alerts)


def _reader(federation: Federation, topic: str, *, from_start: bool) -> Consumer:
    consumer = federation.bus.consumer()
    places = [Place(topic, number) for number in range(federation.bus.topics()[topic].partitions)]
    consumer.assign(places)
    for place in () if from_start else places:
        consumer.seek(place, federation.bus.end_offset(place))
    return consumer
