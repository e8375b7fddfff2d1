"""Direction: an update that points away from where its cohort goes.

Source: cosine similarity to a robust centre as in Cao et al., FLTrust, 2021, with the coordinate-wise median of the others'
unit vectors in the place of root data; robust z as in Rousseeuw and Croux 1993.
"""

from __future__ import annotations

import numpy as np

from refold.consumers.detectors.contract import TINY, Cohort, Floats, Habit, Scores, robust_z

LEAST_COHORT = 6
"""Among fewer, the median of the others is one client's opinion."""

MOST = 12.0
CAMPS = 0.25


class Direction:
    """How far an update's cosine to the others lies below its cohort's, now and as a habit; only a negative cosine counts.

    The cohort's own spread is the measure: where clients hold unlike data, honest updates point backwards too (on digits
    dealt by Dirichlet 0.1 down to −0.7), and this detector stays silent rather than blame them.
    """

    name, version, reason = "direction", 3, "direction"

    def __init__(self, threshold: float = 3.5, least_scale: float = 0.2) -> None:
        self._threshold = threshold
        self._least_scale = least_scale
        self._habit = Habit(mean=0.75 * threshold, least=0.5 * threshold, least_rounds=6)

    def score(self, cohort: Cohort) -> Scores:
        """Return how much the update opposes the others."""
        sketches = np.array([features.sketch for features in cohort.features], dtype=np.float64)
        units = (sketches / (np.linalg.norm(sketches, axis=1, keepdims=True) + TINY)).astype(np.float32)
        cosines = _cosines_to_others(units)
        values = np.clip(-robust_z(cosines, least_scale=self._least_scale), -MOST, MOST)
        values = np.where(cosines < 0, values, np.minimum(values, 0.0))
        if len(cohort) < LEAST_COHORT or _in_camps(units):
            values = np.zeros(len(cohort))
        median = float(np.median(cosines))
        evidence = tuple(f"cosine to the others {cosine:.2f}, the cohort's median {median:.2f}" for cosine in cosines)
        return Scores(values, self._habit.thresholds(cohort, self.name, self._threshold), evidence)


def _in_camps(units: Floats) -> bool:
    """Whether more than a quarter of all pairs point away from each other.

    With two classes and clients that mostly hold one, there are two camps, and the smaller is not to blame: there this detector
    refused 19 to 40 of 100 honest updates.
    """
    pairs = (units @ units.T)[np.triu_indices(len(units), 1)]
    return float(np.quantile(pairs, CAMPS)) < 0


def _cosines_to_others(units: Floats) -> Floats:
    """Return each unit vector's cosine to the coordinate-wise median of the others."""
    centres = _medians_of_others(units)
    return np.asarray((units * centres).sum(axis=1) / (np.linalg.norm(centres, axis=1) + TINY))


def _medians_of_others(rows: Floats) -> Floats:
    """Return for each row the coordinate-wise median of all other rows, from one sort: no cost that grows with their square."""
    order = rows.argsort(axis=0)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(rows))[:, None], axis=0)
    ascending = np.take_along_axis(rows, order, axis=0)
    others = len(rows) - 1

    def place(k: int) -> Floats:
        """Return what stands at place k once a row is taken out: what stood there, or one further if the row was before."""
        return np.asarray(np.where(ranks > k, ascending[k], ascending[k + 1]))

    return np.asarray((place((others - 1) // 2) + place(others // 2)) / 2)
