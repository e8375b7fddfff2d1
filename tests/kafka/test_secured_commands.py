"""Every verb on a broker that asks who is calling: from `refold.toml`, the environment or flags, and between two clusters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refold.testing.kafka import Cluster

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

TRAIN = "def train(task):\n    return {'w': task.numpy()['w'] + 1}, 3\n"
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return what runs a verb as a process of its own, in a folder that may hold a ``refold.toml``."""

    def run(*words: str, code: int = 0, **more: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("REFOLD_")} | more
        environment["REFOLD_KEYS"] = str(tmp_path / "keys")
        command = [sys.executable, "-m", "refold", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


def test_a_federation_is_made_served_read_and_copied_by_commands_alone(
    secured_kafka: Cluster, kafka: Cluster, run: Run, tmp_path: Path
) -> None:
    secured = secured_kafka.secured
    assert secured is not None
    name = f"commands-{os.urandom(3).hex()}"
    url = f"{secured_kafka.certificate_url}/{name}"
    ca, admin = str(secured.authority.ca), str(secured.authority.issue("admin"))
    flags = ("--kafka", f"ca={ca}", "--kafka", f"certificate={admin}")
    (tmp_path / "mine.py").write_text(TRAIN)
    np.savez(tmp_path / "initial.npz", w=np.zeros(8, np.float32))
    # Flags.
    run("init", "--bus", url, *flags, "--from", "initial.npz", "--rounds", "2", "--partitions", "1")
    run("enroll", "--bus", url, *flags, "ward-1", "--new-key", "ward-1.pem", "--no-wait")
    # The environment.
    environment = {"REFOLD_BUS": url, "REFOLD_KAFKA_CA": ca, "REFOLD_KAFKA_CERTIFICATE": admin}
    server = subprocess.Popen(
        [sys.executable, "-m", "refold", "serve", "--until-end"],
        cwd=tmp_path,
        env=os.environ | environment | {"REFOLD_KEYS": str(tmp_path / "keys")},
    )
    try:
        run("client", "ward-1", "--key", "ward-1.pem", "--train", "mine:train", **environment)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
    # The file.
    (tmp_path / "refold.toml").write_text(f'bus = "{url}"\n[kafka]\nca = "{ca}"\ncertificate = "{admin}"\n')
    assert json.loads(run("show", "r2", "--json"))
    run("verify")
    run("doctor")
    assert "RoundCommitted" in run("tail", "rounds", "--from-start", "--until-end")
    run("rebuild", "r2", "-o", "round.npz")
    assert np.load(tmp_path / "round.npz")["w"] == pytest.approx(2.0, abs=0.05)
    # To a cluster that asks for nothing, and is shown nothing of this one's account; and back to what it was compared with.
    copy = f"{kafka.url}/{name}"
    assert "complete" in run("export", copy, "--verify")
    run("diff", "--with", copy)
    # From the secured one to a file, the bus that is read being the other.
    (tmp_path / "refold.toml").unlink()
    other = ("--other-kafka", f"ca={ca}", "--other-kafka", f"certificate={admin}")
    run("import", url, "--bus", "sqlite:copy.db", *other)
    run("diff", "--bus", "sqlite:copy.db", "--with", url, *other)
    told = run("import", url, "--bus", "sqlite:second.db", code=78)
    assert "speaks TLS" in told
