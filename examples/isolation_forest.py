"""Anomaly detection as textbooks show it, and the same task for `refold.Detection`: who of a hundred sent something odd?

The textbook fits an isolation forest to a random matrix of 100 × 10 and says of a tenth of the rows, whatever they are, that
they are anomalies. So it does where nothing is wrong, and it must be told that a tenth is bad to name the right ones. Refold is
not told how many are bad, and names nobody where nobody stands out.

Usage: python examples/isolation_forest.py
"""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import IsolationForest

import refold


def textbook(rows: np.ndarray) -> list[int]:
    """Return the indices that an isolation forest predicts to be −1."""
    predictions = IsolationForest(contamination=0.1, random_state=0).fit(rows).predict(rows)
    return np.flatnonzero(predictions == -1).tolist()


def ours(rows: np.ndarray, detectors: tuple[str, ...] | None = None) -> list[int]:
    """Return the indices whose updates are not accepted."""
    config = refold.DetectionConfig(detectors=detectors) if detectors else None
    clients = [f"client-{index:03d}" for index in range(len(rows))]
    cohort = refold.Cohort(1, clients, rows.astype(np.float32), [1] * len(rows))
    return [index for index, verdict in enumerate(refold.Detection(config).judge(cohort)) if not verdict.accepted]


def show(what: str, found: list[int], bad: set[int]) -> None:
    """Print who was found, who was missed and who was blamed for nothing."""
    right = len(bad & set(found))
    print(f"  {what:<22} names {len(found):>2}: {right:>2} of {len(bad)} bad ones, {len(found) - right} honest ones")


def main() -> None:
    """Judge the textbook's own data, then the same with ten bad rows."""
    rng = np.random.default_rng(42)
    honest = rng.normal(size=(100, 10))
    attacked = honest.copy()
    bad = set(range(0, 100, 10))
    attacked[sorted(bad)] *= 20
    for title, rows, culprits in (("nothing is wrong", honest, set()), ("ten rows are 20 times too long", attacked, bad)):
        print(title)
        show("textbook forest", textbook(rows), culprits)
        show("refold.Detection", ours(rows), culprits)


if __name__ == "__main__":
    main()
