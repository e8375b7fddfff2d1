"""The small mode of benchmarks/health.py: real processes, of which some are killed, slowed down or have their clock set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "health.py"


@pytest.mark.slow
def test_real_nodes_that_are_hurt_are_named_with_their_cause(seed: int) -> None:
    words = ["--clients", "5", "--faults", "3", "--only", "killed,clock,slow", "--interval", "0.35", "--json"]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *words, "--seeds", str(seed)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["refold"]["faults"] == 3
    assert found["refold"]["named"]["killed"] == {"node": 1}
    assert found["refold"]["named"]["clock"] == {"node": 1}
    assert found["refold"]["false_dead"] == 0
    assert found["fixed time-out"]["named"]["slow"] == {"": 1}
