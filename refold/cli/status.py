"""How far each group is: from the logs' own positions, not from the groups' offsets, which only display progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from refold.bus.clock import SystemClock
from refold.bus.closing import close_all
from refold.bus.contract import Committed, Place
from refold.bus.ledger import Entry, LedgerReader
from refold.consumers.reported import follow_reports
from refold.consumers.snapshot_facts import SnapshotFacts
from refold.federation import Federation
from refold.schemas.commits import Position


@dataclass(frozen=True, slots=True)
class PlaceStatus:
    """One partition that a group reads: what is left of it, who said so last, and when."""

    topic: str
    partition: int
    to_do: int
    member: str | None = None
    time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """One group.

    Parameters
    ----------
    to_do, of
        How much it has not dealt with yet, and of what.
    members
        Who holds its places, as far as the bus tells: whoever wrote last for it.
    time_ms
        Wall clock of its last progress; None if there was none, or it left no word of it.
    per_s
        What came in to be dealt with, per second, since the status before; None the first time.
    """

    group: str
    to_do: int
    of: str
    members: tuple[str, ...] = ()
    time_ms: int | None = None
    per_s: float | None = None
    places: tuple[PlaceStatus, ...] = field(default=())

    def idle_s(self, now_ms: int) -> float | None:
        """Seconds since the last progress, by the clocks of the writer and of this machine."""
        return None if self.time_ms is None else max(0.0, (now_ms - self.time_ms) / 1000)

    def to_json(self, now_ms: int) -> dict[str, object]:
        """Return it as an object."""
        return {**asdict(self), "idle_s": self.idle_s(now_ms)}


class StatusReader:
    """Follows the logs and says how far the groups are; asked again, it reads only what is new."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._bus = federation.bus
        self._logs = {log: LedgerReader(self._bus, f"{federation.name}.{log}") for log in ("accepted", "rounds")}
        self._last: dict[str, Entry] = {}
        self._history = federation.history()
        self._facts = SnapshotFacts(self._bus, federation.topics, federation.genesis)
        self._inputs: dict[str, tuple[float, int]] = {}
        self._reports, self._beats = follow_reports(self._bus, federation.topics, federation.genesis)

    def read(self, groups: Sequence[str]) -> list[GroupStatus]:
        """Return the status of these groups now."""
        for log, reader in self._logs.items():
            for entry in reader.read_to_end():
                self._last[log] = entry
        self._history.refresh()
        made: dict[str, Callable[[], GroupStatus]] = {
            "consistency": self._consistency,
            "detection": self._detection,
            "aggregation": self._aggregation,
            "snapshots": self._snapshots,
            "health": self._health,
        }
        return [made[group]() for group in groups]

    def _consistency(self) -> GroupStatus:
        """Its members share partitions and say with each position who they are and when it was.

        Where they never stored one (a copy, or offsets that the bus forgot), it is what the log has no verdict on.
        """
        topic = self._federation.topics.updates
        group = f"{self._federation.name}.consistency"
        judged = {part.partition: part.next_offset for part in self._position("accepted").updates}
        places, ends = [], 0
        for partition in range(self._bus.topics()[topic].partitions):
            place = Place(topic, partition)
            end = self._bus.end_offset(place)
            stored = self._bus.committed(group, place) or Committed(0)
            left = end - max(self._bus.begin_offset(place), stored.next_offset, judged.get(partition, 0))
            places.append(PlaceStatus("updates", partition, max(0, left), *_said(stored.metadata)))
            ends += end
        members = tuple(sorted({place.member for place in places if place.member}))
        newest_ms = max((place.time_ms for place in places if place.time_ms), default=None)
        to_do = sum(place.to_do for place in places)
        rate = self._rate("consistency", ends)
        return GroupStatus("consistency", to_do, "records of updates", members, newest_ms, rate, tuple(places))

    def _detection(self) -> GroupStatus:
        last = self._last.get("accepted")
        end = self._bus.end_offset(Place(self._federation.topics.checked, 0))
        to_do = end - self._position("accepted").checked
        return self._single("detection", to_do, end, "records of checked", last, "checked")

    def _aggregation(self) -> GroupStatus:
        accepted, last = self._last.get("accepted"), self._last.get("rounds")
        end = accepted.commit.next_index if accepted else 0
        to_do = end - self._position("rounds").accepted_index
        return self._single("aggregation", to_do, end, "events of accepted", last, "accepted")

    def _snapshots(self) -> GroupStatus:
        """Its manifests do not name their writer; 1 is to do where the policy asks for one that is not there yet."""
        lineage, kept = self._history.lineage, self._history.snapshots
        self._facts.follow()
        asked = self._facts.rules.due(self._facts.since(self._history, SystemClock().wall_ms()))
        due = lineage.opened is not None and (not kept or asked is not None)
        when_ms = max((taken.time_ms for taken in kept.values()), default=None)
        rate = self._rate("snapshots", lineage.head)
        place = PlaceStatus("rounds", 0, int(due), None, when_ms)
        return GroupStatus("snapshots", int(due), "snapshots", (), when_ms, rate, (place,))

    def _health(self) -> GroupStatus:
        """Its reports say who wrote them and when; nothing of what it reads has to be dealt with."""
        for records in iter(lambda: self._beats.poll(0.0), []):
            self._reports.take(records)
        report = self._reports.newest
        when_ms = report.time_ms if report else None
        topic = self._federation.topics.health
        ends = sum(self._bus.end_offset(Place(topic, n)) for n in range(self._bus.topics()[topic].partitions))
        place = PlaceStatus("health", 0, 0, report.member if report else None, when_ms)
        members = (report.member,) if report else ()
        return GroupStatus("health", 0, "records of health", members, when_ms, self._rate("health", ends), (place,))

    def _single(self, group: str, to_do: int, end: int, of: str, last: Entry | None, topic: str) -> GroupStatus:
        """Return the status of a group with one place: whoever wrote its last commit held it then."""
        writer, when_ms = (last.commit.writer, last.commit.time_ms) if last else (None, None)
        place = PlaceStatus(topic, 0, to_do, writer, when_ms)
        return GroupStatus(group, to_do, of, (writer,) if writer else (), when_ms, self._rate(group, end), (place,))

    def _position(self, log: str) -> Position:
        """Return what a log's last commit covers."""
        return self._last[log].commit.position if log in self._last else Position()

    def _rate(self, group: str, end: int) -> float | None:
        """Return how fast a group's input grew since it was asked for last."""
        now_s = time.monotonic()
        before = self._inputs.get(group)
        self._inputs[group] = now_s, end
        return (end - before[1]) / (now_s - before[0]) if before and now_s > before[0] else None

    def close(self) -> None:
        """Let go of the readers."""
        close_all(*self._logs.values(), self._history, self._facts, self._beats)


def _said(metadata: str) -> tuple[str | None, int | None]:
    """Return member and time of a stored position, as consistency writes them."""
    member, _, when = metadata.rpartition(" ")
    return (member, int(when)) if member and when.isdecimal() and len(when) < 19 else (None, None)
