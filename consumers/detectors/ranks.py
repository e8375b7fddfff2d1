"""Ranks: an update that stands in the same place among the others at too many secret coordinates.

Source: Zhu, Zhao, Luo, Liu and Deng, MANDERA: malicious node detection in federated learning via ranking, 2023, on the secret
subset of coordinates: who does not know it cannot arrange his ranks there.
"""

from __future__ import annotations

import numpy as np

from refold.consumers.detectors.contract import Cohort, Scores, robust_z

MOST = 20.0


class Ranks:
    """Robust z of the spread of a client's ranks and of its mean rank, either way."""

    name, version, reason = "ranks", 1, "ranks"

    def __init__(self, threshold: float = 6.0) -> None:
        self._threshold = threshold

    def score(self, cohort: Cohort) -> Scores:
        """Return the larger of both."""
        subset = np.array([features.subset for features in cohort.features])
        moved = subset[:, (subset != 0).mean(axis=0) >= 0.5]
        if not moved.shape[1]:
            silent = np.zeros(len(cohort))
            return Scores(silent, silent + self._threshold, ("no coordinate that most changed",) * len(cohort))
        ranks = moved.argsort(axis=0, kind="stable").argsort(axis=0) / (len(cohort) - 1)
        mean, spread = ranks.mean(axis=1), ranks.std(axis=1)
        of_mean = np.abs(robust_z(mean, least_scale=0.03))
        of_spread = np.abs(robust_z(spread, least_scale=0.02))
        values = np.minimum(np.maximum(of_mean, of_spread), MOST)
        evidence = tuple(f"ranks of mean {m:.2f} and spread {s:.2f}" for m, s in zip(mean, spread, strict=True))
        return Scores(values, np.full(len(cohort), self._threshold), evidence)
