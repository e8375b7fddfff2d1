"""A step that would leave the lattice makes its round void; the federation goes on."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

import refold
from refold.bus.contract import Place
from refold.schemas.canonical import decode
from refold.schemas.checks import Alert


def take_part(federation: refold.Federation, folder: Path, name: str) -> None:
    """Train for three rounds; in the second ask the counter for more than its dtype holds together."""
    with federation.client(name, key=folder / f"{name}.pem") as client:
        for task in client.tasks():
            local = task.numpy()
            local["w"] += np.float32(0.1)
            if task.round == 2:
                local["n"] = np.array([120], "i1")
            task.submit(local, num_examples=1)


def alerts(federation: refold.Federation) -> list[Alert]:
    """Return every alert on the bus."""
    topic = federation.topics.alerts
    with federation.bus.consumer() as consumer:
        consumer.assign([Place(topic, partition) for partition in range(federation.bus.topics()[topic].partitions)])
        return [decode(record.value or b"", Alert) for record in consumer.poll(0.1)]


def test_a_step_beyond_the_lattice_makes_the_round_void_with_an_alert_and_the_next_goes_on(tmp_path: Path) -> None:
    plan = refold.Plan(minimum=2, rounds=3, heartbeat_s=0.05)
    initial = {"w": np.ones(4, "f4"), "n": np.array([100], "i1")}
    with refold.create(f"sqlite:{tmp_path}/void.db", initial, plan=plan, rules={"n": "sum"}) as federation:
        for name in ("a", "b"):
            federation.enroll(name, refold.SigningKey.load_or_create(tmp_path / f"{name}.pem").public)
        with federation.serve():
            clients = [threading.Thread(target=take_part, args=(federation, tmp_path, name)) for name in ("a", "b")]
            for client in clients:
                client.start()
            for client in clients:
                client.join(60)
        history = federation.history()
        history.close()
        assert [event.outcome for event in history.lineage.rounds.values()] == ["applied", "void", "applied"]
        assert federation.rebuild(2).digest == federation.rebuild(1).digest
        assert federation.rebuild(3).numpy()["n"] == [100]
        assert [(alert.round, alert.severity) for alert in alerts(federation)] == [(2, "error")]
        assert not federation.verify().findings
