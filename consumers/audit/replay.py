"""Invariants I4 and I6: every round's digests come out of replay, and every step out of the accepted deltas.

For each round, holding its parent's state: 1. the step is computed again from the members' deltas; 2. the recorded step is read
and compared with it, integer by integer where the bytes differ; 3. the recorded step is applied and the digests compared. Where
the recorded step is unreadable or wrong, the computed one takes its place if it leads to the recorded digests, so that one
broken step does not hide what comes after it. Memory: one state, one step, one sum.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from refold.bus.contract import Bus
from refold.bus.payloads import PayloadReader
from refold.bus.topics import Topics
from refold.consumers.audit.findings import DIGESTS, PAYLOADS, STEPS, Finding, Summary
from refold.consumers.audit.rounds import Made
from refold.consumers.audit.steps import SAME, UNREAD, UNREADABLE, StepAudit
from refold.consumers.sealing import SealingKeys
from refold.producers.history import Chunks, entry_of
from refold.producers.lineage import Lineage
from refold.schemas.errors import NotFoundError
from refold.schemas.events import Genesis, RoundCommitted, SnapshotTaken
from refold.state.model_state import ModelState
from refold.state.paths import Leg, Path, RoundEntry, find_path
from refold.state.replay import load_snapshot, walk
from refold.state.step import Step, Void


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
        keys: SealingKeys,
        announced: dict[int, int],
    ) -> None:
        self._topics = topics
        self._genesis = genesis
        self._summary = summary
        self._snapshots = snapshots
        self._steps = PayloadReader(bus, topics.steps)
        self._deltas = PayloadReader(bus, topics.deltas)
        self._snapshot_chunks = PayloadReader(bus, topics.snapshot_chunks)
        self.steps = StepAudit(bus, topics, genesis, lineage.epochs, self._deltas, self._steps, summary, keys, announced)
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
            if not self.steps.is_pruned(self._genesis.initial):
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
        self._entries[event.round] = entry_of(event, self._source.lineage)
        for member in made.kept:
            yield from self.steps.readable(member)
        state = self._state
        if state is None or state.round != event.parent:
            state = self._from_snapshot(event.parent) or self._gone_back(state, event.parent)
        if state is None:
            yield from self._nothing_leads_to(made)
            self._state = self._from_snapshot(event.round)
            return
        # 1. The step from the deltas.
        computed = yield from self.steps.derived(made, state)
        # 2. The recorded one.
        found = yield from self.steps.compared(made, computed)
        # 3. The digests.
        self._state = yield from self._applied(made, state, computed, found)

    def _gone_back(self, state: ModelState | None, round_: int) -> ModelState | None:
        """Return an earlier round's state, by recorded steps from the one held or from a snapshot; None if nothing does."""
        starts = [state.round] if state is not None else []
        for start in (*starts, *sorted(self._snapshots.keys() & self._entries.keys(), key=lambda other: abs(other - round_))):
            found = state if state is not None and start == state.round else self._from_snapshot(start)
            if found is None:
                continue
            try:
                walk(found, find_path(round_, self._entries, [start]), self._entries, self._source)
            except (*UNREADABLE, NotFoundError):
                state = None if found is state else state  # Half changed.
                continue
            if found.tree().state_digest == self._entries[round_].state_digest:
                return found
            state = None if found is state else state
        return None

    def _nothing_leads_to(self, made: Made) -> Iterator[Finding]:
        if not self._is_lost:
            what = f"rounds from {made.committed.round} on cannot be replayed until the next snapshot"
            yield self.steps.at(DIGESTS, what, made, "mend what is named before this")
        self._is_lost = True

    def _applied(
        self, made: Made, state: ModelState, computed: Step | Void | None, found: str
    ) -> Generator[Finding, None, ModelState | None]:
        """Return the round's state, or None where nothing leads to its digests."""
        event = made.committed
        fallback = computed if isinstance(computed, Step) and found != SAME else None
        if found == UNREAD:
            return self._with(state, fallback, event)
        try:
            walk(state, Path(event.parent, (Leg(event.parent, event.round, 1),)), self._entries, self._source)
        except UNREADABLE as error:
            yield self.steps.at(STEPS, f"the recorded step cannot be applied: {error.message}", made)
            return self._from_snapshot(event.round)
        what = _digest_difference(state, event)
        if not what:
            self._summary.replayed += 1
            return state
        hint = "a step, or the round's own record, was changed"
        yield self.steps.at(DIGESTS, f"replay does not give the recorded {what}", made, hint)
        if found == SAME:
            return state  # The deltas give this state too: only the record is wrong.
        if fallback is not None:
            walk(state, Path(event.round, (Leg(event.parent, event.round, -1),)), self._entries, self._source)
        return self._with(state, fallback, event)

    def _with(self, state: ModelState, computed: Step | None, event: RoundCommitted) -> ModelState | None:
        """Return the round's state by the computed step, or from its snapshot; None where neither gives its digests."""
        if computed is not None:
            computed.apply(state, round_=event.round)
            if not _digest_difference(state, event):
                return state
        return self._from_snapshot(event.round)

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

    def close(self) -> None:
        """Let go of the state and the readers."""
        self._state = None
        for reader in (self._steps, self._deltas, self._snapshot_chunks):
            reader.close()


def _digest_difference(state: ModelState, event: RoundCommitted) -> str:
    tree = state.tree()
    if tree.parameters_digest != event.parameters_digest:
        return "parameters' digest"
    return "" if tree.state_digest == event.state_digest else "state's digest"
