"""Faults 26 and 27: flipped bits, cut and foreign snapshots. Wrong state is adopted 0 times."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from faultkit.world import GROUPS, Clients, World

import refold
from refold.bus.ledger import read_all
from refold.bus.payloads import PayloadReader
from refold.consumers.audit import Audit
from refold.schemas.canonical import decode, encode
from refold.schemas.errors import IntegrityError, NotFoundError
from refold.schemas.events import SnapshotTaken, UpdateAccepted
from tests.checker import read_topic

MODEL = {"w": np.zeros((350, 350), "f4"), "b": np.zeros(8, "f4")}
ROUNDS = 4
TOPICS = ("snapshot-chunks", "steps", "deltas")


@dataclass(frozen=True)
class Row:
    """A chunk's row in the bus's file."""

    id: int
    value: bytes


class Damage:
    """Rows of a federation's payloads, to be changed and mended in the file itself."""

    def __init__(self, world: World) -> None:
        self.connection = sqlite3.connect(world.place.file, timeout=30, isolation_level=None)

    def rows(self, topic: str) -> list[Row]:
        """Return a topic's chunks."""
        sql = """SELECT id, value FROM records JOIN partitions ON id >> 40 = place_id JOIN topics USING (topic_id)
                 WHERE name = ? AND value IS NOT NULL"""
        return [Row(*row) for row in self.connection.execute(sql, (topic,))]

    def write(self, row: Row, value: bytes) -> None:
        """Change a row."""
        self.connection.execute("UPDATE records SET value = ? WHERE id = ?", (value, row.id))


def damaged(row: Row, chance: random.Random) -> bytes:
    """Return a row's bytes with one bit flipped, or now and then cut, or empty."""
    how = chance.randrange(20)
    if how == 0:
        return row.value[: chance.randrange(len(row.value))]
    if how == 1:
        return b""
    position, bit = chance.randrange(len(row.value)), chance.randrange(8)
    changed = bytearray(row.value)
    changed[position] ^= 1 << bit
    return bytes(changed)


@pytest.fixture
def made(world: World) -> World:
    """Return a federation with its rounds made, chunks in every topic, and no server."""
    world.found(clients=2, model=MODEL, rounds=ROUNDS, snapshots=refold.SnapshotPolicy(1, ROUNDS))
    make(world)
    return world


def make(world: World) -> None:
    for group in GROUPS:
        world.serve(group)
    with Clients(world, world.clients):
        pass
    world.wait_until_settled()
    world.stop()
    world.assert_sound()


def test_f26_flipped_bits_are_detected_and_wrong_state_is_adopted_0_times(
    made: World, chance: random.Random, long_run: bool, seed: int
):
    positions = 10_000 if long_run else 300
    wanted = {round_: made.fed.rebuild(round_).digest for round_ in range(ROUNDS + 1)}
    damage = Damage(made)
    rows = {topic: damage.rows(f"{made.fed.name}.{topic}") for topic in TOPICS}
    outcomes: Counter[str] = Counter()
    with Readers(made) as readers:
        for number in range(positions):
            topic = TOPICS[number % len(TOPICS)]
            row = chance.choice(rows[topic])
            damage.write(row, damaged(row, chance))
            outcomes[f"{topic}: {'detected' if readers.detect(topic, row) else 'missed'}"] += 1
            outcomes[f"rebuild: {rebuilt(made, wanted, chance)}"] += 1
            damage.write(row, row.value)
    print(f"seed {seed}: {positions} positions, {dict(outcomes)}")
    assert not [outcome for outcome in outcomes if "missed" in outcome or "wrong" in outcome]
    assert sum(outcomes[f"{topic}: detected"] for topic in TOPICS) == positions


def rebuilt(world: World, wanted: dict[int, bytes], chance: random.Random) -> str:
    """Rebuild a round by any way and by one, and say what came of it."""
    round_ = chance.randrange(1, ROUNDS + 1)
    found = []
    for start in (None, chance.randrange(ROUNDS + 1)):
        try:
            found.append("right" if world.fed.rebuild(round_, start=start).digest == wanted[round_] else "wrong")
        except (IntegrityError, NotFoundError):
            found.append("refused")
    assert found[0] != "refused", "there is another way to every round"
    return found[1] if found[0] == "right" else found[0]


class Readers:
    """Reads all that the log names of a topic, as replay and verification do."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __enter__(self):
        bus, topics = self._world.fed.bus, self._world.fed.topics
        history = self._world.fed.history()
        rounds = history.lineage.rounds.values()
        accepted = [
            event
            for entry in read_all(bus, topics.accepted)
            for event in entry.events
            if isinstance(event, UpdateAccepted) and event.payload is not None
        ]
        self._payloads = {
            "steps": [event.step for event in rounds if event.step is not None],
            "snapshot-chunks": [taken.parameters for taken in history.snapshots.values()],
            "deltas": [event.payload for event in accepted] + [self._world.fed.genesis.initial],
        }
        history.close()
        return self

    def detect(self, topic: str, row: Row) -> bool:
        """Return whether reading everything in a topic finds the damage."""
        reader = PayloadReader(self._world.fed.bus, f"{self._world.fed.name}.{topic}")
        try:
            for payload in self._payloads[topic]:
                for _ in reader.read(payload):
                    pass
        except IntegrityError:
            return True
        finally:
            reader.close()
        return False

    def __exit__(self, *exc: object) -> None:
        return None


@pytest.mark.parametrize("topic", TOPICS)
def test_f26_verify_names_what_was_damaged(made: World, topic: str, chance: random.Random):
    assert not broken(made)
    damage = Damage(made)
    row = chance.choice(damage.rows(f"{made.fed.name}.{topic}"))
    damage.write(row, damaged(row, chance))
    assert broken(made)
    damage.write(row, row.value)
    assert not broken(made)


def broken(world: World) -> list[object]:
    """Return what `refold verify` finds broken."""
    return [finding for finding in Audit(world.fed.bus, world.fed.topics).run() if finding.is_broken]


def test_f27_a_snapshot_of_another_federation_is_refused_by_its_digest(made: World, tmp_path: Path):
    (tmp_path / "other").mkdir()
    with World(tmp_path / "other") as other:
        other.found(clients=2, model={name: array + 1 for name, array in MODEL.items()}, rounds=ROUNDS)
        make(other)
        wanted = {round_: made.fed.rebuild(round_).digest for round_ in range(ROUNDS + 1)}
        for topic in ("snapshot-chunks", "snapshots"):
            copy_topic(other, made, topic)
        refused = {record.key for record in read_topic(other.fed.bus, other.fed.topics.snapshots)} - {None}
    assert_same_states(made, wanted)
    history = made.fed.history()
    assert not {int(key) for key in refused} & set(history.snapshots)
    history.close()


def test_f27_a_snapshot_put_in_another_rounds_place_is_refused_by_its_digest(made: World):
    wanted = {round_: made.fed.rebuild(round_).digest for round_ in range(ROUNDS + 1)}
    manifests = [record for record in read_topic(made.fed.bus, made.fed.topics.snapshots) if record.value is not None]
    taken = {int(record.key or b"0"): decode(record.value or b"", SnapshotTaken) for record in manifests}
    moved = refold_manifest(taken[2], round_=3)
    from_nowhere = refold_manifest(taken[2], round_=1_000)
    with made.fed.bus.producer() as producer:
        for key, value in ((3, encode(taken[2])), (4, moved), (3, moved), (1_000, from_nowhere)):
            producer.send(made.fed.topics.snapshots, value, key=str(key).encode(), partition=0)
    assert_same_states(made, wanted)
    history = made.fed.history()
    assert set(history.snapshots) == {0, 1, 2}
    history.close()


def refold_manifest(taken: SnapshotTaken, *, round_: int) -> bytes:
    """Return a manifest that says that it is of another round."""
    return encode(replace(taken, round=round_))


def copy_topic(source: World, target: World, topic: str) -> None:
    """Put all records of a federation's topic into another's."""
    with target.fed.bus.producer() as producer:
        for record in read_topic(source.fed.bus, f"{source.fed.name}.{topic}"):
            name = f"{target.fed.name}.{topic}"
            producer.send(name, record.value, key=record.key, partition=record.partition, headers=record.headers)


def assert_same_states(world: World, wanted: dict[int, bytes]) -> None:
    """Assert that every round is still rebuilt to its own state."""
    for round_, digest in wanted.items():
        assert world.fed.rebuild(round_).digest == digest
