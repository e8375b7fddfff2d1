"""An operator goes back to an earlier round: training goes on from there, and everything follows the branch."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

import refold
from refold.cli import run
from refold.schemas.events import RolledBack, RoundClosed, UpdateRejected
from refold.schemas.plans import ConfigSpan
from refold.schemas.rollback import Calibration
from refold.testing import eventually

NAMES = ("ann", "bob", "cid")


Shell = Callable[..., str]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """Return a function that runs a command line and returns what it said."""

    def said(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert run(words) == code, capsys.readouterr().err
        return capsys.readouterr().out

    return said


class Crowd:
    """Clients in threads that train until the federation ends; those who are held keep their task until they are let go."""

    def __init__(self, federation: refold.Federation, folder: Path) -> None:
        self.federation, self.folder = federation, folder
        self.held = threading.Event()
        self.holding: dict[str, int] = {}
        self.trained: list[tuple[str, int, int]] = []
        self.hold_at = 0
        self._threads = [threading.Thread(target=self._work, args=(name,), daemon=True) for name in NAMES]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.held.set()
        for thread in self._threads:
            thread.join(30.0)

    def _work(self, name: str) -> None:
        with self.federation.client(name, key=self.folder / f"{name}.pem") as client:
            for task in client.tasks():
                if task.round == self.hold_at and not self.held.is_set():
                    self.holding[name] = task.round
                    self.held.wait(30.0)
                self.trained.append((name, task.round, task.base_round))
                task.submit({"w": task.numpy()["w"] + np.float32(task.round / 64)}, num_examples=10)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[refold.Federation]:
    """Return a federation of three clients and six rounds."""
    plan = refold.Plan(minimum=3, rounds=6, heartbeat_s=0.05, codec="exact")
    snapshots = refold.SnapshotPolicy(2, 2)
    with refold.create(f"sqlite:{tmp_path}/f.db", {"w": np.zeros(8, "f4")}, plan=plan, snapshots=snapshots) as made:
        for name in NAMES:
            made.enroll(name, refold.SigningKey.load_or_create(tmp_path / f"{name}.pem").public)
        yield made


def events(federation: refold.Federation, kind: type) -> list[Any]:
    return [event for event, _ in federation.log() if isinstance(event, kind)]


def test_training_goes_on_from_the_round_gone_back_to_and_late_updates_are_refused_without_blame(
    federation: refold.Federation, tmp_path: Path, shell: Shell
) -> None:
    url = federation.url
    crowd = Crowd(federation, tmp_path)
    crowd.hold_at = 5
    with federation.serve(), crowd:
        eventually(lambda: len(crowd.holding) == 3, timeout_s=30.0, what="round 4 made and round 5 under way")
        tried = json.loads(shell("rollback", "HEAD~2", "--dry-run", "--bus", url, "--json"))
        assert (tried["parent"], tried["abandoned"], tried["updates_left"], tried["clients"]) == (2, 4, 6, 3)
        assert not events(federation, RolledBack)
        shell("rollback", "r2", "--reason", "it went bad", "--bus", url)
        crowd.held.set()
        eventually(lambda: events(federation, refold.schemas.events.FederationEnded), timeout_s=60.0, what="the end")
    _check_log(federation)
    _check_states(federation)
    assert not federation.verify().findings
    _check_readers(shell, url)


def _check_log(federation: refold.Federation) -> None:
    (back,) = events(federation, RolledBack)
    assert (back.round, back.parent, back.abandoned, back.cause, back.reason) == (5, 2, 4, "operator", "it went bad")
    closed = [(event.round, event.parent) for event in events(federation, RoundClosed)]
    assert closed == [(1, 0), (2, 1), (3, 2), (4, 3), (6, 5), (7, 6), (8, 7), (9, 8)]  # Six of them stand on one another.
    late = [event for event in events(federation, UpdateRejected) if "abandoned-branch" in event.reasons]
    assert {event.origin.client for event in late} == set(NAMES)
    assert not refold.schemas.reasons.blames("abandoned-branch")


def _check_states(federation: refold.Federation) -> None:
    """Round 5 is round 2; what follows is made from it by the deltas of its own branch alone."""
    assert federation.rebuild(5).digest == federation.rebuild(2).digest
    expected = (1 + 2 + 6 + 7 + 8 + 9) / 64
    for start in (None, 0):
        assert np.array_equal(federation.rebuild(9, start=start).numpy()["w"], np.full(8, expected, "f4"))
    assert np.array_equal(federation.rebuild(4).numpy()["w"], np.full(8, 10 / 64, "f4"))


def _check_readers(shell: Shell, url: str) -> None:
    assert json.loads(shell("show", "HEAD~5", "--bus", url, "--json"))["round"] == 2  # 9, 8, 7, 6, 5, 2.
    drawn = shell("log", "--graph", "--bus", url).splitlines()
    assert [line.split("r")[0] for line in drawn][3:8] == ["*  ", "*  ", "| *  ", "| *  ", "|/"]
    assert "rollback: it went bad" in drawn[4]
    assert drawn[5].endswith("left")
    nodes = [json.loads(line) for line in shell("log", "--graph", "--bus", url, "--json").splitlines()]
    assert [node["round"] for node in nodes if not node["is_past"]] == [4, 3]
    assert "by a rollback from round 4" in shell("show", "r5", "--bus", url)
    shell("rollback", "r1", "--bus", url, code=2)  # It has ended.


def test_a_calibration_takes_a_client_at_a_time_and_then_training_is_where_it_was(
    federation: refold.Federation, tmp_path: Path
) -> None:
    crowd = Crowd(federation, tmp_path)
    crowd.hold_at = 5
    with federation.serve(), crowd:
        eventually(lambda: len(crowd.holding) == 3, timeout_s=30.0, what="round 5 under way")
        federation.roll_back(
            0, "poisoned from the start", calibration=Calibration(4, 1, (ConfigSpan(1, (("mode", "repair"),)),))
        )
        crowd.held.set()
        eventually(lambda: events(federation, refold.schemas.events.FederationEnded), timeout_s=60.0, what="the end")
    closed = [event for event in events(federation, RoundClosed) if event.round > 5]
    assert [len(event.members) for event in closed] == [1, 1, 1, 1, 3, 3]
    assert not federation.verify().findings


def test_a_repair_bans_the_culprit_goes_back_to_before_it_and_lets_the_others_calibrate(
    federation: refold.Federation, tmp_path: Path, shell: Shell
) -> None:
    crowd = Crowd(federation, tmp_path)
    crowd.hold_at = 5
    words = ("repair", "cid", "--work", "0.5", "--set", "rate=0.4:0.1", "--set", "mode=repair", "--bus", federation.url)
    with federation.serve(), crowd:
        eventually(lambda: len(crowd.holding) == 3, timeout_s=30.0, what="round 5 under way")
        tried = json.loads(shell(*words, "--dry-run", "--json"))
        assert (tried["parent"], tried["abandoned"], tried["lost"], tried["calibration_rounds"]) == (0, 4, 8, 4)
        shell(*words)
        crowd.held.set()
        eventually(lambda: events(federation, RoundClosed)[-1].round == 9, timeout_s=60.0, what="the calibration's end")
        federation.end()
    (back,) = events(federation, RolledBack)
    assert dict(back.next_plan.config) == {"rate": 0.4, "mode": "repair"}
    assert dict(back.calibration.config_at(4)) == {"rate": pytest.approx(0.1), "mode": "repair"}
    closed = [event for event in events(federation, RoundClosed) if event.round > 5]
    names = [member.client for event in closed for member in event.members]
    assert sorted(names) == ["ann", "ann", "bob", "bob"]
    assert not federation.verify().findings
