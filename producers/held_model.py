"""The parameters that a client works on: brought to the round that is asked for, and let go where they went astray."""

from __future__ import annotations

import logging

from refold.bus.clock import Clock
from refold.producers.heartbeat import HeartbeatThread
from refold.producers.held_digest import Held, difference
from refold.producers.held_state import HeldState
from refold.producers.history import History
from refold.schemas.errors import IntegrityError, NotFoundError, TryAgainError
from refold.state.model_state import ModelState

log = logging.getLogger("refold.client")

MOST_PAUSE_S = 5.0
"""Longest pause between two attempts at a round that no way leads to."""

TOLD_S = 2.0
"""How long a client waits at most until the bus has its word that it holds the right state again."""


class HeldModel:
    """A client's state of one round at a time. Belongs to the client's thread.

    Parameters
    ----------
    file
        Where the newest one is kept on disk.
    patience_s
        How long a round is waited for that is not there, or that no way leads to.
    poll_s
        How long one look for news takes.
    """

    def __init__(self, history: History, file: HeldState, clock: Clock, *, patience_s: float, poll_s: float) -> None:
        self._history = history
        self._file = file
        self._clock = clock
        self._patience_s, self._poll_s = patience_s, poll_s
        self.state: ModelState | None = None
        self.heartbeat: HeartbeatThread | None = None
        """Tells of what is held, and looks whether it still is what the log says; None before there is one."""

    @property
    def has_diverged(self) -> bool:
        """Whether what is held was found to be another state than the log's."""
        held = self._looked_at
        return held is not None and held.has_diverged

    def hold(self, round_: int) -> ModelState:
        """Bring the parameters held to a round, by whatever way is there.

        Raises
        ------
        TryAgainError
            The round was gone back from.
        NotFoundError, IntegrityError
            It was not there, or no way led to it, for as long as was waited.
        """
        is_mended = self._mend()
        held, self.state = self.state or self._file.read(self._history.lineage), None
        self._let_go()
        if held is None or held.round != round_:
            held = self._rebuilt(round_, held)
            self._file.write(held)
        self.state = held
        if self.heartbeat:
            digest = self._history.lineage.parameters_digest(round_)
            vitals = self.heartbeat.vitals
            vitals.holds = (round_, digest or bytes(32))
            vitals.held = Held(held, vitals.holds[1], self._clock) if digest else None
            if is_mended:
                # Before any update: one of a client that tells of another state than the log's is refused.
                self.heartbeat.beat_now(TOLD_S)
        return held

    def is_spoiled(self, state: ModelState) -> bool:
        """Look whether a state that is being worked on is the one held, and is no longer what the log says."""
        held = self._looked_at
        if held is None or state is not self.state:
            return False
        held.look()
        return held.has_diverged

    @property
    def _looked_at(self) -> Held | None:
        return self.heartbeat.vitals.held if self.heartbeat else None

    def _let_go(self) -> None:
        """Keep heartbeats from looking at a state that is about to be changed."""
        if self.heartbeat:
            self.heartbeat.vitals.held = None

    def _mend(self) -> bool:
        """Let a state go that was found to be another than the log's, and say where it differs; return whether it was."""
        if not self.has_diverged or self.state is None:
            return False
        self._let_go()
        diverged, self.state = self.state, None
        places = difference(diverged, self._rebuilt(diverged.round, None))
        log.warning("the state held of round %d is not the log's; it is fetched anew: %s", diverged.round, places)
        return True

    def _rebuilt(self, round_: int, held: ModelState | None) -> ModelState:
        """Return a round's parameters, waiting for what is not there yet.

        Where no way leads to the round, the server may find so too, and mend it or go back from it: that is waited for as long.
        """
        deadline_s, pause_s = self._clock.monotonic_s() + self._patience_s, self._poll_s
        while True:
            self._history.refresh()
            try:
                return self._history.rebuild(round_, held=held, slots=False, least="bytes")
            except (NotFoundError, IntegrityError) as error:
                held = None
                lineage = self._history.lineage
                if isinstance(error, IntegrityError) and not lineage.descends(lineage.head, round_):
                    raise TryAgainError(f"round {round_} cannot be had, and was gone back from") from error
                if self._clock.monotonic_s() > deadline_s:
                    raise
                if isinstance(error, IntegrityError):
                    pause_s = min(2 * pause_s, MOST_PAUSE_S)  # Every way was gone in vain; news of `rounds` end the pause.
            self._history.rounds.poll(pause_s)
