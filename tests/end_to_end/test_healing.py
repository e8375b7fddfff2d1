"""A model that goes bad goes back by itself, in a real federation, and training goes on to its end."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.cli import run
from refold.schemas.events import FederationEnded, PolicyChanged, RolledBack
from refold.testing import eventually

NAMES = tuple(f"c{number}" for number in range(5))
SPOILT = (14, 15)
"""Rounds in which most clients train on data that is broken; then it is mended."""


def worth(values: np.ndarray) -> float:
    return float(max(0.0, 1.0 - np.abs(1.0 - values).mean()))


def work(federation: refold.Federation, folder: Path, name: str) -> None:
    """Move the model towards 1, with some noise; in the spoilt rounds away from it."""
    rng = np.random.default_rng([sum(name.encode())])
    with federation.client(name, key=folder / f"{name}.pem") as client:
        for task in client.tasks():
            model = task.numpy()["w"]
            if task.evaluate:
                task.evaluated(loss=1.0 - worth(model), metrics={"accuracy": worth(model) + rng.normal(0, 0.01)})
                continue
            spoilt = task.round in SPOILT and name != "c0"
            step = -2.0 if spoilt else 0.3 * (1.0 - model) + rng.normal(0, 0.01, model.shape)
            task.submit({"w": (model + step).astype("f4")}, num_examples=10)


@pytest.fixture
def healed(tmp_path: Path) -> refold.Federation:
    """Return a federation that ran to its end with automatic healing."""
    plan = refold.Plan(minimum=5, rounds=22, evaluate_every=1, heartbeat_s=0.05, codec="exact")
    url = f"sqlite:{tmp_path}/f.db"
    initial = {"w": np.zeros(8, "f4")}
    federation = refold.create(url, initial, plan=plan, defence="none", healing="automatic", snapshots={"every_rounds": 4})
    for name in NAMES:
        federation.enroll(name, refold.SigningKey.load_or_create(tmp_path / f"{name}.pem").public)
    crowd = [threading.Thread(target=work, args=(federation, tmp_path, name), daemon=True) for name in NAMES]
    with federation.serve():
        for thread in crowd:
            thread.start()
        eventually(lambda: any(isinstance(e, FederationEnded) for e, _ in federation.log()), timeout_s=90.0, what="the end")
    return federation


def test_a_collapse_goes_back_to_the_last_good_round_and_training_ends_well(
    healed: refold.Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    backs = [event for event, _ in healed.log() if isinstance(event, RolledBack)]
    assert [event.cause for event in backs][:1] == ["collapse"]
    assert backs[0].parent == SPOILT[0] - 1
    assert "accuracy of round 14" in backs[0].reason
    assert worth(healed.rebuild().numpy()["w"]) > 0.95
    assert not healed.verify().findings
    said = [event for event, _ in healed.log() if isinstance(event, PolicyChanged)]
    assert {event.subject for event in said} == {"healing", "snapshots"}
    assert run(["snapshots", "HEAD", "r13", "--measure", "--bus", healed.url, "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert next(line["kept_as"] for line in told if line.get("kept_as")) == "initial"
    assert all(line["measured_s"] > 0 and line["predicted_s"] > 0 for line in told if "predicted_s" in line)
    assert run(["policy", "--bus", healed.url]) == 0
    assert "healing mode    automatic" in capsys.readouterr().out
