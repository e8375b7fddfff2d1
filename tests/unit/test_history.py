"""States from the bus, where a part of what leads to them is broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import refold
from refold.bus.clock import ManualClock
from refold.bus.ledger import LedgerReader, LedgerWriter
from refold.bus.memory import MemoryBus
from refold.consumers.snapshots import Snapshots
from refold.consumers.standby import Seat
from refold.federation import Federation
from refold.producers.history import History
from refold.schemas.errors import IntegrityError
from refold.schemas.events import PolicyChanged
from refold.schemas.keys import log_key
from refold.schemas.layout import Layout
from refold.schemas.payload import Payload, chunk_digest
from refold.schemas.policies import SNAPSHOTS
from refold.state.aggregation import WeightedMean
from refold.state.model_state import initial_state
from refold.state.optimizers import FedAvg
from refold.state.step import Step, compute_step
from refold.testing.rounds import RoundsWriter

ROUNDS = 6
SIZE = 20_000


class Made:
    """A federation of some rounds that no group served yet."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        initial = {"w": rng.normal(0, 0.1, SIZE).astype(np.float32)}
        self.bus = MemoryBus()
        self.federation = refold.create("memory:", initial, bus=self.bus, snapshots=refold.SnapshotPolicy(4, 3), insecure=True)
        state = initial_state(initial)
        self.digests = {0: state.digest}
        writer = RoundsWriter(self.federation, state, inline_bytes=0)
        self.steps: dict[int, Payload] = {}
        for _ in range(ROUNDS):
            made = writer.add(_step(writer, rng))
            assert made.step is not None
            self.steps[made.round], self.digests[made.round] = made.step, made.state_digest
        writer.close()

    def serve(self) -> None:
        """Let the group of snapshots do all that is due, at most a hundred turns of it."""
        federation, clock = self.federation, ManualClock()
        key = log_key(federation.keyring.secret(federation.genesis.secret_digest))
        group = Snapshots(Seat(self.bus, federation.topics, federation.genesis, "one", clock, key))
        try:
            for _ in range(100):
                group.step(0.0)
        finally:
            group.close()

    def history(self) -> History:
        history = History(self.bus, self.federation.topics, genesis=self.federation.genesis)
        history.refresh()
        return history

    def damage(self, payload: Payload, topic: str) -> None:
        """Change a byte of a payload's first chunk where it lies."""
        for place, log in self.bus._log.partitions.items():
            for number, record in enumerate(log._records if place.topic == topic else ()):
                if record.value is not None and chunk_digest(record.value) == payload.chunks[0]:
                    log._records[number] = replace(record, value=record.value[:-1] + bytes([record.value[-1] ^ 1]))


def _step(writer: RoundsWriter, rng: np.random.Generator) -> Step:
    schema = writer.state.schema
    mean = WeightedMean(schema, (0,))
    change = np.rint(rng.normal(0, 3000, SIZE)).astype(np.int32)
    mean.add(((block, change[block.elements]) for block in Layout.of(schema)), (0,), weight=1, index=0)
    step = compute_step(writer.state, mean.result(), FedAvg())
    assert isinstance(step, Step)
    return step


def tag(federation: Federation, *rounds: int) -> None:
    """Write to the log that these rounds are tagged."""
    reader = LedgerReader(federation.bus, federation.topics.accepted)
    entries = list(reader.read_to_end())
    writer = LedgerWriter(federation.bus, reader, writer="test", clock=ManualClock())
    settings = (("every_rounds", 4), ("keep_last", 3), ("tagged", " ".join(map(str, rounds))))
    assert writer.append((PolicyChanged(SNAPSHOTS, settings),), entries[-1].commit.position).taken
    writer.close()
    reader.close()


@pytest.fixture
def made() -> Iterator[Made]:
    found = Made()
    yield found
    found.federation.close()


def test_a_broken_snapshot_of_round_0_is_passed_over_as_long_as_genesis_has_the_initial_state(made: Made) -> None:
    made.serve()
    history = made.history()
    assert set(history.snapshots) == {0, 4}
    topics = made.federation.topics
    made.damage(history.snapshots[4].parameters, topics.snapshot_chunks)
    made.damage(history.snapshots[0].parameters, topics.snapshot_chunks)
    for round_ in (ROUNDS, 0, 3):
        assert made.history().rebuild(round_).digest == made.digests[round_]
    made.damage(made.federation.genesis.initial, topics.deltas)
    with pytest.raises(IntegrityError):
        made.history().rebuild(ROUNDS)


def test_a_tagged_round_that_cannot_be_had_keeps_no_other_round_from_its_snapshot(made: Made) -> None:
    made.serve()
    for broken in (2, 3):
        made.damage(made.steps[broken], made.federation.topics.steps)
    tag(made.federation, 2, 5)
    made.serve()
    assert set(made.history().snapshots) == {0, 4, 5}
