"""Three brokers, of which one dies in the middle of a round: training, readers, examples and the demonstration go on."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from kafka.admin import KafkaAdminClient

import refold
from refold.bus.comparing import parting
from refold.consumers.attached import Context
from refold.federation import Federation
from refold.producers.lineage import LineageReader
from refold.schemas.events import RoundClosed
from refold.testing import eventually
from refold.testing.kafka import Cluster

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (200, 200)
"""Its deltas and steps do not travel inline."""
NAMES = ("ann", "bob", "cleo")
LAST = NAMES[-1]
ROUNDS, DEADLY = 12, 6
PATIENCE_S = 90.0


@pytest.fixture
def federation(kafka_cluster: Cluster, tmp_path: Path) -> Iterator[Federation]:
    """Yield a federation of three clients on the cluster that nobody serves yet."""
    made = refold.create(
        f"{kafka_cluster.url}/cluster-{os.urandom(3).hex()}",
        {"w": np.zeros(SHAPE, np.float32)},
        optimizer=refold.FedAdam(lr=0.05),
        plan=refold.Plan(minimum=len(NAMES), deadline_s=None, rounds=ROUNDS, heartbeat_s=0.2),
        snapshots=refold.SnapshotPolicy(3, 2),
        keys=tmp_path / "keys",
    )
    with made:
        for name in NAMES:
            made.enroll(name, refold.SigningKey.load_or_create(tmp_path / f"{name}.pem").public)
        yield made


@dataclass
class Crew:
    """Clients as threads, each with a bus of its own; the last one waits in one round until it is let go."""

    url: str
    folder: Path
    submitted: set[tuple[str, int]] = field(default_factory=set)
    let_go: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._work, args=(name,), name=name, daemon=True) for name in NAMES]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for thread in self._threads if exc[0] is None else ():
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"{thread.name} does not end"
        self.check()

    def check(self) -> None:
        """Raise what ended a client."""
        if self.failures:
            raise self.failures[0]

    def _work(self, name: str) -> None:
        rng = np.random.default_rng(NAMES.index(name))
        try:
            with (
                refold.connect(self.url) as federation,
                federation.client(name, key=self.folder / f"{name}.pem") as client,
            ):
                for task in client.tasks():
                    if (name, task.round) == (LAST, DEADLY):
                        assert self.let_go.wait(PATIENCE_S)
                    state = task.numpy()
                    state["w"] += rng.normal(0.01, 0.01, SHAPE).astype(np.float32)
                    task.submit(state, num_examples=10)
                    self.submitted.add((name, task.round))
        except BaseException as error:
            self.failures.append(error)


class Attached:
    """A consumer that follows `accepted` from a bus of its own, in a thread, and keeps all that it is given."""

    def __init__(self, url: str) -> None:
        self._federation = refold.connect(url)
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self.delivered: list[int] = []
        self.events: dict[int, Any] = {}
        self._federation.consumer("follower", topic="accepted")(self._take)
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def _take(self, event: Any, context: Context) -> None:
        self.delivered.append(context.index)
        assert self.events.setdefault(context.index, event) == event, f"event {context.index} came again as another"

    def _run(self) -> None:
        try:
            self._federation.run(stop=self._stop)
        except BaseException as error:
            self._failures.append(error)

    def has_seen(self, count: int) -> bool:
        """Whether it saw so many events; what ended it is raised."""
        if self._failures:
            raise self._failures[0]
        return len(self.events) >= count

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(PATIENCE_S)
        self._federation.close()


@pytest.fixture
def attached(federation: Federation) -> Iterator[Attached]:
    """Yield a consumer that follows the accepted log."""
    made = Attached(federation.url)
    yield made
    made.close()


def leader_of(cluster: Cluster, topic: str) -> int:
    """Return the node that leads a topic's only partition."""
    admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    try:
        (found,) = admin.describe_topics([topic])
        return int(found["partitions"][0]["leader_id"])
    finally:
        admin.close()


def watch_rounds(federation: Federation, crew: Crew, on_open: Callable[[int], None]) -> dict[int, float]:
    """Wait for the federation's end; return when each round was seen, and say of each that is open that it is."""
    seen: dict[int, float] = {}
    reader = LineageReader(federation.bus, federation.topics)
    try:
        until_s = time.monotonic() + PATIENCE_S
        while reader.lineage.ended is None:
            crew.check()
            assert time.monotonic() < until_s, f"round {reader.lineage.head} was the last one"
            reader.poll(0.02)
            if reader.lineage.opened is not None:
                seen.setdefault(reader.lineage.head, time.monotonic())
                on_open(reader.lineage.head + 1)
    finally:
        reader.close()
    return seen


def digests(federation: Federation) -> dict[int, bytes]:
    """Replay every round, each from genesis or a snapshot, and return its digest."""
    history = federation.history()
    try:
        return {round_: history.rebuild(round_).digest for round_ in range(history.lineage.head + 1)}
    finally:
        history.close()


def run(*words: str | Path, cwd: Path, timeout_s: float = 120.0) -> str:
    """Run a program of Refold's in an empty home; return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REFOLD_")}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command, cwd=cwd, env=kept | {"HOME": str(cwd)}, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_broker_killed_in_the_middle_of_a_round_costs_time_and_nothing_else(
    kafka_cluster: Cluster, federation: Federation, attached: Attached, tmp_path: Path
) -> None:
    killed: dict[int, float] = {}

    def kill_once(open_round: int) -> None:
        half = {(name, DEADLY) for name in NAMES if name != LAST}
        if open_round == DEADLY and not killed and half <= crew.submitted:
            node = leader_of(kafka_cluster, federation.topics.accepted)
            kafka_cluster.kill(node)
            killed[node] = time.monotonic()
            crew.let_go.set()

    with federation.serve() as server, Crew(federation.url, tmp_path) as crew:
        seen = watch_rounds(federation, crew, kill_once)
        assert not server.wait(0.0)
    # From here on the dead broker stays dead: what is read is read from the two that are left.
    (killed_at,) = killed.values()
    stood_still_s = seen[DEADLY] - killed_at
    usual_s = statistics.median(seen[n] - seen[n - 1] for n in seen if n - 1 in seen and n != DEADLY)
    events = dict(enumerate(event for event, _ in federation.log()))
    eventually(lambda: attached.has_seen(len(events)), timeout_s=PATIENCE_S, what="the follower's last event")
    print(
        f"node {[*killed]} killed with round {DEADLY} half in: {stood_still_s:.2f} s until it was made (a round usually takes "
        f"{usual_s:.2f} s); {len(events)} events, {len(attached.delivered) - len(events)} delivered again"
    )
    assert attached.events == events
    assert sorted(set(attached.delivered)) == list(range(len(events)))
    assert [event.round for event in events.values() if isinstance(event, RoundClosed)] == list(range(1, ROUNDS + 1))

    report = federation.verify()
    assert report.is_sound, [str(finding) for finding in report.findings]
    assert report.summary.waiting == 0
    run("-m", "refold", "verify", "--bus", federation.url, cwd=tmp_path)

    copied = federation.export(f"sqlite:{tmp_path}/copy.db", verify=True)
    assert copied.complete
    with refold.connect(f"sqlite:{tmp_path}/copy.db") as copy:
        assert all(parting(federation.bus, copy.bus, getattr(copy.topics, log))[0] is None for log in ("accepted", "rounds"))
        ours, theirs = digests(federation), digests(copy)
        assert ours == theirs
        assert len(set(ours.values())) == ROUNDS + 1
        assert copy.verify().is_sound


def test_the_examples_run_unchanged_on_the_cluster(kafka_cluster: Cluster, tmp_path: Path) -> None:
    url = f"{kafka_cluster.url}/wards-{os.urandom(3).hex()}"
    said = run(ROOT / "examples" / "quickstart.py", url, cwd=tmp_path)
    accuracies = [float(found) for found in re.findall(r"accuracy ([0-9.]+)", said)]
    assert len(accuracies) == 3
    assert accuracies[0] < 0.7 < 0.95 < accuracies[2]

    said = run(ROOT / "examples" / "drift_report.py", "--bus", url, "--until-end", cwd=tmp_path)
    assert [int(found) for found in re.findall(r"round (\d+): 3 updates applied", said)] == list(range(1, 9))
    rows = [line.split(",") for line in (tmp_path / "drift.csv").read_text().splitlines()[1:]]
    assert len(rows) == 24
    assert all(verdict == "accepted" and float(norm) > 0 for *_, norm, verdict in rows)


def test_the_demonstration_runs_on_the_cluster(kafka_cluster: Cluster, tmp_path: Path) -> None:
    began_s = time.monotonic()
    words = ("demo", "--bus", kafka_cluster.url, "--rounds", "5", "--seed", "2", "--out", "out", "--json")
    report = json.loads(run("-m", "refold", *words, cwd=tmp_path, timeout_s=200))
    print(f"the demonstration took {time.monotonic() - began_s:.1f} s")
    assert report["bus"].startswith(kafka_cluster.url)
    assert report["server_kills"] == 1
    assert all(one["equal"] for one in report["rebuilt"])
    assert report["faults"]
    assert all(fault["caught"] for fault in report["faults"])
    run("-m", "refold", "verify", "--bus", report["bus"], cwd=tmp_path)
