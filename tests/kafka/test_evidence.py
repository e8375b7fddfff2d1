"""What was kept of a log on real brokers speaks for it, there and in a copy, and against a copy that was written anew."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.consumers.audit import AGAINST
from refold.federation import Federation
from refold.schemas.kept import to_lines
from refold.schemas.proofs import require_proof
from refold.testing import eventually
from refold.testing.kafka import Cluster

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

NAMES = ("ann", "bob")
ROUNDS = 3


def test_a_log_on_kafka_is_signed_witnessed_proven_and_held_against_its_copies(kafka: Cluster, tmp_path: Path) -> None:
    url = f"{kafka.url}/evidence-{os.urandom(3).hex()}"
    plan = refold.Plan(minimum=2, deadline_s=None, rounds=ROUNDS, heartbeat_s=0.2)
    with refold.create(url, {"w": np.zeros((20, 3), "f4")}, plan=plan, keys=tmp_path / "keys") as federation:
        for name in NAMES:
            federation.enroll(name, refold.SigningKey.load_or_create(tmp_path / f"{name}.pem").public)
        train(federation, tmp_path)
        kept = federation.checkpoints()
        require_proof(federation.prove(kept[-1].events - 1), log_keys=federation.genesis.log_keys, known=kept)
        copy = f"sqlite:{tmp_path}/copy.db"
        federation.export(copy)
        (tmp_path / "kept.json").write_text(to_lines(kept))
        evidence = [str(tmp_path / "kept.json"), copy, *(str(tmp_path / f"{name}.outbox") for name in NAMES)]
        report = federation.verify(against=evidence)
        assert report.findings == ()
        assert report.summary.signed == ROUNDS * len(NAMES)
        assert report.summary.against == report.summary.fitting > len(kept)
        # The same server, and another log of the same name: nothing of what was kept fits it.
        with refold.create(f"sqlite:{tmp_path}/other.db?federation={federation.name}", {"w": np.ones(3, "f4")}) as other:
            found = [f for f in other.verify(against=[tmp_path / "kept.json"]).findings if f.check == AGAINST]
            assert found[0].index == 0


def train(federation: Federation, folder: Path) -> None:
    """Let every client answer every round, and end."""
    threads = [threading.Thread(target=work, args=(federation.url, folder, name)) for name in NAMES]
    with federation.serve():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        eventually(lambda: federation.ended, timeout_s=60)


def work(url: str, folder: Path, name: str) -> None:
    rng = np.random.default_rng(NAMES.index(name))
    with refold.connect(url) as federation, federation.client(name, key=folder / f"{name}.pem") as client:
        for task in client.tasks():
            state = task.numpy()
            task.submit({"w": state["w"] + rng.normal(0, 0.01, (20, 3)).astype("f4")}, num_examples=10)
