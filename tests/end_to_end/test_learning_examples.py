"""The examples that learn do what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def output(name: str, folder: Path) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, EXAMPLES / name], cwd=folder, capture_output=True, text=True, timeout=150, env=env)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_hospitals_learn_and_nobody_asks_the_village(tmp_path: Path) -> None:
    said = re.findall(r"round (\d+): (.*)", output("hospitals.py", tmp_path))
    by_round = {int(round_): dict(re.findall(r"(\w+) ([0-9.]+)", line)) for round_, line in said}
    assert "west" in by_round[1]
    assert set(by_round[9]) == {"north", "south", "east"}
    assert min(float(accuracy) for accuracy in by_round[9].values()) > 0.93


@pytest.mark.torch
def test_the_network_learns_digits_and_every_round_has_a_digest(tmp_path: Path) -> None:
    rounds = re.findall(r"round (\d+): accuracy ([0-9.]+), digest ([0-9a-f]{16})", output("torch_digits.py", tmp_path))
    assert [int(round_) for round_, *_ in rounds] == list(range(7))
    assert float(rounds[0][1]) < 0.4 < 0.9 < float(rounds[6][1])
    assert len({digest for *_, digest in rounds}) == 7


@pytest.mark.torch
def test_after_a_real_kill_the_textbooks_file_loses_epochs_and_ours_a_batch(tmp_path: Path) -> None:
    textbook, ours = re.findall(r"(\d+) batch(?:es)? lost\n.*: (yes|no)\n.*: (yes|no)", output("snapshot_restore.py", tmp_path))
    assert textbook == ("53", "no", "no")
    assert ours == ("1", "yes", "yes")
