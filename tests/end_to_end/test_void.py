"""A model at the end of what it can hold: counters stay there, beyond a dtype its round is void, and training goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import refold
from refold.bus.contract import Place
from refold.schemas.canonical import decode
from refold.schemas.checks import Alert


def take_part(federation: refold.Federation, folder: Path, name: str) -> None:
    """Train for three rounds; in the second ask for more than a dtype holds."""
    with federation.client(name, key=folder / f"{name}.pem") as client:
        for task in client.tasks():
            local = task.numpy()
            local["w"] += np.float32(0.1)
            if task.round == 2:
                local |= {"n": np.array([120], "i1"), "h": np.array([60_000], "f2")}
            task.submit({key: local[key] for key in task.numpy()}, num_examples=1)


@contextmanager
def trained(
    folder: Path, more: dict[str, np.ndarray], optimizer: refold.Optimizer | None = None
) -> Iterator[refold.Federation]:
    """Yield a federation of three rounds whose model has these tensors, too."""
    initial = {"w": np.ones(4, "f4")} | more
    rules = {"n": "sum"} if "n" in more else {}
    plan = refold.Plan(minimum=2, rounds=3, heartbeat_s=0.05)
    url = f"sqlite:{folder}/void.db"
    with refold.create(url, initial, plan=plan, rules=rules, optimizer=optimizer, defence="consistency") as federation:
        for name in ("a", "b"):
            federation.enroll(name, refold.SigningKey.load_or_create(folder / f"{name}.pem").public)
        with federation.serve():
            clients = [threading.Thread(target=take_part, args=(federation, folder, name)) for name in ("a", "b")]
            for client in clients:
                client.start()
            for client in clients:
                client.join(60)
        yield federation


def outcomes(federation: refold.Federation) -> list[str]:
    """Return what became of each round."""
    history = federation.history()
    history.close()
    return [event.outcome for event in history.lineage.rounds.values()]


def alerts(federation: refold.Federation) -> list[tuple[int | None, str, str]]:
    """Return every alert on the bus."""
    topic = federation.topics.alerts
    with federation.bus.consumer() as consumer:
        consumer.assign([Place(topic, partition) for partition in range(federation.bus.topics()[topic].partitions)])
        found = [decode(record.value or b"", Alert) for record in consumer.poll(0.1)]
    return [(alert.round, alert.severity, alert.what) for alert in found]


def test_a_counter_stays_at_the_end_of_its_dtype_and_the_round_counts(tmp_path: Path) -> None:
    with trained(tmp_path, {"n": np.array([100], "i1")}) as federation:
        assert outcomes(federation) == ["applied"] * 3
        assert [federation.rebuild(round_).numpy()["n"].tolist() for round_ in range(4)] == [[100], [100], [127], [127]]
        assert [alert[:2] for alert in alerts(federation)] == [(2, "warning")]
        assert "1 of 'n'" in alerts(federation)[0][2]
        assert not federation.verify().findings


def test_a_step_beyond_a_dtype_makes_the_round_void_with_an_alert_and_the_next_goes_on(tmp_path: Path) -> None:
    with trained(tmp_path, {"h": np.array([40_000], "f2")}, refold.FedAvg(lr=4)) as federation:
        assert outcomes(federation) == ["applied", "void", "applied"]
        assert federation.rebuild(2).digest == federation.rebuild(1).digest
        assert federation.rebuild(3).numpy()["h"] == [40_000]
        assert [alert[:2] for alert in alerts(federation)] == [(2, "error")]
        assert not federation.verify().findings
