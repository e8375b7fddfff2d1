"""Kafka's own cleaner takes what pruning gave up, and rounds are rebuilt from what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.bus.contract import Bus, Place
from refold.bus.kafka import KafkaBus
from refold.bus.ranges import records_in
from refold.consumers.snapshots import chunk_key
from refold.federation import Federation
from refold.schemas.events import SnapshotTaken
from refold.schemas.merged import piece_of
from refold.testing import eventually
from refold.testing.kafka import Cluster

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

SHAPE = (200, 200)
"""A snapshot's chunks do not travel inline."""
NAMES = ("ann", "bob")
KEPT, GONE, ROUNDS = 3, 8, 16
"""Snapshots kept, rounds whose snapshots the cleaner must have taken, rounds made by then at least."""
EAGER_TOPIC = {
    "segment.ms": "500",
    "min.cleanable.dirty.ratio": "0.01",
    "max.compaction.lag.ms": "1000",
    "delete.retention.ms": "200",
}
"""Kafka cleans no segment that is being written: these roll after half a second, and are then worth cleaning at once."""
CLEANED_S = 90.0


@dataclass(frozen=True)
class Left:
    """What a compacted partition still holds, read from its beginning.

    Parameters
    ----------
    span
        How many offsets the partition has had.
    records
        Records that are there, tombstones among them.
    values
        Keys of those with a value, superseded ones too.
    live
        Keys whose newest record has a value.
    """

    span: int
    records: int
    values: frozenset[bytes]
    live: frozenset[bytes]


def left_in(bus: Bus, place: Place) -> Left:
    """Read a partition from offset 0."""
    end = bus.end_offset(place)
    values, newest, count = set(), {}, 0
    for record in records_in(bus, place, 0, end - 1):
        assert record.key is not None
        count += 1
        newest[record.key] = record.value is not None
        if record.value is not None:
            values.add(record.key)
    return Left(end, count, frozenset(values), frozenset(key for key, is_value in newest.items() if is_value))


def chunks_of(taken: SnapshotTaken) -> set[bytes]:
    """Return the keys of a snapshot's chunks."""
    parts = ((b"p", taken.parameters), (b"s", taken.slots))
    return {
        chunk_key(taken.round, taken.attempt, part, index)
        for part, payload in parts
        if payload is not None
        for index in range(len(payload.chunks))
    }


def owner(key: bytes) -> bytes:
    """Return what a chunk is of: the key of a snapshot's or merged step's manifest."""
    return key.partition(b"/")[0]


@pytest.fixture(scope="module")
def eager(kafka_is_available: None) -> Iterator[Cluster]:
    """Yield a broker whose cleaner looks five times a second for something to clean, instead of every 15 s."""
    with Cluster(settings={"log.cleaner.backoff.ms": "200"}) as cluster:
        yield cluster


@pytest.fixture
def federation(eager: Cluster, tmp_path: Path) -> Iterator[Federation]:
    """Yield a federation that takes a snapshot of every round and keeps three, on topics that are cleaned at once."""
    name = f"cleaned-{os.urandom(3).hex()}"
    made = refold.create(
        f"{eager.url}/{name}",
        {"w": np.zeros(SHAPE, np.float32)},
        optimizer=refold.FedAdam(lr=0.05),
        plan=refold.Plan(minimum=len(NAMES), deadline_s=None, heartbeat_s=0.2),
        snapshots=refold.SnapshotPolicy(1, KEPT),
        partitions=1,
        keys=tmp_path / "keys",
        bus=KafkaBus((eager.bootstrap,), federation=name, topic_settings=EAGER_TOPIC),
    )
    with made:
        for client in NAMES:
            made.enroll(client, refold.SigningKey.load_or_create(tmp_path / f"{client}.pem").public)
        yield made


def train(federation: Federation, folder: Path, name: str, stop: threading.Event, failures: list[BaseException]) -> None:
    """Take part until told to stop."""
    rng = np.random.default_rng(NAMES.index(name))
    try:
        with federation.client(name, key=folder / f"{name}.pem") as client:
            for task in client.tasks():
                if stop.is_set():
                    return
                state = task.numpy()
                state["w"] += rng.normal(0.01, 0.01, SHAPE).astype(np.float32)
                task.submit(state, num_examples=10)
    except BaseException as error:
        failures.append(error)


def train_until_cleaned(federation: Federation, folder: Path) -> float:
    """Train until the cleaner has been at both topics, and the first snapshots are gone; return how long it took."""
    stop, failures = threading.Event(), []
    manifests, chunks = places(federation)

    def is_cleaned() -> bool:
        assert not failures, failures
        left = left_in(federation.bus, manifests), left_in(federation.bus, chunks)
        # A manifest's key is its round, a chunk's begins with it.
        named = {int(key.partition(b"/")[0]) for part in left for key in part.values if b"+" not in key}
        return (
            federation.head >= ROUNDS
            and named.isdisjoint(range(1, GONE + 1))
            and all(part.records < part.span for part in left)
        )

    began_s = time.monotonic()
    arguments = [(federation, folder, name, stop, failures) for name in NAMES]
    threads = [threading.Thread(target=train, args=each, daemon=True) for each in arguments]
    with federation.serve() as server:
        for thread in threads:
            thread.start()
        try:
            eventually(is_cleaned, timeout_s=CLEANED_S, what="the cleaner's work")
        finally:
            stop.set()
        took_s = time.monotonic() - began_s
        for thread in threads:
            thread.join(30)
        assert not failures, failures
        assert not server.wait(0.0)
    return took_s


def places(federation: Federation) -> tuple[Place, Place]:
    """Return where the manifests and the chunks of snapshots lie."""
    return Place(federation.topics.snapshots, 0), Place(federation.topics.snapshot_chunks, 0)


def rebuilt_elsewhere(url: str, round_: int, start: int, empty: Path) -> dict[str, object]:
    """Rebuild a round from one snapshot, in a new process to which no file but the program is left."""
    empty.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REFOLD_")}
    words = ["rebuild", f"r{round_}", "--from-round", str(start), "--json", "--bus", url]
    done = subprocess.run(
        [sys.executable, "-m", "refold", *words],
        cwd=empty,
        env=kept | {"HOME": str(empty), "TMPDIR": str(empty)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_rounds_are_rebuilt_from_what_the_cleaner_left(federation: Federation, tmp_path: Path) -> None:
    took_s = train_until_cleaned(federation, tmp_path)
    manifests, chunks = (left_in(federation.bus, place) for place in places(federation))
    history = federation.history()
    try:
        taken, head = dict(history.snapshots), history.lineage.head
        recorded = {round_: history.lineage.state_digest(round_) for round_ in range(head + 1)}
        from_genesis = {round_: history.rebuild(round_, start=0).digest for round_ in range(head + 1)}
    finally:
        history.close()
    print(
        f"{head} rounds, cleaned within {took_s:.1f} s: of {manifests.span} records of snapshots {manifests.records} are left, "
        f"of {chunks.span} of snapshot-chunks {chunks.records}; snapshots of rounds {sorted(taken)}"
    )
    assert len(taken) == KEPT + 1
    snapshots = {key for key in manifests.values if key.isdigit()}  # Merged steps have other keys, and stay.
    assert manifests.live & snapshots == {str(round_).encode() for round_ in taken}
    # Chunks of merged steps lie beside those of snapshots; a merged step that was let go leaves none.
    of_merged = {key for key in chunks.live if piece_of(owner(key)) is not None}
    assert chunks.live - of_merged == set().union(*map(chunks_of, taken.values()))
    assert {owner(key) for key in of_merged} == manifests.live - snapshots
    # What the cleaner has not come to yet lies in the last segments.
    assert len(snapshots) < head
    kept = [key for key in chunks.values if owner(key).isdigit()]
    assert len(kept) < head * len(chunks_of(taken[max(taken)]))

    oldest, newest = sorted(taken)[1], max(taken)
    before = oldest - 1
    assert before not in taken, "its own snapshot was to be pruned: it is rebuilt backwards from a later one"
    for round_, start in {(newest, newest), (head, newest), (before, oldest)}:
        told = rebuilt_elsewhere(federation.url, round_, start, tmp_path / f"empty-{round_}-{start}")
        assert told["round"] == round_
        assert told["verified"] is True
        assert told["state"] == recorded[round_].hex() == from_genesis[round_].hex()
    report = federation.verify()
    assert report.is_sound, [str(finding) for finding in report.findings]
