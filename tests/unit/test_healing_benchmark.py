"""The benchmarks of repair and of watching the model, small: they run, and count what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def said(program: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / program), "--small", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_benchmark_of_repair_counts_the_work_of_every_way() -> None:
    rows = {(row["kind"], row["method"]): row for row in said("healing.py")}
    for kind in ("sign", "label", "backdoor"):
        assert 0 < rows[kind, "rollback and calibration"]["work"] <= 0.05
        assert rows[kind, "FedEraser"]["work"] == 0.25
        assert rows[kind, "from scratch"]["behind"] == 0
    assert rows["backdoor", "poisoned"]["backdoor"] > 0.9
    assert rows["backdoor", "rollback and calibration"]["backdoor"] < 0.2


def test_the_benchmark_of_watching_calls_no_healthy_model_bad_and_sees_both_attacks() -> None:
    runs = said("model_watch.py")
    assert [run["cause"] for run in runs if run["kind"] == "healthy"] == [None, None]
    assert all(run["delay"] >= 0 for run in runs if run["kind"] != "healthy")
