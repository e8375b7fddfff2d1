"""Five hospitals learn to tell benign from malignant tumours; none shows its patients' rows to anyone.

Each hospital's instrument has its own scale, so each keeps its own centre and spread of every measurement: *private* tensors,
which are part of the model and never leave. A hospital with too few rows is not asked (``where``). Every second round the model
is evaluated at the hospitals, and one of them leaves for good half way: nothing waits for it longer than a few heartbeats.

Usage: python examples/hospitals.py [URL]     (a few seconds)
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

import refold
from refold.schemas.events import UpdateAccepted

SHARES = {"north": 0.35, "south": 0.25, "east": 0.2, "west": 0.15, "village": 0.02}
ROUNDS, LEAST_ROWS = 10, 30

Rows = np.ndarray


class Hospital:
    """Rows that stay here: some to train on, some to evaluate with."""

    def __init__(self, name: str, rows: Rows, labels: Rows, rng: np.random.Generator) -> None:
        self.name = name
        unit = rng.uniform(0.5, 2.0, rows.shape[1])  # Of this hospital's instruments.
        self.rows, self.labels = (rows * unit).astype("f4"), labels
        self.cut = len(labels) * 3 // 4

    def scaled(self, weights: dict[str, Rows], rows: Rows) -> Rows:
        """Return measurements as this hospital's model sees them."""
        return (rows - weights["own.centre"]) / weights["own.spread"]

    def train(self, weights: dict[str, Rows], steps: int) -> None:
        """Improve the weights in place: logistic regression by gradient descent."""
        rows, labels = self.rows[: self.cut], self.labels[: self.cut]
        weights["own.centre"], weights["own.spread"] = rows.mean(0), rows.std(0) + np.float32(1e-6)
        seen = self.scaled(weights, rows)
        for _ in range(steps):
            wrong = 1 / (1 + np.exp(-(seen @ weights["w"] + weights["b"]))) - labels
            weights["w"] -= np.float32(0.3) * (seen.T @ wrong / len(labels)).astype("f4")
            weights["b"] -= np.float32(0.3 * wrong.mean())

    def accuracy(self, weights: dict[str, Rows]) -> float:
        """Return the share of the held-out rows that are told right."""
        guesses = self.scaled(weights, self.rows[self.cut :]) @ weights["w"] + weights["b"] > 0
        return float((guesses == self.labels[self.cut :]).mean())

    def take_part(self, url: str, key: Path, last_round: int) -> None:
        """Answer every task, until the federation ends or this hospital leaves."""
        with refold.connect(url).client(self.name, key=key, properties={"rows": len(self.labels)}) as client:
            for task in client.tasks():
                if task.round > last_round:
                    return
                weights = task.numpy()
                if task.evaluate:
                    accuracy = self.accuracy(weights)
                    task.evaluated(loss=1 - accuracy, metrics={"accuracy": accuracy}, num_examples=len(self.labels) - self.cut)
                else:
                    self.train(weights, steps=int(task.config["steps"]))
                    task.submit(weights, num_examples=self.cut)


def divided() -> list[Hospital]:
    """Return the hospitals, each with its share of the rows."""
    rows, labels = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(1)
    order = rng.permutation(len(labels))
    cuts = np.cumsum([int(share * len(labels)) for share in SHARES.values()])
    parts = np.split(order, cuts)[: len(SHARES)]
    return [Hospital(name, rows[part], labels[part], rng) for name, part in zip(SHARES, parts, strict=True)]


def evaluations(federation: refold.Federation) -> dict[int, dict[str, float]]:
    """Return what each hospital said of each round's model, from the log."""
    found: dict[int, dict[str, float]] = {}
    for event, _ in federation.log():
        if isinstance(event, UpdateAccepted) and event.origin.kind == "evaluate":
            found.setdefault(event.origin.base_round, {})[event.origin.client] = dict(event.metrics)["accuracy"]
    return found


def main() -> None:
    """Train, and print what the log says."""
    hospitals = divided()
    size = hospitals[0].rows.shape[1]
    initial = {
        "w": np.zeros(size, "f4"),
        "b": np.zeros(1, "f4"),
        "own.centre": np.zeros(size, "f4"),
        "own.spread": np.ones(size, "f4"),
    }
    plan = refold.Plan(
        where=f"rows >= {LEAST_ROWS}", minimum=3, rounds=ROUNDS, evaluate_every=2, heartbeat_s=0.1, config={"steps": 20}
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = sys.argv[1] if sys.argv[1:] else f"sqlite:{folder}/hospitals.db"
        with refold.create(url, initial, plan=plan, rules={"own.*": "private"}) as federation, federation.serve():
            crowd = []
            for hospital in hospitals:
                key = folder / f"{hospital.name}.pem"
                federation.enroll(hospital.name, refold.SigningKey.load_or_create(key).public)
                last_round = ROUNDS // 2 if hospital.name == "west" else ROUNDS
                crowd.append(threading.Thread(target=hospital.take_part, args=(url, key, last_round)))
            for thread in crowd:
                thread.start()
            for thread in crowd:
                thread.join()
            for round_, said in sorted(evaluations(federation).items()):
                print(f"round {round_}: " + ", ".join(f"{who} {accuracy:.3f}" for who, accuracy in sorted(said.items())))


if __name__ == "__main__":
    main()
