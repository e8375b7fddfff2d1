"""Group `health`: watches nodes, says in which state each is and why, and does what policy has for that. One member is active.

A turn, in order:

1. `accepted` is read: who takes part, with which keys, and which updates were refused for what they hold.
2. `health` is read to its end, and what is believed is taken in. Silence is judged only once nothing is left to read: a group
   that is behind would hold everyone for dead.
3. Changes are written to `alerts`, and to `commands` where policy says so. A crash before this: the successor finds out anew.
4. A signed report of all nodes is written to `health` when it is due, and of those around a node that changed at once. That is
   where people and other groups look.

No position is kept. A new member reads the last minutes of `health` again, beats and reports, and goes on from there; what its
predecessor has told already is not told twice. While there is no member, reports get old, and whoever reads them says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from refold.bus.closing import close_all
from refold.bus.contract import Place, Record
from refold.bus.ledger import LedgerReader
from refold.bus.topics import event_headers
from refold.consumers.alerts import Alerts
from refold.consumers.commands import send_command
from refold.consumers.delivery import Sink
from refold.consumers.listening import Heard, Listener, heard_in
from refold.consumers.logsight.nodes import NodeLogs
from refold.consumers.monitoring.kinds import KINDS, LOG, WARNING
from refold.consumers.monitoring.monitor import Monitor
from refold.consumers.monitoring.node import Change
from refold.consumers.monitoring.policy import HealthPolicy
from refold.consumers.monitoring.reports import Reports
from refold.consumers.monitoring.servers import Servers, is_server
from refold.consumers.monitoring.telling import alerts_of, bus_alert
from refold.consumers.reported import ReportReader
from refold.consumers.roster import Roster
from refold.consumers.standby import Seat, Standby
from refold.schemas.canonical import encode
from refold.schemas.checks import Alert, BanClient
from refold.schemas.events import UpdateAccepted, UpdateRejected
from refold.schemas.health import DEAD
from refold.schemas.keys import SigningKey
from refold.schemas.reasons import blames
from refold.schemas.updates import TRAIN, ServerHeartbeat

log = logging.getLogger("refold.health")

LEAST_REPORT_S = 5.0
NODES_PER_S = 1000.0
MOST_READS = 20
"""Polls of `health` in one turn: a flood must not keep the group from its other work."""


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """How a server watches.

    Parameters
    ----------
    operator
        Signs commands; without it the group only tells, whatever the policy.
    sinks
        Where alerts are delivered to, those of all groups.
    """

    policy: HealthPolicy = field(default_factory=HealthPolicy)
    operator: SigningKey | None = None
    sinks: tuple[Sink, ...] = ()


class Health(Standby):
    """One member of the group."""

    name = "health"

    def __init__(self, seat: Seat, *, settings: HealthSettings | None = None) -> None:
        super().__init__(seat, topic=seat.topics.rounds, start=lambda seat: Watcher(seat, settings or HealthSettings()))


class Watcher:
    """The member that holds the place."""

    def __init__(self, seat: Seat, settings: HealthSettings) -> None:
        bus, topics, clock = seat.bus, seat.topics, seat.clock
        self._bus, self._topics, self._clock, self._member = bus, topics, clock, seat.member
        self._settings = settings
        self._written = Reports(topics.federation, seat.member, seat.log_key)
        self._roster = Roster.of(seat.genesis)
        self._accepted = LedgerReader(bus, topics.accepted)
        self._alerts = Alerts(bus, topics, clock)
        self._producer = bus.producer()
        self.listener = Listener()
        self._logs = NodeLogs()
        self.monitor = Monitor(settings.policy, self._interval_s)
        self.servers = Servers(seat.genesis, settings.policy)
        self._reported_s = clock.monotonic_s() - LEAST_REPORT_S
        self._bus_was_silent = False
        self._reports = ReportReader(seat.genesis)
        self._beats = bus.consumer()
        self._places = [Place(topics.health, number) for number in range(bus.topics()[topics.health].partitions)]
        self._beats.assign(self._places)
        self._follow_log()
        self._remember()

    @property
    def _interval_s(self) -> float:
        return self._roster.plan.heartbeat_ms / 1000

    def turn(self) -> bool:
        """Take one turn; return whether anything was read."""
        # 1. The log.
        moved = self._follow_log()
        # 2. Beats.
        records, is_at_end = self._read()
        now_s = self._clock.monotonic_s()
        for heard in self._take(records, now_s):
            self._hear_log(heard, now_s)
        if not is_at_end:
            return True
        changes = [*self.monitor.tick(now_s), *self.servers.tick(now_s)]
        for change in changes:
            if change.state == DEAD:
                self._logs.failed(change.client, now_s)
        # 3. What people and policy hear of it; once the federation has ended, everyone falls silent as they should.
        if not self._roster.ended:
            self._tell(changes)
        self._act()
        # 4. The report.
        self._report([change.client for change in changes if self._is_known(change.client)], now_s)
        return moved or bool(records)

    def _take(self, records: Sequence[Record], at_s: float) -> Iterator[Heard]:
        """Let the monitors take in what is believed of these records, and yield the clients' beats."""
        of_servers: list[ServerHeartbeat] = []
        for heard in self.listener.believed(self._roster, heard_in(records, self._topics.federation, of_servers)):
            if not heard.is_watching:
                self.monitor.take(heard.sample, at_s)
            yield heard
        self.servers.take(of_servers, at_s, self._clock.wall_ms())

    def _is_known(self, node: str) -> bool:
        return node in self.monitor.nodes or node in self.servers.monitor.nodes

    def position(self, place: Place) -> int:
        """Offset of `health` that is read next, for those who want to know how far behind this member is."""
        return self._beats.position(place)

    def _follow_log(self) -> bool:
        entries = self._accepted.poll()
        for entry in entries:
            self._roster.fold(entry)
            for event in entry.events:
                if isinstance(event, UpdateAccepted | UpdateRejected) and event.origin.kind == TRAIN:
                    refused = isinstance(event, UpdateRejected) and any(blames(reason) for reason in event.reasons)
                    self.monitor.judged(event.origin.client, refused)
        if entries:
            self.monitor.interval_s = self._interval_s
            if self._roster.required:
                self.monitor.keep(self._roster.active)
                self.listener.keep(self._roster)
                self._logs.keep(self._roster.active)
        return bool(entries)

    def _hear_log(self, heard: Heard, now_s: float) -> None:
        """Look at the digest of a node's log. What is unusual marks the node; of one without beats it is told at once."""
        if heard.log is None:
            return
        client = heard.sample.client
        note = self._logs.take(client, heard.log, now_s, is_watching=heard.is_watching)
        if note and client in self.monitor.nodes:
            self.monitor.note(client, LOG, note)
        elif note:
            advice = KINDS[LOG].advice.replace("NODE", client)
            self._alerts.raise_(client, WARNING, f"logs: {note}", advice, self._roster.plan.round, kind=LOG)

    def _read(self) -> tuple[list[Record], bool]:
        """Return what is new in `health`, and whether that is all."""
        found: list[Record] = []
        for _ in range(MOST_READS):
            records = self._beats.poll(0.0)
            found += records
            if not records:
                break
        return found, all(self._beats.position(place) >= self._bus.end_offset(place) for place in self._places)

    def _remember(self) -> None:
        """Read what was written to `health` before this member, as if it had been there; nothing of it is told again."""
        wall_ms, now_s = self._clock.wall_ms(), self._clock.monotonic_s()
        back_ms = int(max(self._settings.policy.window * self._interval_s, 4 * LEAST_REPORT_S) * 1000)
        for place in self._places:
            first = self._bus.offset_for_time(place, wall_ms - back_ms)
            self._beats.seek(place, self._bus.end_offset(place) if first is None else first)
        records: list[Record] = []
        is_at_end = False
        while not is_at_end:
            more, is_at_end = self._read()
            records = (records + more)[-200_000:]
        self._reports.take(records)
        last_s = now_s - back_ms / 1000
        for record in sorted(records, key=lambda record: record.timestamp_ms):
            # The bus's clock, made to run forward: what a writer's clock says may be anything.
            at_s = min(now_s, max(last_s, now_s - (wall_ms - record.timestamp_ms) / 1000))
            if at_s - last_s > self._interval_s / 4:
                self.monitor.tick(at_s)
                self.servers.tick(at_s)
                last_s = at_s
            for _ in self._take([record], at_s):
                pass
        self.monitor.tick(last_s)
        self.servers.tick(last_s)
        told = self._reports.nodes()
        self.monitor.resume((node for node in told if not is_server(node)), now_s)
        self.servers.resume(told, now_s)

    def _tell(self, changes: Sequence[Change]) -> None:
        round_, now_ms = self._roster.plan.round, self._clock.wall_ms()
        told: list[Alert] = alerts_of(changes, round_, now_ms)
        if self.monitor.bus_is_silent != self._bus_was_silent:
            self._bus_was_silent = self.monitor.bus_is_silent
            if self._bus_was_silent:
                told.append(bus_alert(round_, now_ms))
        if told:
            self._alerts.write(told)

    def _act(self) -> None:
        """Command what policy has for nodes that were long in a state."""
        policy, operator = self._settings.policy, self._settings.operator
        if not policy.ban or operator is None:
            return
        for node in self.monitor.to_ban():
            reason = f"health: {node.kind or node.state} for {node.beats_in_state} beats"
            send_command(self._bus, self._topics, BanClient(node.client, reason), operator, self._clock)
            node.is_banned = True
            self._alerts.raise_(
                node.client,
                "error",
                f"was banned: {reason}",
                "`refold quarantine release` lets it in again",
                self._roster.plan.round,
                kind="banned",
            )

    def _report(self, changed: Sequence[str], now_s: float) -> None:
        # Of many nodes less often: what changed is told at once anyway.
        every_s = max(LEAST_REPORT_S, 2 * self._interval_s, len(self.monitor.nodes) / NODES_PER_S)
        wall_ms = self._clock.wall_ms()
        about = ((self.servers.monitor, self.monitor), now_s, wall_ms, int(every_s * 1000))
        if now_s - self._reported_s >= every_s or not self._written.knows(changed):
            self._reported_s = now_s
            pages = self._written.whole(*about)
        elif changed:
            pages = self._written.of(changed, *about)
        else:
            return
        for report in pages:
            headers = event_headers(
                "HealthReport", source=self._topics.health, subject=self._member, identity=str(report.page), time_ms=wall_ms
            )
            self._producer.send(self._topics.health, encode(report), partition=0, headers=headers)
        self._producer.flush()

    def close(self) -> None:
        """Let go of everything."""
        close_all(self._accepted, self._beats, self._alerts, self._producer)
