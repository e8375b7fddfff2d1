"""Pruning of payloads by policy: announced before it is done, done again after a crash, and rebuilds stay as they were."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import refold
from refold.bus.clock import ManualClock
from refold.bus.contract import Place
from refold.bus.memory import MemoryBus
from refold.bus.ranges import records_in
from refold.cli import run
from refold.consumers import detection
from refold.consumers.pruning import PruningLog, _first_needed, plan_pruning
from refold.federation import Federation
from refold.schemas.checks import Quarantined
from refold.schemas.erasure import ChangePruning
from refold.schemas.events import DeltasPruned, PruningChanged, UpdateAccepted
from refold.schemas.keys import SigningKey
from refold.schemas.payload import PlaceHint, chunk_digest
from refold.testing import SteppedServer
from tests.end_to_end.crowd import NAMES, SHAPE, learn
from tests.unit.stepped import make, records, send

ID = bytes(16)


def made(folder: Path, rounds: int, **more: Any) -> Federation:
    plan = refold.Plan(minimum=3, rounds=rounds, deadline_s=10.0, heartbeat_s=0.05, seed=bytes(16))
    snapshots = more.pop("snapshots", refold.SnapshotPolicy(2, 2))
    federation = refold.create(f"sqlite:{folder}/fed.db", {"w": np.zeros(SHAPE, "f4")}, plan=plan, snapshots=snapshots, **more)
    for name in NAMES:
        federation.enroll(name, SigningKey.load_or_create(folder / f"{name}.pem").public)
    return federation


def digests(federation: Federation) -> list[str]:
    return [federation.rebuild(round_, start=start).digest for round_ in range(federation.head + 1) for start in (0, None)]


def pruned(federation: Federation) -> list[DeltasPruned]:
    return [event for event, _ in federation.log() if isinstance(event, DeltasPruned)]


def there(federation: Federation, topic: str = "deltas") -> set[bytes]:
    """Return the digests of all records of a topic."""
    found, name = set(), f"{federation.name}.{topic}"
    for partition in range(federation.bus.topics()[name].partitions):
        place = Place(name, partition)
        end = federation.bus.end_offset(place)
        found |= {chunk_digest(record.value or b"") for record in records_in(federation.bus, place, 0, end - 1)}
    return found


def chunks_from(federation: Federation, first_round: int) -> set[bytes]:
    events = [event for event, _ in federation.log() if isinstance(event, UpdateAccepted) and event.payload is not None]
    return {digest for e in events if e.payload and e.origin.base_round + 1 >= first_round for digest in e.payload.chunks}


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """Return a federation of four rounds, nothing pruned."""
    with made(tmp_path, 4) as federation:
        learn(federation, tmp_path)
        yield federation


def test_a_policy_prunes_as_rounds_age_and_every_round_is_rebuilt_as_before(tmp_path: Path) -> None:
    with made(tmp_path, 6) as federation:
        federation.prune(keep_rounds=2)
        learn(federation, tmp_path)
        with SteppedServer(federation) as server:
            server.settle()
        events = pruned(federation)
        assert [event.before_round for event in events][-1] == 5
        assert sorted(event.before_round for event in events) == [event.before_round for event in events]
        assert chunks_from(federation, 5) <= there(federation)
        report = federation.verify()
        assert report.is_sound, [str(finding) for finding in report.findings]
        assert not report.findings
        assert set(report.summary.not_rederivable) <= {1, 2, 3, 4}
        assert report.summary.not_rederivable
        assert report.summary.replayed == 6
        assert len(set(digests(federation))) == 7


def test_an_order_prunes_at_once_and_keeps_what_later_rounds_need(federation: Federation) -> None:
    before, all_ = digests(federation), there(federation)
    federation.prune(before_round=3)
    with SteppedServer(federation) as server:
        server.settle()
    (event,) = pruned(federation)
    assert event.before_round == 3
    assert chunks_from(federation, 3) <= there(federation) < all_
    assert digests(federation) == before
    report = federation.verify()
    assert not report.findings
    assert set(report.summary.not_rederivable) <= {1, 2}
    assert set(report.summary.not_rederivable)


def test_a_crash_between_the_event_and_the_deletion_is_made_good_by_the_next_server(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise MemoryError("killed here")

    all_ = there(federation)
    federation.prune(before_round=5)
    with monkeypatch.context() as patched:
        patched.setattr(detection, "carry_out", crash)
        server = SteppedServer(federation)
        with pytest.raises(MemoryError), server:
            server.settle()
    assert len(pruned(federation)) == 1
    assert there(federation) == all_
    assert not federation.verify().findings
    with SteppedServer(federation, member="successor") as again:
        again.settle()
    assert len(pruned(federation)) == 1
    assert there(federation) == set()
    report = federation.verify()
    assert not report.findings
    assert report.summary.not_rederivable == [1, 2, 3, 4]


def test_nothing_is_pruned_while_the_initial_state_lies_nowhere_else(tmp_path: Path) -> None:
    with made(tmp_path, 1) as federation:
        with SteppedServer(federation, groups=("consistency", "detection", "aggregation")) as server:
            federation.prune(before_round=1)
            server.settle()
        assert plan_pruning(federation.bus, federation.topics, 1) is None
        assert pruned(federation) == []
        assert federation.rebuild(0).digest


def test_a_chunk_that_is_needed_and_not_where_its_hint_says_stops_the_pruning_before_it(federation: Federation) -> None:
    """As in a log that was moved by other means: digests are the reference, offsets a hint."""
    events = [event for event, _ in federation.log() if isinstance(event, UpdateAccepted)]
    moved = [replace(e.payload, hint=PlaceHint(0, 10**6, 10**6)) for e in events if e.payload and e.origin.base_round == 2]
    needed = {digest for payload in moved for digest in payload.chunks}
    topic = federation.topics.deltas
    stopped = 0
    for partition in range(federation.bus.topics()[topic].partitions):
        place = Place(topic, partition)
        end = federation.bus.end_offset(place)
        first = _first_needed(federation.bus, place, end, moved)
        below = {chunk_digest(record.value or b"") for record in records_in(federation.bus, place, 0, first - 1)}
        assert not needed & below
        stopped += first < end
    assert stopped


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_evidence_goes_with_the_rounds_that_it_is_of_however_wrong_the_servers_clock_is(tmp_path: Path, ahead_s: float) -> None:
    """The bus stamps what is written with its own time."""
    with MemoryBus() as bus:
        federation = make(bus, tmp_path, minimum=2, deadline_s=1.0)
        kept: list[list[int]] = []
        with SteppedServer(federation, clock=ManualClock(time.time() + ahead_s)) as server:
            server.settle()
            for number in range(3):
                session, large = (0, b"s" * 8), (b"x" * 100_000, b"y" * 70_000)
                refused = [
                    send(federation, "eve", session=session, sequence=2 * number, schema_digest=bytes(32)),
                    send(federation, "eve", session=session, sequence=2 * number + 1, chunks=large),
                ]
                for name in ("ann", "bob"):
                    send(federation, name, session=session, sequence=number, seed=number)
                server.settle()
                server.clock.advance(30.0)
                server.settle()
                kept.append(refused)
                with bus.producer() as producer:
                    headers = (("ce_type", b"refold.Quarantined"),)
                    producer.send(federation.topics.quarantine, b"damaged", partition=0, headers=headers)
            assert federation.head == 3
            before = there(federation, "quarantine")
            federation.prune(before_round=3)
            server.settle()
        left = [item.offset for item in records(federation, federation.topics.quarantine, Quarantined)]
        assert left == kept[2]
        after = there(federation, "quarantine")
        assert chunk_digest(b"x" * 100_000) in before & after
        assert len(after) < len(before)
        assert not federation.verify().findings


def test_deltas_that_no_operator_let_go_are_a_finding(federation: Federation) -> None:
    from refold.consumers.audit.findings import STANDING

    event = plan_pruning(federation.bus, federation.topics, 3)
    assert event is not None
    with SteppedServer(federation) as server:
        server.settle()
        active: Any = server.members["detection"]
        active._active._commit([event], [])
        active._active.roster.pruning.last = None  # or it would be carried out
    assert [finding.check for finding in federation.verify().findings] == [STANDING]


def test_the_log_says_what_is_due() -> None:
    log = PruningLog()
    assert log.due(9, 9) == 0
    log.fold(log.changed(ChangePruning(4, None), ID))
    assert log.due(3, 3) == 0
    assert log.due(9, 9) == 6
    assert log.due(9, 2) == 3  # what is closed and not made is needed still
    log.fold(DeltasPruned(6, ()))
    assert log.due(9, 9) == 0
    assert log.due(10, 10) == 7
    event = log.changed(ChangePruning(None, 9), ID)
    assert event == PruningChanged(4, 9, ID)
    log.fold(event)
    assert log.due(10, 10) == 9
    log.fold(DeltasPruned(9, ()))
    log.fold(log.changed(ChangePruning(0, None), ID))
    assert (log.due(20, 20), log.allowed(20)) == (0, 9)
    several = PruningLog(keep_rounds=40)
    assert (several.due(48, 48), several.due(49, 49)) == (0, 10)


# The command line.


def test_prune_on_the_command_line(federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    def refold_(*words: str) -> SimpleNamespace:
        code = run([*words, "--bus", federation.url])
        said = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)

    assert refold_("prune").returncode == 2
    assert refold_("prune", "--before", "r9", "--timeout", "1").returncode == 4
    with federation.serve():
        said = refold_("prune", "--before", "r3", "--json")
        assert said.returncode == 0, said.stderr
        assert json.loads(said.stdout) == {"keep_rounds": 0, "before_round": 3, "pruned_before": 3}
        said = refold_("prune", "--keep-rounds", "7")
        assert (said.returncode, "the newest 7 rounds" in said.stdout) == (0, True), said.stderr
    assert [event.before_round for event in pruned(federation)] == [3]
    assert "payloads of rounds below 3 are pruned" in refold_("log").stdout
