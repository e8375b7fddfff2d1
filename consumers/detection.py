"""Group `detection`: judges updates, closes rounds, writes `accepted`. One member is active for a federation, others stand by.

A turn, in order:

1. Inputs are read: `commands`, `rounds`, `health`, `checked`. No state changes but what can be read again.
2. Decided: refusals that need no cohort, and, where the round can close, the cohort's verdicts with the round itself.
3. Evidence is acknowledged: accepted payloads in `deltas`, refused bytes in `quarantine`, large features. A crash after this
   leaves chunks that no event names.
4. One commit is appended and read back. A crash before it is taken: nothing was decided, the successor decides. A crash after:
   the log holds all of it. If another writer's commit was taken instead, its events are folded and everything is decided anew.
5. What was taken is folded. Only now does state change.
6. Records that are judged and below every open upload are deleted from `updates` and `checked`.

Where it starts: at the position of the last taken commit (invariant I8).
"""

from __future__ import annotations

from collections.abc import Sequence

from refold.bus.clock import Clock
from refold.bus.closing import close_all
from refold.bus.contract import Bus, Consumer, Place, Record
from refold.bus.keeping import keeping
from refold.bus.ledger import Entry, LedgerWriter
from refold.bus.topics import Topics
from refold.consumers.agreement import Agreement
from refold.consumers.alerts import Alerts
from refold.consumers.bounding import bounds_of
from refold.consumers.commands import CommandReader
from refold.consumers.detectors import Cohort, Ensemble, Opinion
from refold.consumers.detectors.choice import DEFAULT, FALSE_ALARM_PPM, chosen
from refold.consumers.detectors.pattern import RATE
from refold.consumers.ending import ended
from refold.consumers.evidence import ChunksGone, Evidence
from refold.consumers.healing import healed
from refold.consumers.hearing import Hearing
from refold.consumers.inspection import Inspector
from refold.consumers.intake import Intake
from refold.consumers.keyrequests import granted, request_fault
from refold.consumers.liveness import Deadline, Liveness
from refold.consumers.modelwatch import Alarm
from refold.consumers.pending import Pending
from refold.consumers.planning import is_complete
from refold.consumers.pruning import carry_out, plan_pruning
from refold.consumers.regridding import regridded
from refold.consumers.reported import ReportReader
from refold.consumers.sealing import destroyer
from refold.consumers.stragglers import Stragglers
from refold.consumers.suspicions import Suspicions
from refold.consumers.verdicts import Ruling, events_of, fitting
from refold.consumers.view import LogView
from refold.schemas.canonical import decode
from refold.schemas.errors import InvalidRecord, PlaceTakenError
from refold.schemas.events import Defence, DeltasPruned, RoundClosed
from refold.schemas.updates import ANSWERS, EVALUATE, TRAIN, Heartbeat

MOST_REFUSED = 4096
"""Refusals in one commit, which holds at most 65,536 events; the rest come with the next."""

SETTLE_BEATS = 3
"""Heartbeat intervals that a new member listens before it believes that it knows who is alive."""


class Detection:
    """One member of the group.

    Raises
    ------
    NotFoundError
        There is no federation in the log.
    IntegrityError
        `rounds` covers a head of `accepted` that `accepted` does not have: its tail was lost.
    """

    name = "detection"

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        inspector: Inspector,
        *,
        member: str,
        clock: Clock,
        ensemble: Ensemble | None = None,
    ) -> None:
        self._bus = keeping(bus, lambda: self._consumer.stay())
        self._topics = topics
        self._inspector = inspector
        self._clock = clock
        self._member = member
        self._view = LogView(bus, topics, on_key=destroyer(inspector.keys))
        self._view.read_to_end()
        self._ensemble = ensemble or _ensemble_of(self._view.roster.genesis.defence)
        self._active: _Active | None = None
        self._consumer = bus.consumer(group=f"{topics.federation}.detection", instance=member)
        self._consumer.subscribe([topics.checked], on_assigned=self._take_over, on_revoked=self._stand_by)

    def step(self, timeout_s: float) -> bool:
        """Take one turn; return whether anything was read or decided."""
        records = self._consumer.poll(timeout_s)
        if self._active is None:
            self._view.follow()
            return False
        return self._active.turn(self._consumer, [record for record in records if record.topic == self._topics.checked])

    def _take_over(self, places: frozenset[Place]) -> None:
        self._view.read_to_end()
        self._active = _Active(self._bus, self._topics, self._inspector, self._view, self._member, self._clock, self._ensemble)
        for place in places:
            self._consumer.seek(place, self._active.roster.position.checked)

    def _stand_by(self, places: frozenset[Place]) -> None:
        active, self._active = self._active, None
        close_all(active)

    def close(self) -> None:
        """Leave the group."""
        active, self._active = self._active, None
        close_all(active, self._consumer, self._view)


class _Active:
    """The member that holds the place."""

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        inspector: Inspector,
        view: LogView,
        member: str,
        clock: Clock,
        ensemble: Ensemble,
    ) -> None:
        self._bus = bus
        self._topics = topics
        self._clock = clock
        self._ensemble = ensemble
        self._view = view
        self._accepted, self._rounds = view.accepted, view.rounds
        self.roster = view.roster
        self._intake = Intake(bus, topics, inspector, self.roster, self._rounds, clock, settle=self._answer_requests)
        self._commands = CommandReader(bus, topics, self.roster)
        self._health = _health_from_now(bus, topics)
        self._evidence = Evidence(bus, topics, clock)
        self._alerts = Alerts(bus, topics, clock)
        self._writer = LedgerWriter(bus, self._accepted, writer=member, clock=clock)
        self._liveness = Liveness()
        self._hearing = Hearing(self._liveness)
        self._agreement = Agreement(bus, topics, self.roster.genesis, clock, self._hearing)
        self._deadline = Deadline()
        self._stragglers = Stragglers(ReportReader(self.roster.genesis))
        self._suspicions = Suspicions()
        self._since_s = clock.monotonic_s()
        self._checked_next = self.roster.position.checked
        self._pruned: DeltasPruned | None = None
        self._cannot_prune_at = -1
        self._asked_about: Alarm | None = None

    def turn(self, consumer: Consumer, records: Sequence[Record]) -> bool:
        # 1. Inputs; a command that was written before an update is in force before it is looked at.
        commanded = self._obey()
        moved = bool(self._rounds.poll()) or commanded
        self._require_newest()
        self._prune()
        self._heal()
        self._regrid()
        self._end()
        self._hear()
        for record in records:
            self._checked_next = record.offset  # What is committed meanwhile leaves this one to be read again.
            self._intake.take(record)
        self._checked_next = consumer.position(Place(self._topics.checked, 0))
        moved = self._answer_requests() or moved
        # 2. Decided.
        ruling = self._decide()
        if not ruling.judged:
            return moved or bool(records)
        # 3. Evidence.
        try:
            written = self._evidence.write(ruling)
        except ChunksGone as gone:
            # Decided anew without it; what was written is garbage that no event names.
            gone.item.reason, gone.item.detail = "missing-chunk", "its chunks are no longer there"
            return True
        living = self._living(self._clock.monotonic_s())
        return self._commit(events_of(ruling, written, self.roster, living), ruling.judged)

    def _prune(self) -> None:
        """Prune what the policy lets go, in the order of `refold.consumers.pruning`."""
        head = self._rounds.lineage.head
        due = self.roster.pruning.due(self.roster.closed, head)
        if due and head != self._cannot_prune_at:
            event = plan_pruning(self._bus, self._topics, due)
            if event is not None:
                self._commit([event], [])
            else:
                self._cannot_prune_at = head
        last = self.roster.pruning.last
        if last is not None and last is not self._pruned:
            carry_out(self._bus, self._topics, last)
            self._pruned = last

    def _heal(self) -> None:
        """Go back to a good round where the model got worse, or say what a person may do about it."""
        if self.roster.ended:
            return
        roster = self.roster
        event = healed(roster.healing, roster.branches, roster.recent, roster.genesis.policy)
        if event is not None:
            self._alerts.raise_(
                "model", "error", f"going back to round {event.parent}: {event.reason}", "", event.round, kind="rollback"
            )
            self._commit([event], [])
            return
        choice = roster.healing.choice(roster.branches)
        if choice is not None and choice.alarm is not self._asked_about:
            self._asked_about = choice.alarm
            advice = f"`refold rollback r{choice.parent}` goes back to what was good"
            self._alerts.raise_("model", "error", choice.alarm.evidence, advice, choice.alarm.round, kind="model")

    def _regrid(self) -> None:
        """Go over to a coarser lattice where the newest round asks for it."""
        event = regridded(self.roster, self._rounds.lineage)
        if event is not None:
            self._commit([event], [])

    def _end(self) -> None:
        """End the federation once the last round that the policy asks for is made."""
        event = ended(self.roster, self._rounds.lineage)
        if event is not None:
            self._commit([event], [])

    def _obey(self) -> bool:
        """Take the commands that are there, and say which of them cannot be obeyed; return whether any was taken."""
        taken = False
        while events := self._commands.poll():
            self._complain()
            self._commit(events, [])
            taken = True
        self._complain()
        return taken

    def _answer_requests(self) -> bool:
        """Grant or refuse clients' requests for keys, one of each client in a commit; return whether any was granted."""
        answered = False
        while asked := self._intake.requests():
            granting = []
            for item in asked:
                assert item.request is not None
                item.reason = request_fault(self.roster, item.request, item.source, len(self._intake.coverage))
                if not item.reason:
                    granting.append(item)
            if granting:
                self._commit([granted(self.roster, item.request, item.source) for item in granting if item.request], granting)
                answered = True
        return answered

    def _complain(self) -> None:
        for complaint in self._commands.complaints:
            self._alerts.raise_("commands", "warning", f"not obeyed: {complaint}", "", self.roster.plan.round, kind="command")

    def _hear(self) -> None:
        beats = []
        records = self._health.poll(0.0)
        self._stragglers.take(records, self._clock.monotonic_s())
        for record in records:
            try:
                beat = decode(record.value or b"", Heartbeat)
            except InvalidRecord:
                continue
            if beat.federation == self._topics.federation:
                beats.append(beat)
        lineage = self._rounds.lineage
        self._hearing.take(self.roster, beats, self._clock.monotonic_s(), lineage.parameters_digest)
        for found in self._agreement.hear(records, self.roster, lineage):
            self._alerts.raise_(
                found.subject, found.severity, found.what, found.advice, self.roster.plan.round, kind=found.kind
            )

    def _living(self, now_s: float) -> frozenset[str]:
        """Return the clients that live, may take part, and meet the plan's conditions as far as they have said."""
        living = self._liveness.living(now_s) - self._hearing.unfit
        return living & self.roster.active if self.roster.required else living

    def _decide(self) -> Ruling:
        waiting = self._intake.waiting.values()
        self._agreement.refuse(waiting, self.roster)
        ruling = Ruling(refused=[item for item in waiting if item.reason][:MOST_REFUSED])
        ruling.bounds = bounds_of(ruling.refused, self.roster)
        if any(item.reason == "equivocation" for item in ruling.refused):
            return ruling  # Its client is frozen in the log before anything else of it is judged.
        ruling.evaluations = [item for item in waiting if not item.reason and _kind(item) == EVALUATE]
        ruling.closed_by = self._closing(ruling.refused)
        if ruling.closed_by:
            ruling.cohort = fitting(self._candidates())
            ruling.opinions = self._opinions(ruling.cohort)
        return ruling

    def _candidates(self) -> list[Pending]:
        found = [item for item in self._intake.waiting.values() if not item.reason and _kind(item) == TRAIN]
        return sorted(found, key=lambda item: (item.client, item.source))

    def _opinions(self, candidates: list[Pending]) -> list[Opinion]:
        if self.roster.genesis.defence.mode != "all":
            return [Opinion((), ()) for _ in candidates]
        clients = tuple(item.client for item in candidates)
        features = tuple(item.features() for item in candidates)
        before = dict(self._ensemble.faults)
        metrics = tuple(dict(item.body.metrics) if item.body else {} for item in candidates)
        round_, past = self.roster.plan.round, self.roster.said.of(clients)
        cohort = Cohort(
            round_,
            clients,
            features,
            past,
            metrics=metrics,
            recent=self.roster.recent.view(round_),
            tensors=tuple(tensor.name for tensor in self.roster.genesis.schema.tensors),
        )
        opinions = self._ensemble.judge(cohort)
        for name in [name for name, count in self._ensemble.faults.items() if count > before.get(name, 0)]:
            self._alerts.raise_(
                f"detector {name}",
                "warning",
                f"round {self.roster.plan.round} was judged without it: it {self._ensemble.last_fault[name]}",
                "mend the detector or leave it out; the others go on judging",
                self.roster.plan.round,
                kind="detector",
            )
        return opinions

    def _closing(self, refused: list[Pending]) -> str:
        """Return what closes the round now, or ""."""
        if self.roster.ended or self._rounds.lineage.head != self.roster.closed or self._rounds.lineage.opened is None:
            return ""
        if regridded(self.roster, self._rounds.lineage) is not None:
            return ""  # The next turn begins with it; a round on a lattice that is too fine would be void, too.
        if self.roster.branches.is_over(self.roster.genesis.policy):
            return ""  # As does the end.
        now_s = self._clock.monotonic_s()
        plan = self.roster.plan
        living = self._living(now_s)
        candidates = self._candidates()
        done = self.roster.done | {item.client for item in [*candidates, *refused] if _is_for(item, plan.round)}
        everyone = self.roster.required and done >= self.roster.active
        settled = everyone or now_s - self._since_s >= SETTLE_BEATS * plan.heartbeat_ms / 1000
        # A buffer asks for updates, not for who lives.
        if (settled or plan.buffer) and is_complete(plan, living, done, len(candidates)):
            return "complete"
        waited_s = self._deadline.tick(plan.round, len(living | done) >= plan.minimum, now_s)
        if waited_s * 1000 < plan.patience_ms:
            alone = settled and self._stragglers.had_their_time(plan, living, done, len(candidates), waited_s, now_s)
            return "stragglers" if alone and self._intake.inspect_to_ends(self._checked_next) else ""
        return self._at_deadline()

    def _at_deadline(self) -> str:
        if not self._intake.inspect_to_ends(self._checked_next):
            return ""  # What was refused of it is judged first; the deadline is over in the next turn as in this one.
        if len(self._candidates()) >= self.roster.plan.minimum:
            return "deadline" if self.roster.plan.deadline_ms else ""
        self._deadline.extend()
        self._intake.take_from_everyone()
        self._alerts.raise_(
            "round",
            "warning",
            f"round {self.roster.plan.round} has {len(self._candidates())} updates at its deadline, "
            f"{self.roster.plan.minimum} are needed",
            "the round goes on, takes updates from every client and keeps those it has; start more clients or lower `minimum`",
            self.roster.plan.round,
            kind="deadline",
        )
        return ""

    def _commit(self, events: Sequence[object], judged: list[Pending]) -> bool:
        position = self._intake.position_after(judged, checked=self._checked_next, commands=self._commands.next_offset)
        # 4. One commit.
        appended = self._writer.append(tuple(events), position)
        # 5. The fold.
        self._fold(appended.entries)
        if not appended.taken:
            raise self._stand_back()
        if any(isinstance(event, RoundClosed) for event in events):
            self._ensemble.learn(self.roster.recent.view(self.roster.plan.round))
        for found in self._suspicions.new(events, self.roster.plan.round, self.roster):
            self._alerts.raise_(
                found.subject, found.severity, found.what, found.advice, self.roster.plan.round, kind=found.kind
            )
        # 6. Room.
        self._delete_judged()
        return True

    def _require_newest(self) -> None:
        """Stand back if `rounds` covers more of `accepted` than this member knows: a dead member's commit came late.

        Whoever has nothing to write would not notice, and would wait for ever for a round that is closed.
        """
        if self._rounds.lineage.position.accepted_index > self._accepted.chain.next_index:
            raise self._stand_back()

    def _stand_back(self) -> PlaceTakenError:
        return PlaceTakenError(
            "another detection's commit was taken first",
            topic=self._topics.accepted,
            hint="this member stands back and starts again from the log",
        )

    def _fold(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            self._view.fold(entry)
        self._intake.follow(self.roster.position)
        self._intake.readmit()
        self._commands.follow(self.roster)

    def _delete_judged(self) -> None:
        for partition in self._intake.coverage:
            place = Place(self._topics.updates, partition)
            before = self._intake.deletable_below(partition)
            if before > self._bus.begin_offset(place):
                self._bus.delete_records(place, before)
        place = Place(self._topics.checked, 0)
        if self.roster.position.checked > self._bus.begin_offset(place):
            self._bus.delete_records(place, self.roster.position.checked)

    def close(self) -> None:
        close_all(
            self._agreement,
            self._intake,
            self._commands,
            self._health,
            self._evidence,
            self._writer,
            self._alerts,
        )


def _ensemble_of(defence: Defence) -> Ensemble:
    ppm = int(dict(defence.settings).get(FALSE_ALARM_PPM, round(RATE * 1_000_000)))
    return Ensemble(chosen(DEFAULT, false_alarm_rate=ppm / 1_000_000))


def _health_from_now(bus: Bus, topics: Topics) -> Consumer:
    """Read heartbeats from now on: who was alive before is no news."""
    consumer = bus.consumer()
    places = [Place(topics.health, partition) for partition in range(bus.topics()[topics.health].partitions)]
    consumer.assign(places)
    for place in places:
        consumer.seek(place, bus.end_offset(place))
    return consumer


def _kind(item: Pending) -> str:
    return item.body.kind if item.body else ""


def _is_for(item: Pending, round_: int) -> bool:
    return item.body is not None and item.body.kind in ANSWERS and item.body.round == round_
