"""A model that outgrows its lattice comes onto a coarser one: training goes on, and every round is rebuilt in every way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.cli import run
from refold.producers.task import Task
from refold.schemas.errors import NotFoundError
from refold.schemas.events import Regridded
from refold.testing import eventually

NAMES = ("a", "b")
GROWTH = 0.9 * 2**28
"""Lattice steps that the largest element grows by in a round: the most that an update may ask for, nearly."""

Local = Callable[[Task], dict[str, np.ndarray]]


def growing(task: Task) -> dict[str, np.ndarray]:
    """Return a model whose ``w`` grew by a ninth of what its lattice holds, and whose other tensor by little."""
    local, tensor = task.numpy(), task.state.schema.tensors[0]
    local["w"] += np.float32(GROWTH * 2.0**-tensor.exponent) * np.array([1, -1, 0.37, 0.001], "f4")
    local["b"] += np.float32(0.01)
    return local


def take_part(federation: refold.Federation, folder: Path, name: str, local: Local) -> None:
    """Train until the federation ends."""
    with federation.client(name, key=folder / f"{name}.pem") as client:
        for task in client.tasks():
            task.submit(local(task), num_examples=1)


def run_to_the_end(federation: refold.Federation, folder: Path, local: Local = growing) -> None:
    """Serve and train until all rounds are done, and each epoch has its snapshot."""
    with federation.serve():
        clients = [threading.Thread(target=take_part, args=(federation, folder, name, local)) for name in NAMES]
        for client in clients:
            client.start()
        for client in clients:
            client.join(120)
        eventually(lambda: set(regrids(federation)) <= snapshots(federation), timeout_s=20.0, what="the epochs' snapshots")


def made(folder: Path, *, rounds: int, codec: str = "grid", optimizer: refold.Optimizer | None = None) -> refold.Federation:
    """Make a federation of two clients."""
    federation = refold.create(
        f"sqlite:{folder}/f.db",
        {"w": np.ones(4, "f4"), "b": np.full(3, 0.5, "f4"), "n": np.array(0)},
        plan=refold.Plan(minimum=2, rounds=rounds, heartbeat_s=0.05, codec=codec),
        snapshots=refold.SnapshotPolicy(4, 2),
        defence="consistency",
        optimizer=optimizer,
    )
    for name in NAMES:
        federation.enroll(name, refold.SigningKey.load_or_create(folder / f"{name}.pem").public)
    return federation


def regrids(federation: refold.Federation) -> dict[int, Regridded]:
    """Return the regriddings by the round that each opened."""
    return {event.round: event for event, _ in federation.log() if isinstance(event, Regridded)}


def snapshots(federation: refold.Federation) -> set[int]:
    """Return which rounds have a snapshot."""
    history = federation.history()
    history.close()
    return set(history.snapshots)


def assert_rebuilt_in_every_way(federation: refold.Federation) -> None:
    """Rebuild every round from every snapshot that leads there, on one thread and two, and let the audit do it again."""
    history = federation.history()
    history.close()
    for round_, event in history.lineage.rounds.items():
        digests = [federation.rebuild(round_, start=0).digest, federation.rebuild(round_).digest]
        for start in history.snapshots:
            try:
                digests.append(federation.rebuild(round_, start=start, threads=1 + start % 2).digest)
            except NotFoundError:
                continue
        assert {*digests} == {event.state_digest}
    assert federation.verify().findings == ()


@pytest.mark.parametrize(("codec", "optimizer"), [("grid", None), ("float32", refold.FedAvgM(beta=0.5))])
def test_a_model_that_outgrows_its_lattice_trains_on_and_is_rebuilt_in_every_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], codec: str, optimizer: refold.Optimizer | None
) -> None:
    with made(tmp_path, rounds=22, codec=codec, optimizer=optimizer) as federation:
        run_to_the_end(federation, tmp_path)
        history = federation.history()
        history.close()
        rounds, begun = history.lineage.rounds, regrids(federation)
        assert len(begun) >= 2
        for round_, event in begun.items():
            assert (rounds[round_ - 1].outcome, rounds[round_].outcome) == ("void", "regrid")
            assert event.parent == rounds[round_ - 1].parent == round_ - 2
        assert sum(event.outcome == "applied" for event in rounds.values()) == 22, "void rounds count for nothing"
        first, *_, last = (history.lineage.schema_of(round_).tensors for round_ in (0, *begun))
        assert [tensor.exponent for tensor in first] == [last[0].exponent + 6 * len(begun), last[1].exponent, 0]
        assert federation.rebuild(history.lineage.head).numpy()["w"][0] > 2**15
        assert_rebuilt_in_every_way(federation)
        assert run(["log", "--bus", federation.url, "--type", "Regridded"]) == 0
        assert "led beyond the lattice of 'w'" in capsys.readouterr().out


def test_where_the_last_round_is_void_the_one_that_makes_up_for_it_ends_the_federation(tmp_path: Path) -> None:
    with made(tmp_path, rounds=10) as federation:
        run_to_the_end(federation, tmp_path)
        history = federation.history()
        history.close()
        outcomes = [event.outcome for event in history.lineage.rounds.values()]
        assert outcomes == ["applied"] * 9 + ["void", "regrid", "applied"]
        assert history.lineage.ended is not None
        assert history.lineage.ended.round == 12
        assert_rebuilt_in_every_way(federation)


def test_a_server_that_withholds_what_a_void_round_asked_for_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refold.consumers.aggregation.coarser", lambda schema, tensors: None)
    with made(tmp_path, rounds=10) as federation:
        run_to_the_end(federation, tmp_path)
        report = federation.verify()
        assert report.is_sound
        (notice,) = [finding for finding in report.findings if "no coarser one was asked for" in finding.what]
        assert notice.round == 10


def test_a_rollback_leads_back_to_the_lattice_of_before_and_what_was_trained_on_the_other_is_refused(tmp_path: Path) -> None:
    with made(tmp_path, rounds=14) as federation:
        once = threading.Lock()

        def local(task: Task) -> dict[str, np.ndarray]:
            if task.base_round > max(regrids(federation), default=99) and once.acquire(blocking=False):
                assert run(["rollback", "r4", "--bus", federation.url]) == 0
            return growing(task)

        run_to_the_end(federation, tmp_path, local)
        history = federation.history()
        history.close()
        lineage = history.lineage
        (back,) = lineage.rollbacks
        begun = sorted(regrids(federation))
        assert begun[0] < back.round < begun[1], "it grows out of the same lattice again"
        assert lineage.schema_of(back.round) == lineage.schema_of(0) != lineage.schema_of(begun[0])
        assert lineage.state_digest(back.round) == lineage.state_digest(4)
        assert_rebuilt_in_every_way(federation)
