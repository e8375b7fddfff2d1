"""The demonstration from the command line: a short one, with every kind of fault, and one without any."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from refold.demo.faults import KINDS, SIGN_FLIP
from refold.demo.findings import findings

KEYS = {
    "rounds",
    "accuracy",
    "accuracy_clean",
    "accuracy_undefended",
    "updates",
    "faults",
    "server_kills",
    "rebuilt",
    "witnessed",
    "bus",
    "seconds",
}
RUNS = ("clean", "none", "consistency", "all")


def refold(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "refold", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def demo(out: Path, *words: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(refold("demo", "--out", str(out), "--json", *words))
    return report


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Return the report and folder of one short demonstration with faults."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return demo(out, "--rounds", "5", "--clients", "10", "--seed", "2"), out


def test_the_report_has_what_was_agreed(shown: tuple[dict[str, Any], Path]) -> None:
    report, out = shown
    assert report.keys() == KEYS
    assert report == json.loads((out / "report.json").read_text())
    assert report["rounds"] == 5
    assert report["server_kills"] == 1
    assert report["updates"]["received"] == report["updates"]["accepted"] + sum(report["updates"]["rejected"].values())
    assert len(report["rebuilt"]) == 3
    assert all(one["equal"] and len(one["digest"]) == 64 for one in report["rebuilt"])


def test_every_kind_of_fault_happened_and_was_caught(shown: tuple[dict[str, Any], Path]) -> None:
    faults = shown[0]["faults"]
    counts = Counter(fault["kind"] for fault in faults)
    # A machine that stalls for longer than the deadline may keep the sign-flipper out of a round.
    assert counts.pop(SIGN_FLIP) >= 3
    assert counts == Counter(KINDS)
    assert len({fault["client"] for fault in faults}) == len(KINDS) + 1
    missed = [fault for fault in faults if not fault["caught"]]
    assert not missed
    reasons = {fault["kind"]: fault["reason"] for fault in faults}
    assert reasons["nan"] == "not-finite"
    assert reasons["bytes-flipped"] == "chunk-digest"
    assert reasons["sent-twice"] == "duplicate"
    assert reasons["stale"] == "stale"
    assert reasons["client-killed"].startswith("came back")
    assert "norm" in reasons["norm-x100"]


def test_defences_are_worth_their_trouble(shown: tuple[dict[str, Any], Path]) -> None:
    report = shown[0]
    assert report["accuracy"] > 0.8
    assert report["accuracy_undefended"] < report["accuracy"] - 0.2


def test_the_folder_keeps_logs_bus_files_and_picture(shown: tuple[dict[str, Any], Path]) -> None:
    _, out = shown
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    for run in RUNS:
        assert (out / run / "bus.db").stat().st_size > 0
        assert (out / run / "log.jsonl").stat().st_size > 0
    assert not (out / "clean" / "faults.jsonl").exists()


def test_anyone_can_repeat_the_findings_from_what_refold_log_prints(shown: tuple[dict[str, Any], Path]) -> None:
    from refold.demo.faults import FaultFile

    report, out = shown
    printed = [json.loads(line) for line in refold("log", "--json", "--bus", report["bus"]).splitlines()]
    again = findings(FaultFile(out / "all" / "faults.jsonl").read(), printed)
    assert [(one.kind, one.client, one.round, one.caught, one.reason) for one in again] == [
        tuple(fault.values()) for fault in report["faults"]
    ]


def test_the_federation_that_is_left_verifies(shown: tuple[dict[str, Any], Path]) -> None:
    report, out = shown
    kept = [str(box) for box in sorted((out / "all" / "clients").glob("*.outbox")) if list(box.glob("*.witness"))]
    refold("verify", "--bus", report["bus"], *[word for box in kept for word in ("--against", box)])
    witnessed = report["witnessed"]
    assert witnessed["clients"] == len(kept) > 0
    assert witnessed["checkpoints"] == witnessed["fit"] > 0


def test_without_faults_nothing_is_rejected_and_no_server_killed(tmp_path: Path) -> None:
    report = demo(tmp_path / "out", "--rounds", "3", "--clients", "4", "--faults", "none")
    assert report["faults"] == []
    assert report["server_kills"] == 0
    assert report["updates"] == {"received": 12, "accepted": 12, "rejected": {}}
    assert all(one["equal"] for one in report["rebuilt"])
