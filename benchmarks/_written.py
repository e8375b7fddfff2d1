"""A log of many rounds without clients, on a bus in memory: what the proofs of recovery rebuild."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import refold
from refold.bus.clock import ManualClock
from refold.bus.memory import MemoryBus
from refold.consumers.snapshots import Snapshots
from refold.consumers.standby import Seat
from refold.federation import Federation
from refold.producers.history import History
from refold.schemas.layout import Layout
from refold.state.aggregation import WeightedMean
from refold.state.model_state import ModelState, initial_state
from refold.state.optimizers import Optimizer
from refold.state.step import Step, compute_step
from refold.testing.rounds import RoundsWriter

VOID_EVERY = 97
ROLLBACK_EVERY, ROLLBACK_BY = 211, 5


class WrittenLog:
    """A federation of so many rounds, some void, some built on earlier ones than the last, with snapshots and merged steps.

    Parameters
    ----------
    digests
        Every round's state digest, as it was when the round was made.
    """

    def __init__(self, rounds: int, optimizer: Optimizer, *, side: int, every: int, kept: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        initial = {"w": rng.normal(0, 0.1, (side, side)).astype(np.float32), "n": np.array([1, 2])}
        self.bus = MemoryBus()
        self.federation: Federation = refold.create(
            "memory:", initial, bus=self.bus, optimizer=optimizer, snapshots=refold.SnapshotPolicy(every, kept), insecure=True
        )
        self._group = self._snapshots()
        writer = RoundsWriter(self.federation, initial_state(initial), inline_bytes=0)
        self.digests = {0: writer.state.digest}
        lately: list[ModelState] = []
        for round_ in range(1, rounds + 1):
            if round_ % ROLLBACK_EVERY == 0:
                writer.state = lately[-ROLLBACK_BY]
            writer.add(None if round_ % VOID_EVERY == 0 else random_step(writer.state, optimizer, rng))
            self.digests[round_] = writer.state.digest
            lately = [*lately[-ROLLBACK_BY:], writer.state.copy()]
            self._group.step(0.0)
        while self._group.step(0.0):
            pass
        self._group.close()
        writer.close()

    def _snapshots(self) -> Snapshots:
        topics, genesis = self.federation.topics, self.federation.genesis
        return Snapshots(Seat(self.bus, topics, genesis, "one", ManualClock()))

    def history(self, *, merged: bool = True) -> History:
        """Return a reader of the log; one without merged steps if told so."""
        history = History(self.bus, self.federation.topics, genesis=self.federation.genesis)
        history.refresh()
        if not merged:
            history.merged.clear()
        return history


def random_step(state: ModelState, optimizer: Optimizer, rng: np.random.Generator) -> Step:
    """Return the step of a cohort of one, whose delta is noise with a heavy tail."""
    arrays = [
        np.rint(3000 * rng.standard_t(5, t.size)).astype(np.int32) if t.is_float else rng.integers(-3, 4, t.size)
        for t in state.schema.tensors
    ]
    mean = WeightedMean(state.schema, tuple(0 for _ in arrays))
    blocks = ((b, arrays[b.tensor][b.elements].copy()) for b in Layout.of(state.schema))
    mean.add(blocks, tuple(0 for _ in arrays), weight=1, index=0)
    step = compute_step(state, mean.result(), optimizer)
    assert isinstance(step, Step)
    return step


def below(rounds: list[int], round_: int) -> int:
    """Return the last of these rounds that is not after this one."""
    return max(known for known in rounds if known <= round_)


def above(rounds: list[int], round_: int) -> int:
    """Return the first of these rounds that is not before this one, or the last of all."""
    return min((known for known in rounds if known >= round_), default=rounds[-1])


Way = Callable[[int], ModelState]
