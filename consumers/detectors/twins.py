"""Twins: two updates more alike than honest training from different data makes them.

Source: Fung, Yoon and Beschastnikh, The limitations of federated learning in Sybil settings (FoolsGold), 2020.
"""

from __future__ import annotations

import numpy as np

from refold.consumers.detectors.contract import TINY, Cohort, Scores


class Twins:
    """How little an update differs from the one most like it, against how much the cohort's own nearest differ.

    1 − cosine of an honest update to its nearest is hardly ever below an eighth of the cohort's median between any two. Both of
    two twins stand out: who copied whom cannot be seen.
    """

    name, version, reason = "twins", 1, "twins"

    def __init__(self, threshold: float = 2.0) -> None:
        self._threshold = threshold

    def score(self, cohort: Cohort) -> Scores:
        """Return log2 of the cohort's usual distance to the nearest over the update's own."""
        sketches = np.array([features.sketch for features in cohort.features], dtype=np.float64)
        units = sketches / (np.linalg.norm(sketches, axis=1, keepdims=True) + TINY)
        distances = np.maximum(1 - units @ units.T, 1e-6)
        np.fill_diagonal(distances, np.inf)
        nearest, who = distances.min(axis=1), distances.argmin(axis=1)
        # The usual distance is the upper quartile's: colluders who are many must not set it themselves.
        values = np.log2(np.quantile(distances[np.isfinite(distances)], 0.5) / nearest) - 1
        evidence = tuple(
            f"cosine {1 - distance:.3f} to {cohort.clients[other]}" for distance, other in zip(nearest, who, strict=True)
        )
        return Scores(values, np.full(len(cohort), self._threshold), evidence)
