"""Group `aggregation`: turns each closed round into a step and tells everyone, in `rounds`. One member is active.

For each commit of `accepted` that `rounds` does not cover yet, in order:

1. Members' deltas are summed and the step is computed, in memory.
2. The step's chunks are acknowledged in `steps`. A crash after this leaves chunks that no event names.
3. One commit of `rounds` is appended and read back: the round, the receipts, the head of `accepted` that they cover, and a
   signed checkpoint of it. A crash before it is taken: the successor computes the same step and tree from the same log.
4. Only now is the round made, and only now does a client hear of its receipt (invariant I3).
5. Sealing keys of a client that was erased before that head are destroyed. A crash before: the successor destroys them, since
   it reads `rounds` from its beginning.
"""

from __future__ import annotations

import logging
from contextlib import closing

from refold.bus.closing import close_all
from refold.bus.ledger import Entry, LedgerReader, LedgerWriter
from refold.bus.payloads import PayloadReader, send_payload
from refold.consumers.accepted import Deltas, OpenUpdates, aggregate
from refold.consumers.alerts import Alerts
from refold.consumers.checkpoints import LogSigner
from refold.consumers.holding import Holding
from refold.consumers.mending import Mending
from refold.consumers.notices import notices_of, refuses_without_receipt, told_positions
from refold.consumers.sealing import SealingKeys, destroyer
from refold.consumers.standby import Seat, Standby
from refold.producers.history import History
from refold.schemas.commits import Position
from refold.schemas.errors import ConfigurationError, IntegrityError, PlaceTakenError
from refold.schemas.events import (
    ClientErased,
    ClientKeyed,
    FederationEnded,
    FederationOpened,
    Genesis,
    Overflowed,
    Receipt,
    Receipts,
    Regridded,
    RolledBack,
    RoundClosed,
    RoundCommitted,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.identity import ClientNotices
from refold.schemas.payload import Payload
from refold.schemas.reasons import REASONS
from refold.schemas.regrid import REGRIDDED
from refold.schemas.rollback import ROLLED_BACK
from refold.schemas.state_tree import named
from refold.state.epochs import coarser, regrid
from refold.state.model_state import ModelState
from refold.state.optimizers import from_settings
from refold.state.step import Step, Void, compute_step

log = logging.getLogger("refold.server")

MAX_RECEIPTS = 2048
"""Receipts of one event: with names of 200 characters, half of what a record may hold."""


class Aggregation(Standby):
    """One member of the group; it signs checkpoints, and needs no key only where genesis names no log keys."""

    name = "aggregation"

    def __init__(self, seat: Seat, *, keys: SealingKeys | None = None, holding: Holding | None = None) -> None:
        log_keys = seat.genesis.log_keys
        if log_keys and (seat.log_key is None or seat.log_key.public not in log_keys):
            raise ConfigurationError("not a log key of this federation", hint="serve with the secret that `refold init` made")
        super().__init__(
            seat,
            topic=seat.topics.accepted,
            start=lambda seat: _Active(seat, keys or SealingKeys(), holding or Holding(seat.clock)),
        )


class _Active:
    """The member that holds the place."""

    def __init__(self, seat: Seat, keys: SealingKeys, holding: Holding) -> None:
        bus, topics, genesis, clock = seat.bus, seat.topics, seat.genesis, seat.clock
        self._bus, self._topics, self._genesis, self._clock = bus, topics, genesis, clock
        self._seat, self._member = seat, seat.member
        self._destroy_void = destroyer(keys)
        self._history = History(bus, topics, genesis=genesis, on_key=self._destroy_void)
        self._history.refresh()
        self._covered = self._history.lineage.position
        self._found_covered = self._covered.accepted_index == 0
        self._accepted = LedgerReader(bus, topics.accepted)
        self._deltas = PayloadReader(bus, topics.deltas)
        self._payloads = Deltas(topics.federation, self._history.lineage.schema_of, self._deltas, keys)
        self._producer = bus.producer()
        self._steps = bus.topics()[topics.steps].partitions
        self._writer = LedgerWriter(bus, self._history.rounds.reader, writer=seat.member, clock=clock)
        self._alerts = Alerts(bus, topics, clock)
        self._open = OpenUpdates()
        self._holding = holding
        last = self._history.lineage.checkpoint
        self._signer = LogSigner(topics.federation, seat.log_key, last) if seat.log_key and genesis.log_keys else None

    def turn(self) -> bool:
        entries = self._accepted.poll(0.0)
        for entry in entries:
            if self._signer:
                self._signer.fold(entry)
            if entry.commit.next_index <= self._covered.accepted_index:
                self._remember(entry)
            else:
                self._require_covered()
                self._process(entry)
        if not entries and self._accepted.next_offset >= self._bus.end_offset(self._accepted.place):
            self._require_covered()
        return bool(entries)

    def _require_covered(self) -> None:
        """Refuse an `accepted` without the head that `rounds` covers: going on would make other rounds of the same numbers."""
        if not self._found_covered:
            raise IntegrityError(
                f"`rounds` covers `accepted` up to event {self._covered.accepted_index}, which `accepted` does not have",
                topic=self._topics.accepted,
                hint="its tail was lost or replaced; restore it from a copy, nothing is written until then",
            )

    def _remember(self, entry: Entry) -> None:
        """Fold a commit whose outcome `rounds` holds already."""
        for index, event in entry.indexed():
            self._open.fold(index, event)
            if isinstance(event, RoundClosed):
                self._open.take(event)
        if entry.hash == self._covered.accepted_hash:
            self._found_covered = True

    def _process(self, entry: Entry) -> None:
        events: list[object] = []
        for index, event in entry.indexed():
            self._open.fold(index, event)
            match event:
                case Genesis():
                    events.append(_opened(event))
                case RoundClosed():
                    events += self._make_round(event)
                case RolledBack():
                    events += [event, self._reopened(event)]
                case Regridded():
                    events += [event, self._regridded(event)]
                case FederationEnded() | ClientKeyed() | ClientErased():
                    events.append(event)
        notices = tuple(notices_of(entry, required=self._genesis.identity.required))
        events += [ClientNotices(notices[at : at + MAX_RECEIPTS]) for at in range(0, len(notices), MAX_RECEIPTS)]
        receipts = _receipts(entry)
        events += [Receipts(receipts[at : at + MAX_RECEIPTS]) for at in range(0, len(receipts), MAX_RECEIPTS)]
        if events or refuses_without_receipt(entry):
            self._commit(entry, events)

    def _make_round(self, closed: RoundClosed) -> list[object]:
        """Return the round, and where only a coarser lattice helps, what asks for one."""
        # 1. The step.
        members = self._open.take(closed)
        state = self._state_of(closed.parent)
        optimizer = from_settings(closed.optimizer, closed.optimizer_settings)
        step = compute_step(state, aggregate(members, self._payloads, closed.rule, state.schema), optimizer)
        if isinstance(step, Void):
            self._holding.put(state)
            self._warn_of_void(closed.round, step)
            made = _void(closed, state, f"tensor {step.tensor!r}: {step.reason}")
            return [made, Overflowed(closed.round, step.beyond)] if coarser(state.schema, step.beyond) else [made]
        if step.saturated or step.stayed:
            self._warn_of_saturation(closed.round, step)
        # 2. Its chunks.
        parameters, slots = self._write(step, closed.round)
        step.apply(state, round_=closed.round)
        self._holding.put(state)
        return [_applied(closed, state, step, parameters, slots)]

    def _regridded(self, event: Regridded) -> RoundCommitted:
        """Return the round that a regridding opens: its parent's state, rounded to coarser cells."""
        state = self._state_of(event.parent)
        regrid(state, event.exponents)
        state.round = event.round
        self._holding.put(state)
        tree = state.tree()
        return RoundCommitted(
            event.round,
            event.parent,
            REGRIDDED,
            event.reason,
            (),
            None,
            (),
            None,
            tuple(state.slot_exponents.items()),
            tree.parameters_digest,
            tree.state_digest,
            event.next_plan,
        )

    def _reopened(self, event: RolledBack) -> RoundCommitted:
        """Return the round that a rollback opens: no step, and its parent's state, which `rounds` has: it covers in order."""
        lineage = self._history.lineage
        parent = lineage.rounds.get(event.parent)
        parameters_digest, state_digest = lineage.parameters_digest(event.parent), lineage.state_digest(event.parent)
        if parameters_digest is None or state_digest is None:
            raise IntegrityError(f"a rollback to round {event.parent}, which was never made", round=event.round)
        return RoundCommitted(
            event.round,
            event.parent,
            ROLLED_BACK,
            event.reason or event.cause,
            (),
            None,
            (),
            None,
            parent.slot_exponents if parent is not None else (),
            parameters_digest,
            state_digest,
            event.next_plan,
        )

    def _warn_of_void(self, round_: int, void: Void) -> None:
        what = f"round {round_} is void: tensor {void.tensor!r}: {void.reason}"
        follows = "a coarser lattice follows by itself" if void.beyond else "`refold show` names the round's members"
        self._alerts.raise_("round", "error", what, f"the model stays as it was; {follows}", round_, kind="void")

    def _warn_of_saturation(self, round_: int, step: Step) -> None:
        if step.saturated:
            what = f"{step.saturated} optimizer slots of round {round_} reached the end of their lattice and stay there"
            why = "deltas grew far beyond those of the first round"
            self._alerts.raise_("optimizer", "warning", what, why, round_, kind="saturated")
        if step.stayed:
            which = ", ".join(f"{count} of {name!r}" for name, count in step.stayed.items())
            what = f"counters reached the end of their dtype in round {round_} and stay there: {which}"
            why = "make them wider; if it was one client's doing, `refold show` names the round's members"
            self._alerts.raise_("model", "warning", what, why, round_, kind="saturated")

    def _state_of(self, round_: int) -> ModelState:
        state = self._sound(self._holding.take())
        if state is None or state.round != round_:
            self._history.refresh()
            state = self._rebuilt(round_, state)
        return state

    def _rebuilt(self, round_: int, held: ModelState | None) -> ModelState:
        """Return a round's state; where a step that leads there cannot be read, it is mended first."""
        try:
            return self._history.rebuild(round_, held=held)
        except IntegrityError:
            with closing(Mending(self._seat, self._history, self._payloads.keys)) as mending:
                return mending.rebuild(round_)

    def _sound(self, state: ModelState | None) -> ModelState | None:
        """Return what was held where it still is what the log says of its round; else say where it differs, and let it go."""
        due = self._history.lineage.state_digest(state.round) if state is not None else None
        if state is None or due is None:
            return state
        tree = state.tree()
        if tree.state_digest == due:
            return state
        self._history.refresh()
        true = self._rebuilt(state.round, None)
        where = named(true.schema, tree.differences(true.tree())) or "its tensors' shapes"
        what = f"the state of round {state.round} in this server's memory differs from the log's in {where}"
        advice = "the round was taken anew, and no step rests on what was wrong; test this machine's memory"
        self._alerts.raise_(self._member, "error", what, advice, state.round, kind="diverged")
        return true

    def _write(self, step: Step, round_: int) -> tuple[Payload, Payload | None]:
        key = str(round_).encode()
        topic = self._topics.steps
        parameters = send_payload(self._producer, topic, self._steps, step.encode(), key=key)
        slots = send_payload(self._producer, topic, self._steps, step.encode_slots(), key=key) if step.slots else None
        self._producer.flush()
        return parameters.placed(), slots.placed() if slots else None

    def _commit(self, entry: Entry, events: list[object]) -> None:
        self._require_uncovered(entry)
        position = Position(told_positions(entry), accepted_index=entry.commit.next_index, accepted_hash=entry.hash)
        # 3. One commit.
        made = self._signer.sign(entry, self._history.rounds.reader.chain, self._clock.wall_ms()) if self._signer else None
        if made is not None:
            events.append(made)
        appended = self._writer.append(tuple(events), position)
        # 4. Made.
        for taken in appended.entries:
            self._history.lineage.fold(taken, on_key=self._destroy_void)
        if not appended.taken:
            raise self._stand_back()
        if self._signer and made is not None:
            self._signer.taken(made)

    def _require_uncovered(self, entry: Entry) -> None:
        """Stand back if `rounds` covers a commit by now: the head moved on with it, and would take its outcome once more.

        A rebuild reads `rounds` to its end, and may find there what an earlier life or another member wrote.
        """
        if self._history.lineage.position.accepted_index >= entry.commit.next_index:
            raise self._stand_back()

    def _stand_back(self) -> PlaceTakenError:
        return PlaceTakenError(
            "another aggregation's commit was taken first",
            topic=self._topics.rounds,
            hint="this member stands back and starts again from the log",
        )

    def close(self) -> None:
        self._holding.put(None)
        close_all(self._history, self._accepted, self._deltas, self._producer, self._writer, self._alerts)


def _opened(genesis: Genesis) -> FederationOpened:
    return FederationOpened(
        genesis.federation,
        genesis.schema,
        genesis.parameters_digest,
        genesis.state_digest,
        genesis.optimizer,
        genesis.first_plan,
        genesis.log_keys,
        genesis.identity,
    )


def _applied(closed: RoundClosed, state: ModelState, step: Step, parameters: Payload, slots: Payload | None) -> RoundCommitted:
    tree = state.tree()
    return RoundCommitted(
        closed.round,
        closed.parent,
        "applied",
        "",
        closed.members,
        parameters,
        step.exponents,
        slots,
        tuple(step.slot_exponents.items()),
        tree.parameters_digest,
        tree.state_digest,
        closed.next_plan,
    )


def _void(closed: RoundClosed, state: ModelState, reason: str) -> RoundCommitted:
    """Return a round without a step: its state is its parent's."""
    tree = state.tree()
    exponents = tuple(state.slot_exponents.items())
    state.round = closed.round
    return RoundCommitted(
        closed.round,
        closed.parent,
        "void",
        reason,
        closed.members,
        None,
        (),
        None,
        exponents,
        tree.parameters_digest,
        tree.state_digest,
        closed.next_plan,
    )


def _receipts(entry: Entry) -> tuple[Receipt, ...]:
    """Return what the clients of a commit's verdicts are told.

    A repeat gets none: the receipt of the update itself comes, or came, by its digest.
    """
    found = []
    for event in entry.events:
        match event:
            case UpdateAccepted():
                found.append(Receipt(event.origin.client, event.origin.digest, "accepted"))
            case UpdateRejected() if "duplicate" not in event.reasons:
                found.append(Receipt(event.origin.client, event.origin.digest, REASONS.get(event.reasons[0], "content")))
    return tuple(found)
