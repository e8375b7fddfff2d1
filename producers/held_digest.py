"""What a client really holds: hashed again for its heartbeats, and set against what the log says.

A state may become another one than the log's by a bit that flips in memory, a file that was changed, or code that writes where
it should not. Its digest is told with the next heartbeat, so the server finds out by one comparison; the client lets go of the
state and fetches the round anew. An update trained from it is not sent.
"""

from __future__ import annotations

from refold.bus.clock import Clock
from refold.schemas.digests import DigestTree
from refold.schemas.state_tree import named
from refold.state.model_state import ModelState

REST = 50
"""Hashing may take a fiftieth of the time: a million parameters take 1 to 3 ms, so ten million are looked at every second."""


class Held:
    """A state and the digest that it should have. The thread that looks is another than the one that holds it.

    Whoever changes the state takes this away from the other thread first, and gives it a new one afterwards.
    """

    def __init__(self, state: ModelState, expected: bytes, clock: Clock) -> None:
        self._state, self._clock = state, clock
        self.round = state.round
        self._found = self._expected = expected
        self._next_s = 0.0

    @property
    def has_diverged(self) -> bool:
        """Whether the last look found another state than there should be."""
        return self._found != self._expected

    def digest(self) -> bytes:
        """Look, unless it was done a moment ago; return the digest of what is held."""
        if self._clock.monotonic_s() >= self._next_s:
            self.look()
        return self._found

    def look(self) -> None:
        """Hash what is held now."""
        started_s = self._clock.monotonic_s()
        found = self._state.parameters_digest
        now_s = self._clock.monotonic_s()
        self._next_s = now_s + REST * (now_s - started_s)
        self._found = found

    def tree(self) -> DigestTree:
        """Return the digests of what is held now."""
        return self._state.tree(slots=False)


def difference(held: ModelState, true: ModelState) -> str:
    """Name the blocks of tensors in which a state differs from what it should be."""
    places = held.tree(slots=False).differences(true.tree(slots=False))
    return named(true.schema, places) or "nothing differs any more"
