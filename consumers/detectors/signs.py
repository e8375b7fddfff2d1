"""Signs: an update with another share of positive changes, or lopsided the other way, than its cohort.

Source: Xu et al., Byzantine-robust federated learning through collaborative malicious gradient filtering (SignGuard), 2022.
"""

from __future__ import annotations

import numpy as np

from refold.consumers.detectors.contract import Cohort, Floats, Scores, robust_z
from refold.consumers.features import POSITIVES, ZEROS

MOST = 20.0


class Signs:
    """Robust z of the share of positive changes, either way; the worst tensor speaks."""

    name, version, reason = "signs", 1, "signs"

    def __init__(self, threshold: float = 5.0) -> None:
        self._threshold = threshold

    def score(self, cohort: Cohort) -> Scores:
        """Return the largest robust z of any tensor's share of positives, and of the whole's."""
        positives = np.array([features.facts[:, POSITIVES] for features in cohort.features])
        zeros = np.array([features.facts[:, ZEROS] for features in cohort.features])
        counts = positives.max(axis=0) + zeros.max(axis=0)
        whole = _share(positives.sum(axis=1, keepdims=True), counts.sum(keepdims=True))
        shares = np.column_stack([whole, _share(positives, counts)])
        least = 0.5 / np.sqrt(np.maximum(np.append(counts.sum(), counts), 1)) + 0.02
        table: Floats = np.column_stack(
            [np.abs(robust_z(column, least_scale=float(low))) for column, low in zip(shares.T, least, strict=True)]
        )
        values = np.minimum(table.max(axis=1), MOST)
        evidence = tuple(f"{share:.0%} positive where the cohort has {np.median(whole):.0%}" for share in whole[:, 0])
        return Scores(values, np.full(len(cohort), self._threshold), evidence)


def _share(positives: Floats, counts: Floats) -> Floats:
    return np.asarray(positives / np.maximum(counts, 1))
