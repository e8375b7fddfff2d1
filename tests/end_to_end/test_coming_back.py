"""A client that comes back fetches steps, merged steps or a snapshot: whichever is fewest bytes, counted as they are read."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import refold
from refold.bus.contract import Bus, Consumer, Record
from refold.bus.wrapping import Wrapped
from refold.federation import Federation
from refold.producers.client import Client
from refold.producers.outbox import Outbox
from refold.schemas.keys import SigningKey
from refold.testing import SteppedServer

SIZE, ROUNDS = 120_000, 18
MODEL_BYTES = 4 * SIZE


class CountingBus(Wrapped):
    """Counts the bytes of the values that its consumers read, by topic."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self.read: Counter[str] = Counter()

    def consumer(self, **settings: Any) -> Consumer:
        return cast(Consumer, _Counting(self._inner.consumer(**settings), self.read))

    def of(self, *topics: str) -> int:
        return sum(size for topic, size in self.read.items() if topic.split(".")[1] in topics)


class _Counting(Wrapped):
    def __init__(self, consumer: Consumer, read: Counter[str]) -> None:
        super().__init__(consumer)
        self._read = read

    def poll(self, *args: Any, **settings: Any) -> list[Record]:
        records = cast(list[Record], self._inner.poll(*args, **settings))
        for record in records:
            self._read[record.topic] += len(record.value or b"")
        return records


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Federation, Path]]:
    """A federation whose client `away` was there for the first round, and `there` for all others."""
    tmp_path = tmp_path_factory.mktemp("away")
    made = refold.create(
        f"sqlite:{tmp_path}/it.db",
        {"w": np.zeros(SIZE, "f4")},
        optimizer=refold.FedAdam(lr=0.01),
        plan=refold.Plan(minimum=1, heartbeat_s=0.1),
        snapshots=refold.SnapshotPolicy(12, 2),
    )
    with made as federation, SteppedServer(federation) as server:
        for name in ("away", "there"):
            federation.enroll(name, SigningKey.load_or_create(tmp_path / f"{name}.pem").public)
        server.settle()
        with client_of(federation, tmp_path, "away") as away:
            next(away.tasks())
        with client_of(federation, tmp_path, "there") as there:
            rng, tasks = np.random.default_rng(1), there.tasks()
            for _ in range(ROUNDS):
                task = next(tasks)
                task.submit({"w": task.numpy()["w"] + rng.normal(0, 0.01, SIZE).astype("f4")}, num_examples=1)
                server.settle()
                server.clock.advance(10.0)
                server.settle()
        assert federation.head == ROUNDS
        yield federation, tmp_path


def client_of(federation: Federation, folder: Path, name: str, bus: Bus | None = None) -> Client:
    key = SigningKey.load(folder / f"{name}.pem")
    return Client(bus or federation.bus, federation.topics, name, key, Outbox(folder / f"{name}.outbox"))


def come_back(federation: Federation, folder: Path, name: str) -> CountingBus:
    bus = CountingBus(federation.bus)
    with client_of(federation, folder, name, cast(Bus, bus)) as client:
        task = next(client.tasks())
        assert task.state.parameters_digest == federation.rebuild(ROUNDS).parameters_digest
    return bus


def test_who_was_away_fetches_less_than_the_model(trained: tuple[Federation, Path]) -> None:
    federation, folder = trained
    history = federation.history()
    lineage, manifests = history.lineage, dict(history.merged)
    history.close()
    single = sum(event.step.size_bytes for event in lineage.rounds.values() if event.step)
    short = come_back(federation, folder, "there")
    long = come_back(federation, folder, "away")
    print(
        f"of a model of {MODEL_BYTES:,} bytes: nothing new {short.of('steps', 'snapshot-chunks'):,}, "
        f"{ROUNDS} rounds behind {long.of('steps', 'snapshot-chunks'):,}; one by one {single:,}; {len(manifests)} merged steps"
    )
    assert short.of("steps", "snapshot-chunks") < MODEL_BYTES // 4
    assert long.of("snapshot-chunks", "steps") < MODEL_BYTES // 2


def test_who_lost_the_model_fetches_a_snapshot_and_what_came_after(trained: tuple[Federation, Path]) -> None:
    federation, folder = trained
    (model,) = (folder / "away.outbox").glob("*.model")
    whole = model.read_bytes()
    for damaged in (whole[:-1], whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], b"", b"refold"):
        model.write_bytes(damaged)
        bus = come_back(federation, folder, "away")
        assert MODEL_BYTES <= bus.of("snapshot-chunks") < 2 * MODEL_BYTES
    again = come_back(federation, folder, "away")
    assert again.of("snapshot-chunks", "steps") == 0
