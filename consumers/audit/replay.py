"""Invariants I4 and I6: every round's digests come out of replay, and every step out of the accepted deltas.

For each round, holding its parent's state: 1. the step is computed again from the members' deltas; 2. the recorded step is read
and compared with it, integer by integer where the bytes differ; 3. the recorded step is applied and the digests compared. Where
the recorded step is unreadable or wrong, the computed one takes its place if it leads to the recorded digests, so that one broken
step does not hide what comes after it. Memory: one state, one step, one sum.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

import numpy as np

from refold.bus.contract import Bus, Place
from refold.bus.payloads import PayloadReader
from refold.bus.topics import Topics
from refold.consumers.accepted import aggregate, blocks_of
from refold.consumers.audit.findings import DIGESTS, NOTICE, PAYLOADS, STEPS, Finding, Summary
from refold.consumers.audit.rounds import Applied, Made
from refold.producers.history import Chunks
from refold.producers.lineage import Lineage
from refold.schemas.codec import decode_integers
from refold.schemas.errors import IntegrityError, InvalidRecord, UsageError
from refold.schemas.events import Genesis, Member, RoundCommitted, SnapshotTaken, UpdateAccepted
from refold.schemas.layout import Block, Integers, Layout
from refold.schemas.payload import Payload, chunk_digest, payload_root
from refold.state.model_state import ModelState
from refold.state.optimizers import from_settings
from refold.state.replay import Path, RoundEntry, load_snapshot, walk
from refold.state.step import Step, Void, compute_step

UNREADABLE = (IntegrityError, InvalidRecord)


class ReplayAudit:
    """Folds rounds in the order in which they were made.

    Parameters
    ----------
    snapshots
        Those that agree with the log: where replay goes on behind a step that nothing mends.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        genesis: Genesis,
        lineage: Lineage,
        snapshots: dict[int, SnapshotTaken],
        summary: Summary,
    ) -> None:
        self._bus = bus
        self._topics = topics
        self._genesis = genesis
        self._summary = summary
        self._snapshots = snapshots
        self._steps = PayloadReader(bus, topics.steps)
        self._deltas = PayloadReader(bus, topics.deltas)
        self._snapshot_chunks = PayloadReader(bus, topics.snapshot_chunks)
        self._source = Chunks(lineage, snapshots, None, self._steps, self._snapshot_chunks, None)
        self._entries = {0: RoundEntry(0, None, None, {}, genesis.parameters_digest, genesis.state_digest)}
        self._state: ModelState | None = None
        self._is_lost = False

    def begin(self) -> Iterator[Finding]:
        """Load round 0 from `deltas`, or from its snapshot where it was pruned there."""
        self._source.initial, self._source.deltas = self._genesis.initial, self._deltas
        taken = self._snapshots.pop(0, None)
        try:
            self._state = load_snapshot(self._entries[0], self._genesis.schema, self._source)
        except UNREADABLE as error:
            if not self._is_pruned(self._genesis.initial):
                what = f"the initial state cannot be read: {error.message}"
                yield Finding(PAYLOADS, what, "restore it from a copy", self._topics.deltas, index=0, round=0)
        self._source.initial = self._source.deltas = None
        if taken is not None:
            self._snapshots[0] = taken
        if self._state is None:
            self._state = self._from_snapshot(0)
        elif self._state.tree().state_digest != self._genesis.state_digest:
            yield Finding(DIGESTS, "the initial state is not what genesis says", "", self._topics.accepted, 0, 0, 0, round=0)
            self._state = self._from_snapshot(0)

    def fold(self, made: Made) -> Iterator[Finding]:
        """Take a round in, and yield what is wrong with it."""
        event = made.committed
        self._entries[event.round] = _entry_of(event)
        for member in made.kept:
            yield from self.readable(member)
        state = self._state
        if state is None or state.round != event.parent:
            state = self._from_snapshot(event.parent)
        if state is None:
            yield from self._nothing_leads_to(made)
            self._state = self._from_snapshot(event.round)
            return
        # 1. The step from the deltas.
        computed = yield from self._derived(made, state)
        # 2. The recorded one.
        agrees = yield from self._compared(made, computed)
        # 3. The digests.
        self._state = yield from self._applied(made, state, computed, agrees)

    def _nothing_leads_to(self, made: Made) -> Iterator[Finding]:
        if not self._is_lost:
            what = f"rounds from {made.committed.round} on cannot be replayed until the next snapshot"
            yield self._at(DIGESTS, what, made, "mend what is named before this")
        self._is_lost = True

    def _derived(self, made: Made, state: ModelState) -> Generator[Finding, None, Step | Void | None]:
        """Return the step that the accepted deltas give; None where they were pruned or cannot be read."""
        if made.closed is None or not made.members:
            return None
        members = [(Member(a.event.origin.digest, a.event.origin.client, a.weight), a.index, a.event) for a in made.members]
        try:
            summed = aggregate(self._genesis.schema, members, self._deltas)
            step = compute_step(state, summed, from_settings(made.closed.optimizer, made.closed.optimizer_settings))
        except UNREADABLE as error:
            yield from self._underivable(made, error.message)
            return None
        except UsageError as error:
            yield self._at(STEPS, f"the step cannot be computed again: {error.message}", made)
            return None
        self._summary.payloads += len(made.members)
        return step

    def _underivable(self, made: Made, why: str) -> Iterator[Finding]:
        """Say whether deltas were pruned, which is allowed, or are broken, and which."""
        found = [finding for member in made.members for finding in self.readable(member)]
        if found:
            yield from found
        elif not any(self._is_pruned(member.event.payload) for member in made.members):
            yield self._at(STEPS, f"the step cannot be computed again: {why}", made)
        self._summary.not_rederivable.append(made.committed.round)

    def readable(self, member: Applied) -> Iterator[Finding]:
        """Read an accepted update's payload to its end, and yield a finding where that fails and it was not pruned."""
        event = member.event
        try:
            for _ in blocks_of(event, self._genesis.schema, self._deltas):
                pass
        except UNREADABLE as error:
            if not self._is_pruned(event.payload):
                what = f"the payload of accepted update {event.origin.digest.hex()[:12]} cannot be read: {error.message}"
                yield self._payload_finding(event, member.index, what)
            return
        self._summary.payloads += 1

    def _payload_finding(self, event: UpdateAccepted, index: int, what: str) -> Finding:
        hint = event.payload.hint if event.payload else None
        partition, offset = (hint.partition, hint.first_offset) if hint else (None, None)
        round_ = event.origin.base_round + 1
        advice = "rounds stay exact from their steps; restore `deltas` from a copy to derive them again"
        return Finding(PAYLOADS, what, advice, self._topics.deltas, partition, offset, index, event.origin.client, round_)

    def _is_pruned(self, payload: Payload | None) -> bool:
        """Whether the place where a payload lay was deleted as a whole, as pruning does."""
        if payload is None or payload.hint is None:
            return False
        place = Place(self._topics.deltas, payload.hint.partition)
        return self._bus.begin_offset(place) > payload.hint.first_offset

    def _compared(self, made: Made, computed: Step | Void | None) -> Generator[Finding, None, bool | None]:
        """Return whether the recorded step is the computed one; None where it cannot be read or there is nothing to compare."""
        event = made.committed
        if isinstance(computed, Void) or event.step is None:
            if computed is not None and isinstance(computed, Void) != (event.step is None):
                said = "void" if event.step is None else "applied"
                yield self._at(STEPS, f"the outcome is {said}, and its deltas give the other one", made, "who computed it?")
            return None
        for part, payload in (("step", event.step), ("slots' step", event.slots_step)):
            reason = self._fault_in(payload)
            if reason:
                yield self._at(STEPS, f"the recorded {part} cannot be read: {reason}", made, topic=self._topics.steps)
                return None
        if computed is None:
            return None
        what = self._difference(event, computed)
        if what:
            yield self._at(STEPS, f"the recorded step is not the one that its deltas give: {what}", made, "who computed it?")
            return False
        self._summary.rederived += 1
        if not _same_bytes(event, computed):
            note = "the recorded step has the same integers in other bytes: another zstd wrote it"
            yield self._at(STEPS, note, made, severity=NOTICE)
        return True

    def _fault_in(self, payload: Payload | None) -> str:
        try:
            for _ in self._steps.read(payload) if payload is not None else ():
                pass
        except UNREADABLE as error:
            return error.message
        return ""

    def _difference(self, event: RoundCommitted, computed: Step) -> str:
        """Return how a recorded step differs from the computed one, or ""."""
        if event.step_exponents != computed.exponents:
            return "other exponents"
        if dict(event.slot_exponents) != computed.slot_exponents or (event.slots_step is None) != (not computed.slots):
            return "another lattice of the slots"
        if _same_bytes(event, computed):
            return ""
        schema = self._genesis.schema
        flat = [array for arrays in computed.slots.values() for array in arrays]
        names = [tensor.name for tensor in schema.tensors]
        pairs = [(event.step, Layout.of(schema), computed.parameters, names)]
        if event.slots_step is not None:
            slot_names = [f"{slot}/{name}" for slot in computed.slots for name in names]
            pairs.append((event.slots_step, Layout.of_slots(schema, tuple(computed.slots)), flat, slot_names))
        for payload, layout, arrays, named in pairs:
            assert payload is not None
            try:
                block = _first_difference(decode_integers(self._steps.read(payload), layout), arrays)
            except UNREADABLE as error:
                return error.message
            if block is not None:
                return f"tensor {named[block.tensor]!r}, elements from {block.start}"
        return ""

    def _applied(
        self, made: Made, state: ModelState, computed: Step | Void | None, agrees: bool | None
    ) -> Generator[Finding, None, ModelState | None]:
        """Return the round's state, or None where nothing leads to its digests."""
        event = made.committed
        fallback = computed if isinstance(computed, Step) and not agrees else None
        if event.step is not None and agrees is None and fallback is not None:
            return self._with(state, fallback, event)  # What is recorded cannot be read, and was named.
        try:
            walk(state, Path(event.parent, (), (event.round,)), self._entries, self._source)
        except UNREADABLE as error:
            if agrees is not None or computed is None:
                yield self._at(STEPS, f"the recorded step cannot be applied: {error.message}", made, topic=self._topics.steps)
            return self._from_snapshot(event.round)
        what = _digest_difference(state, event)
        if not what:
            self._summary.replayed += 1
            return state
        yield self._at(
            DIGESTS, f"replay does not give the recorded {what}", made, "a step, or the round's own record, was changed"
        )
        if fallback is None:
            return self._from_snapshot(event.round)
        walk(state, Path(event.round, (event.round,), ()), self._entries, self._source)
        return self._with(state, fallback, event)

    def _with(self, state: ModelState, computed: Step, event: RoundCommitted) -> ModelState | None:
        computed.apply(state, round_=event.round)
        return state if not _digest_difference(state, event) else self._from_snapshot(event.round)

    def _from_snapshot(self, round_: int) -> ModelState | None:
        """Return a round's state from its own snapshot if there is one and it is right."""
        if round_ not in self._snapshots or round_ not in self._entries:
            return None
        try:
            state = load_snapshot(self._entries[round_], self._genesis.schema, self._source)
        except UNREADABLE:
            return None
        self._is_lost = False
        return state if state.tree().state_digest == self._entries[round_].state_digest else None

    def _at(
        self, check: str, what: str, made: Made, hint: str = "", *, topic: str | None = None, severity: str = "broken"
    ) -> Finding:
        where = topic or self._topics.rounds
        offset = made.offset if topic is None else None
        return Finding(check, what, hint, where, None, offset, made.index, None, made.committed.round, severity)

    def close(self) -> None:
        """Let go of the state and the readers."""
        self._state = None
        for reader in (self._steps, self._deltas, self._snapshot_chunks):
            reader.close()


def _entry_of(event: RoundCommitted) -> RoundEntry:
    exponents = event.step_exponents if event.step is not None else None
    slots = dict(event.slot_exponents)
    return RoundEntry(event.round, event.parent, exponents, slots, event.parameters_digest, event.state_digest)


def _digest_difference(state: ModelState, event: RoundCommitted) -> str:
    tree = state.tree()
    if tree.parameters_digest != event.parameters_digest:
        return "parameters' digest"
    return "" if tree.state_digest == event.state_digest else "state's digest"


def _same_bytes(event: RoundCommitted, computed: Step) -> bool:
    """Whether a step, written again, has the recorded payloads' roots."""
    if event.step is None or _root(computed.encode()) != event.step.root:
        return False
    return event.slots_step is None or _root(computed.encode_slots()) == event.slots_step.root


def _root(chunks: Iterable[bytes]) -> bytes:
    described = [(chunk_digest(chunk), len(chunk)) for chunk in chunks]
    return payload_root((digest for digest, _ in described), (length for _, length in described))


def _first_difference(blocks: Iterable[tuple[Block, Integers]], arrays: list[Integers]) -> Block | None:
    for block, integers in blocks:
        if not np.array_equal(integers, arrays[block.tensor][block.elements]):
            return block
    return None
