"""Faults 33 to 37 in small: the bench that injects 100,000 of them, run with a few hundred. Every one must be refused."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "integrity.py"
KINDS = 42


def test_f33_to_f37_every_injected_fault_is_refused_and_nothing_sound_is() -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, "--injections", "300", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["recall"] == 1.0
    assert found["false_alarms"] == found["unjudged"] == found["by_a_detector"] == 0
    assert found["sound"] >= 300
    assert len(found["kinds"]) == KINDS, "a kind that is never injected is never found"
    assert len(found["reasons"]) >= 20, "refused for their own reasons, not for one that comes before all others"
