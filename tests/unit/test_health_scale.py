"""The small mode of benchmarks/health_scale.py: a crowd is watched, its dead are found and nobody else, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "health_scale.py"


def test_of_a_crowd_the_dead_are_found_and_nobody_else() -> None:
    words = ["--clients", "300", "--beats", "14", "--json"]
    done = subprocess.run([sys.executable, str(PROGRAM), *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["silent"], found["silent_found_dead"], found["false_dead"]) == (3, 3, 0)
    assert found["not_believed"] == {}
    assert found["memory_end_bytes"] < 1.2 * found["memory_first_quarter_bytes"]
