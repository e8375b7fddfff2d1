"""An update of 100 M parameters, four hundred times what a broker's message may hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "large_update.py"
PARAMETERS = 100_000_000
LIMIT_MODELS = 8


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the most memory a process had is read from Linux' /proc")
def test_an_update_of_400_mb_goes_through_a_default_broker_and_the_server_stays_small(
    kafka_is_available: None, tmp_path: Path
) -> None:
    """The broker is one of its own, so that its two gigabytes go with it."""
    done = subprocess.run(
        [sys.executable, PROGRAM, "--json", "--bus", "kafka", "--parameters", str(PARAMETERS)],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    print({name: round(value, 2) if isinstance(value, float) else value for name, value in found.items()})
    assert done.returncode == 0, done.stderr
    assert found["sent_bytes"] > 3 * PARAMETERS
    assert found["server_peak_bytes"] < found["server_idle_bytes"] + LIMIT_MODELS * 4 * PARAMETERS
    assert found["rebuilt_equal"] is True
    assert found["outcome"] == "accepted"
