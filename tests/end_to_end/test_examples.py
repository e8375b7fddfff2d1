"""The README's program and the examples do what they say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.bus.ledger import read_all
from refold.schemas.events import UpdateAccepted, UpdateRejected

ROOT = Path(__file__).resolve().parents[2]
DRIFT = ROOT / "examples" / "drift_report.py"


def eventually(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until something holds."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "waited in vain"
        threading.Event().wait(0.02)


def test_the_readme_shows_the_quickstart_as_it_is() -> None:
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    real = (ROOT / "examples" / "quickstart.py").read_text().split('"""', 2)[2].lstrip("\n")
    assert shown == real


def test_the_quickstart_learns_and_rebuilds(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / "quickstart.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    accuracies = [float(found) for found in re.findall(r"accuracy ([0-9.]+)", run.stdout)]
    assert len(accuracies) == 3
    assert accuracies[0] < 0.7 < 0.95 < accuracies[2]


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[refold.Federation]:
    """A federation of two clients and six rounds that has run its course half way and waits for `train`."""
    plan = refold.Plan(minimum=2, rounds=6, heartbeat_s=0.05)
    made = refold.create(f"sqlite:{tmp_path}/drift.db", {"w": np.zeros(8, "f4")}, plan=plan)
    for name in ("a", "b"):
        made.enroll(name, refold.SigningKey.load_or_create(tmp_path / f"{name}.pem").public)
    with made:
        yield made


def train(federation: refold.Federation, folder: Path, name: str, until: int) -> None:
    """Take part up to a round."""
    rng = np.random.default_rng(len(name))
    with federation.client(name, key=folder / f"{name}.pem") as client:
        for task in client.tasks():
            weights = task.numpy()
            weights["w"] += rng.normal(0.1, 0.01, 8).astype("f4")
            task.submit(weights, num_examples=5)
            if task.round >= until:
                return


def train_all(federation: refold.Federation, folder: Path, until: int) -> float:
    """Let both clients take part up to a round; return the seconds that it took."""
    start_s = time.monotonic()
    threads = [threading.Thread(target=train, args=(federation, folder, name, until)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    eventually(lambda: federation.head >= until)
    return time.monotonic() - start_s


def verdicts(federation: refold.Federation) -> list[int]:
    """Return the index of each verdict on a training update in the log."""
    entries = read_all(federation.bus, federation.topics.accepted)
    return [
        index
        for entry in entries
        for index, event in entry.indexed()
        if isinstance(event, UpdateAccepted | UpdateRejected) and event.origin.kind == "train"
    ]


def test_the_drift_report_starts_late_is_killed_and_misses_nothing(federation: refold.Federation, tmp_path: Path) -> None:
    report = tmp_path / "drift.csv"
    command = [sys.executable, str(DRIFT), "--bus", federation.url, "--csv", str(report), "--until-end"]

    def indices() -> list[int]:
        if not report.exists():
            return []
        return [int(line.split(",")[0]) for line in report.read_text().splitlines()[1:] if "," in line]

    with federation.serve():
        train_all(federation, tmp_path, 3)
        # It starts late, and is killed while it replays.
        slow = subprocess.Popen([*command, "--slow", "0.02"], cwd=tmp_path)
        eventually(lambda: len(indices()) >= 2)
        os.kill(slow.pid, signal.SIGKILL)
        slow.wait()
        train_all(federation, tmp_path, 6)
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    assert indices() == verdicts(federation)
    assert len(indices()) == 12


def test_a_slow_consumer_delays_no_round(federation: refold.Federation, tmp_path: Path) -> None:
    command = [sys.executable, str(DRIFT), "--bus", federation.url, "--csv", str(tmp_path / "slow.csv"), "--slow", "30"]
    slow = subprocess.Popen(command, cwd=tmp_path)
    try:
        with federation.serve():
            eventually(lambda: (tmp_path / "slow.csv").exists())
            # It dawdles half a minute over every event; six rounds and their twelve verdicts are there long before.
            assert train_all(federation, tmp_path, 6) < 25
        assert (tmp_path / "slow.csv").read_text().count("\n") <= 2
    finally:
        slow.kill()
        slow.wait()


def test_the_isolation_forest_blames_a_tenth_whatever_happens_and_detection_nobody() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / "isolation_forest.py"], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.findall(r"(textbook forest|refold.Detection) +names +(\d+): +(\d+) of +(\d+) bad ones, (\d+) honest", run.stdout)
    assert [(who, int(right), int(bad), int(wrong)) for who, _, right, bad, wrong in found] == [
        ("textbook forest", 0, 0, 10),
        ("refold.Detection", 0, 0, 0),
        ("textbook forest", 10, 10, 0),
        ("refold.Detection", 10, 10, 0),
    ]
