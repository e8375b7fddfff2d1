"""Rules of selection and aggregation in whole federations: recorded in the log, derived again by verify."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.bus.ledger import read_all
from refold.schemas.events import RoundClosed

PULLS = {"ann": 0.1, "bob": 0.2, "cat": 0.3, "dan": 0.4, "eve": 50.0}


def take_part(federation: refold.Federation, folder: Path, name: str) -> None:
    with federation.client(name, key=folder / f"{name}.pem") as client:
        for task in client.tasks():
            local = task.numpy()
            local["w"] += np.float32(PULLS[name])
            task.submit(local, num_examples=10)


@pytest.mark.parametrize(
    ("chosen", "rule", "moved"),
    [
        ({"aggregation": "median"}, "median", 0.3),
        ({"aggregation": "trimmed_mean"}, "trimmed_mean:1", 0.3),
        ({"selection": "multi-krum"}, "weighted_mean", 0.25),
        ({"selection": "bulyan", "aggregation": "trimmed_mean"}, "trimmed_mean:0", 0.2),
    ],
)
def test_a_rule_bounds_a_liar_and_every_round_can_be_derived_again(
    tmp_path: Path, chosen: dict[str, str], rule: str, moved: float
) -> None:
    # Whoever judges lets all in: the rule alone stands against the liar.
    plan = refold.Plan(minimum=len(PULLS), rounds=2, heartbeat_s=0.05)
    initial = {"w": np.zeros((40, 30), "f4"), "n": np.array(0)}
    with refold.create(f"sqlite:{tmp_path}/rules.db", initial, plan=plan, defence="consistency", **chosen) as federation:
        for name in PULLS:
            federation.enroll(name, refold.SigningKey.load_or_create(tmp_path / f"{name}.pem").public)
        with federation.serve():
            clients = [threading.Thread(target=take_part, args=(federation, tmp_path, name)) for name in PULLS]
            for client in clients:
                client.start()
            for client in clients:
                client.join(60)
        found = federation.rebuild(2).numpy()["w"]
        # Two steps, each rounded to cells of at most a quarter of its spread.
        assert np.abs(found - 2 * moved).max() <= 2 * moved * 1.25 / 8, found.mean()
        events = [event for entry in read_all(federation.bus, federation.topics.accepted) for event in entry.events]
        assert [event.rule for event in events if isinstance(event, RoundClosed)] == [rule, rule]
        assert not federation.verify().findings
