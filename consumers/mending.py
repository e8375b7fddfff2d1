"""Steps that cannot be read any more are derived again, from the deltas that the log accepted, and written anew.

The member that takes snapshots looks at each new round's step once and then, as long as it lives, at those of old rounds, one
after the other, with a small part of its time. One whose chunks are lost or changed is mended so:

1. Its members are read from `accepted`, its parent's state is rebuilt, and the step is computed once more. It has the digests
   that the round was recorded with, or nothing is written.
2. Its chunks are acknowledged in `steps`, at the end. Whoever needs them goes by their digests and finds them there. A crash
   before: the next look finds the step as broken as it was. Twice is the same chunks twice.

Where deltas were pruned or erased, lie sealed under keys that are not here, or are broken themselves, that cannot be done.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from refold.bus.closing import close_all
from refold.bus.ledger import LedgerReader
from refold.bus.payloads import PayloadReader, send_payload
from refold.consumers.accepted import Deltas, OpenUpdates
from refold.consumers.alerts import Alerts
from refold.consumers.deriving import Members, derive, is_same_bytes
from refold.consumers.sealing import KeyLackingError, SealingKeys
from refold.consumers.standby import Seat
from refold.producers.history import History
from refold.schemas.errors import IntegrityError, InvalidRecord, NotFoundError, UsageError
from refold.schemas.events import RoundClosed, RoundCommitted
from refold.state.model_state import ModelState
from refold.state.step import Step

log = logging.getLogger("refold.server")

CANNOT = (IntegrityError, InvalidRecord, KeyLackingError, NotFoundError, UsageError)

NEWEST = 16
"""Rounds whose steps are looked at most often: those are what clients and servers that come back ask for."""

PAUSE_S = 1.0
"""Least time between two looks at old rounds' steps."""

SHARE = 0.02
"""Most of its time that the member spends on looking at old rounds' steps."""


class Mending:
    """Looks after the single steps of a history.

    Parameters
    ----------
    history
        The caller's, who keeps it fresh.
    keys
        What opens sealed updates.
    """

    def __init__(self, seat: Seat, history: History, keys: SealingKeys) -> None:
        bus, topics = seat.bus, seat.topics
        self._bus, self._topics, self._clock = bus, topics, seat.clock
        self._history = history
        self._partitions = bus.topics()[topics.steps].partitions
        self._producer = bus.producer()
        self._steps = PayloadReader(bus, topics.steps)
        self._reader = PayloadReader(bus, topics.deltas)
        self._deltas = Deltas(topics.federation, history.lineage.schema_of, self._reader, keys)
        self._alerts = Alerts(bus, topics, seat.clock)
        self._seen = 0
        self._looks = self._older = 0
        self._look_at_s = 0.0
        self._lost: set[int] = set()

    def turn(self) -> int | None:
        """Look at the new rounds' steps, or where there are none at an old one's, and mend what is broken.

        Returns the newest round whose step was found broken and cannot be mended.
        """
        head = self._history.lineage.head
        if self._seen < head:
            looked_at = list(range(max(self._seen, head - NEWEST) + 1, head + 1))
            self._seen = head
        elif head and self._clock.monotonic_s() >= self._look_at_s:
            looked_at = [self._next_old(head)]
        else:
            return None
        begun_s = self._clock.monotonic_s()
        broken = [round_ for round_ in looked_at if round_ not in self._lost and self._is_broken(round_)]
        now_s = self._clock.monotonic_s()
        self._look_at_s = now_s + max(PAUSE_S, (now_s - begun_s) / SHARE)
        return max((round_ for round_ in broken if not self._is_mended(round_)), default=None)

    def rebuild(self, round_: int, held: ModelState | None = None) -> ModelState:
        """Return a round's state as `History.rebuild` does; where no way leads there, mend what is broken of its steps first.

        Raises
        ------
        NotFoundError, IntegrityError
            As `History.rebuild`; what is broken cannot be mended.
        """
        try:
            return self._history.rebuild(round_, held=held)
        except IntegrityError:
            if not [broken for broken in sorted(self._broken_before(round_)) if self._is_mended(broken)]:
                raise
        return self._history.rebuild(round_)

    def _next_old(self, head: int) -> int:
        """Return the next round to look at: in turn one of the newest, and one of all."""
        self._looks += 1
        if self._looks % 2:
            return head - self._looks // 2 % min(NEWEST, head)
        self._older = self._older % head + 1
        return head + 1 - self._older

    def _is_mended(self, round_: int) -> bool:
        """Mend a round's step, and those that its parent's state needs; return whether it can be read now."""
        try:
            self._mend(round_)
        except CANNOT as error:
            self._lost.add(round_)
            log.error("the step of round %d cannot be read, nor derived again: %s", round_, error)
            return False
        what = f"the step of round {round_} could not be read; it was derived again from its deltas and written anew"
        self._alerts.raise_("steps", "warning", what, "test the disks that `steps` lies on", round_, kind="mended")
        return True

    def _mend(self, round_: int) -> None:
        event = self._history.lineage.rounds[round_]
        # 1. The step.
        closed, members = self._members(round_)
        step = derive(event, closed, members, self._deltas, self.rebuild(event.parent))
        if not isinstance(step, Step) or not is_same_bytes(event, step):
            raise IntegrityError("its deltas give other bytes here", round=round_, hint="another zstd wrote it")
        # 2. Its chunks.
        key = str(round_).encode()
        for chunks in (step.encode(), step.encode_slots() if event.slots_step is not None else ()):
            send_payload(self._producer, self._topics.steps, self._partitions, chunks, key=key)
        self._producer.flush()

    def _members(self, round_: int) -> tuple[RoundClosed, Members]:
        """Return how a round was closed, and with which updates."""
        reader, open_ = LedgerReader(self._bus, self._topics.accepted), OpenUpdates()
        try:
            for entry in reader.read_to_end():
                for index, event in entry.indexed():
                    open_.fold(index, event)
                    members = open_.take(event) if isinstance(event, RoundClosed) else []
                    if isinstance(event, RoundClosed) and event.round == round_:
                        return event, members
        finally:
            reader.close()
        raise IntegrityError("the log does not say which updates it was made of", round=round_)

    def _broken_before(self, round_: int) -> Iterator[int]:
        """Yield the rounds up to one, along its branch, whose steps cannot be read and are not known to be lost."""
        rounds = self._history.lineage.rounds
        while round_ in rounds:
            if round_ not in self._lost and self._is_broken(round_):
                yield round_
            round_ = rounds[round_].parent

    def _is_broken(self, round_: int) -> bool:
        event = self._history.lineage.rounds[round_]
        return any(not self._can_read(event, slots=slots) for slots in (False, True))

    def _can_read(self, event: RoundCommitted, *, slots: bool) -> bool:
        payload = event.slots_step if slots else event.step
        try:
            for _ in self._steps.read(payload) if payload is not None else ():
                pass
        except IntegrityError as error:
            log.warning("the step of round %d cannot be read: %s", event.round, error)
            return False
        return True

    def close(self) -> None:
        """Let go of readers and producers."""
        close_all(self._producer, self._steps, self._reader, self._alerts)
