"""Steps and payloads: what the accepted deltas give, compared with what was recorded."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np

from refold.bus.contract import Bus
from refold.bus.payloads import PayloadReader
from refold.bus.topics import Topics
from refold.consumers.accepted import Deltas
from refold.consumers.audit.findings import BROKEN, NOTICE, PAYLOADS, STEPS, Finding, Summary
from refold.consumers.audit.rounds import Applied, Made
from refold.consumers.deriving import derive, is_same_bytes
from refold.consumers.sealing import VOID, KeyLackingError, SealingKeys, SealingLog
from refold.schemas.codec import decode_integers
from refold.schemas.errors import IntegrityError, InvalidRecord, UsageError
from refold.schemas.events import Genesis, Member, RoundCommitted, UpdateAccepted
from refold.schemas.layout import Integers, Layout
from refold.schemas.payload import Payload
from refold.state.epochs import Epochs, coarser
from refold.state.model_state import ModelState
from refold.state.step import Step, Void

UNREADABLE = (IntegrityError, InvalidRecord)
SAME, OTHER, UNREAD, UNKNOWN = "same", "other", "unread", "unknown"


class StepAudit:
    """Derives each round's step again.

    Parameters
    ----------
    epochs
        Which lattice each round is on, as far as the log was read.
    deltas, steps
        Readers of these topics, the caller's.
    keys
        What opens sealed updates.
    announced
        For each partition of `deltas` the offset below which the log says that it is pruned.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        genesis: Genesis,
        epochs: Epochs,
        deltas: PayloadReader,
        steps: PayloadReader,
        summary: Summary,
        keys: SealingKeys,
        announced: dict[int, int],
    ) -> None:
        self._bus = bus
        self._topics = topics
        self._genesis = genesis
        self._deltas = Deltas(topics.federation, lambda r: genesis.schema.on(epochs.of(r).lattice), deltas, keys)
        self._steps = steps
        self._summary = summary
        self._announced = announced
        self._unopened: dict[tuple[str, bytes], list[int]] = {}

    def derived(self, made: Made, state: ModelState) -> Generator[Finding, None, Step | Void | None]:
        """Return the step that the accepted deltas give; None where they were pruned, erased or cannot be read."""
        if made.closed is None or not made.members:
            return None
        members = [(Member(a.event.origin.digest, a.event.origin.client, a.weight), a.index, a.event) for a in made.members]
        try:
            step = derive(made.committed, made.closed, members, self._deltas, state)
        except UNREADABLE as error:
            yield from self._underivable(made, error.message)
            return None
        except KeyLackingError:
            for member in made.members:
                yield from self.readable(member)
            self._summary.not_rederivable.append(made.committed.round)
            return None
        except UsageError as error:
            yield self.at(STEPS, f"the step cannot be computed again: {error.message}", made)
            return None
        self._summary.payloads += len(made.members)
        return step

    def _underivable(self, made: Made, why: str) -> Iterator[Finding]:
        """Say whether deltas were pruned, which is allowed, or are broken, and which."""
        found = [finding for member in made.members for finding in self.readable(member)]
        if found:
            yield from found
        elif not any(self.is_pruned(member.event.payload) for member in made.members):
            yield self.at(STEPS, f"the step cannot be computed again: {why}", made)
        self._summary.not_rederivable.append(made.committed.round)

    def readable(self, member: Applied) -> Iterator[Finding]:
        """Read an accepted update's payload to its end, and yield a finding where that fails and it was not pruned."""
        event = member.event
        try:
            self._read(event)
        except UNREADABLE as error:
            if not self.is_pruned(event.payload):
                what = f"the payload of accepted update {event.origin.digest.hex()[:12]} cannot be read: {error.message}"
                yield self._payload_finding(event, member.index, what)
            return
        self._summary.payloads += 1

    def _read(self, event: UpdateAccepted) -> None:
        """Read an update's payload to its end; of one that no key here opens, the sealed bytes alone."""
        try:
            for _ in self._deltas.blocks_of(event):
                pass
        except KeyLackingError:
            assert event.payload is not None
            assert event.sealing is not None
            for _ in self._deltas.reader.read(event.payload):
                pass
            key = (event.origin.client, event.sealing.key_id)
            self._unopened.setdefault(key, []).append(event.origin.base_round + 1)

    def unopened(self, log: SealingLog) -> Iterator[Finding]:
        """Say once, the log being known to its end, which updates did not open and why, and which keys should be gone."""
        for (client, key_id), rounds in self._unopened.items():
            is_void = log.standing(client, key_id) == VOID
            (self._summary.erased if is_void else self._summary.sealed).extend(rounds)
            why = "it was erased" if is_void else f"its key {key_id.hex()} is not here"
            hint = "" if is_void else "audit with the server's key folder to derive them again"
            what = f"{len(rounds)} updates of {client!r} stay sealed: {why}; their bytes are those that the log names"
            yield Finding(PAYLOADS, what, hint, self._topics.deltas, client=client, severity=NOTICE)
        for client in log.keys:
            left = [key_id for key_id in self._deltas.keys.held(client) if log.standing(client, key_id) == VOID]
            if left:
                what = f"{client!r} was erased, and {len(left)} of its keys are still in this key folder"
                hint = "start the server here, or run `refold erase` again"
                yield Finding(PAYLOADS, what, hint, client=client, severity=NOTICE)

    def _payload_finding(self, event: UpdateAccepted, index: int, what: str) -> Finding:
        hint = event.payload.hint if event.payload else None
        partition, offset = (hint.partition, hint.first_offset) if hint else (None, None)
        round_ = event.origin.base_round + 1
        advice = "rounds stay exact from their steps; restore `deltas` from a copy to derive them again"
        return Finding(PAYLOADS, what, advice, self._topics.deltas, partition, offset, index, event.origin.client, round_)

    def is_pruned(self, payload: Payload | None) -> bool:
        """Whether the log says that the place where a payload lay is pruned. What is gone without that is a break."""
        if payload is None or payload.hint is None:
            return False
        return self._announced.get(payload.hint.partition, 0) > payload.hint.first_offset

    def compared(self, made: Made, computed: Step | Void | None) -> Generator[Finding, None, str]:
        """Return how the recorded step stands to the computed one: `SAME`, `OTHER`, `UNREAD`, or `UNKNOWN` for want of one."""
        event = made.committed
        if computed is not None and isinstance(computed, Void) != (event.step is None):
            said = "void" if event.step is None else "applied"
            yield self.at(STEPS, f"the outcome is {said}, and its deltas give the other one", made, "who computed it?")
        if isinstance(computed, Void):
            yield from self._overflow(made, computed)
        for part, payload in (("step", event.step), ("slots' step", event.slots_step)):
            reason = self._fault_in(payload)
            if reason:
                yield self.at(STEPS, f"the recorded {part} cannot be read: {reason}", made, topic=self._topics.steps)
                return UNREAD
        if event.step is None or not isinstance(computed, Step):
            return UNKNOWN
        is_same = is_same_bytes(event, computed)
        what = self._difference(event, computed, is_same=is_same)
        if what:
            yield self.at(STEPS, f"the recorded step is not the one that its deltas give: {what}", made, "who computed it?")
            return OTHER
        self._summary.rederived += 1
        if not is_same:
            note = "the recorded step has the same integers in other bytes: another zstd wrote it"
            yield self.at(STEPS, note, made, severity=NOTICE)
        return SAME

    def _overflow(self, made: Made, computed: Void) -> Iterator[Finding]:
        """Compare for want of which lattice a round is void with what was asked for."""
        said, schema = made.overflowed, self._deltas.schema_of(made.committed.parent)
        if said is not None and said != computed.beyond:
            what = f"its deltas lead beyond the lattice of tensors {computed.beyond}, and {said} are named"
            yield self.at(STEPS, what, made, "who computed it?")
        elif said is None and coarser(schema, computed.beyond):
            what = f"its deltas lead beyond the lattice of tensors {computed.beyond}, and no coarser one was asked for"
            yield self.at(
                STEPS, what, made, "so did servers before there were coarser lattices; newer ones ask", severity=NOTICE
            )

    def _fault_in(self, payload: Payload | None) -> str:
        try:
            for _ in self._steps.read(payload) if payload is not None else ():
                pass
        except UNREADABLE as error:
            return error.message
        return ""

    def _difference(self, event: RoundCommitted, computed: Step, *, is_same: bool) -> str:
        """Return how a recorded step differs from the computed one, or ""."""
        if event.step_exponents != computed.exponents:
            return "other exponents"
        if dict(event.slot_exponents) != computed.slot_exponents or (event.slots_step is None) != (not computed.slots):
            return "another lattice of the slots"
        if is_same:
            return ""
        schema, names = self._genesis.schema, [tensor.name for tensor in self._genesis.schema.tensors]
        found = self._first_difference(event.step, Layout.of(schema), computed.parameters, names)
        if found or event.slots_step is None:
            return found
        flat = [array for arrays in computed.slots.values() for array in arrays]
        slot_names = [f"{slot}/{name}" for slot in computed.slots for name in names]
        return self._first_difference(event.slots_step, Layout.of_slots(schema, tuple(computed.slots)), flat, slot_names)

    def _first_difference(self, payload: Payload | None, layout: Layout, arrays: list[Integers], names: list[str]) -> str:
        assert payload is not None
        try:
            for block, integers in decode_integers(self._steps.read(payload), layout):
                if not np.array_equal(integers, arrays[block.tensor][block.elements]):
                    return f"tensor {names[block.tensor]!r}, elements from {block.start}"
        except UNREADABLE as error:
            return error.message
        return ""

    def at(
        self, check: str, what: str, made: Made, hint: str = "", *, topic: str | None = None, severity: str = BROKEN
    ) -> Finding:
        """Return a finding about a round."""
        offset = made.offset if topic is None else None
        partition = 0 if topic is None else None
        where = topic or self._topics.rounds
        return Finding(check, what, hint, where, partition, offset, made.index, None, made.committed.round, severity)
