"""The state that aggregation keeps between rounds: looked at for heartbeats, and once more before the next step rests on it.

A bit that flips in it would go into the next round's digest, and the log would tell of a state that none of its steps lead to.
So the state counts only as long as it has the digest that the log has of its round, optimizer and all.
"""

from __future__ import annotations

from refold.bus.clock import Clock
from refold.producers.held_digest import REST
from refold.schemas.held import StateHeld
from refold.state.model_state import ModelState


class Holding:
    """A state between two uses. Its group's thread puts and takes it; another, a heartbeat's, may look at it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._state: ModelState | None = None
        self._shown: StateHeld | None = None
        self._taken = 0
        self._next_s = 0.0

    def put(self, state: ModelState | None) -> None:
        """Keep a state, which nobody changes until it is taken."""
        self._state, self._shown = state, None

    def take(self) -> ModelState | None:
        """Return what is kept, to be changed, and keep it no more."""
        state, self._state = self._state, None
        self._taken += 1  # After it is gone: whoever still finds it there counts one less than when it comes back.
        return state

    def shown(self, group: str) -> StateHeld | None:
        """Return what is kept as it is in memory now, or was a moment ago; None where nothing is, or it was taken meanwhile."""
        taken = self._taken
        state, shown = self._state, self._shown
        if state is None:
            return None
        started_s = self._clock.monotonic_s()
        if shown is None or shown.round != state.round or started_s >= self._next_s:
            tree = state.tree()
            shown = StateHeld(group, state.round, tree.parameters_digest, tree.slots_digest)
            now_s = self._clock.monotonic_s()
            self._next_s = now_s + REST * (now_s - started_s)
        if self._state is not state or self._taken != taken:
            return None  # It may have been half changed when it was looked at, and be back.
        self._shown = shown
        return shown
