"""Mean and standard deviation: the oldest test of all, against all the others so that an outlier does not hide itself.

Source: Grubbs, Procedures for detecting outlying observations in samples, 1969, with the one in question left out.
"""

from __future__ import annotations

import numpy as np

from refold.consumers.detectors.contract import TINY, Cohort, Scores

MOST = 50.0


class Deviation:
    """How many standard deviations the log norm lies above the mean of the others'.

    Several bad ones at once widen the deviation and hide each other, which `norm` with its median does not allow.
    """

    name, version, reason = "deviation", 1, "norm"

    def __init__(self, threshold: float = 6.0, least_deviation: float = 0.25) -> None:
        self._threshold = threshold
        self._least = least_deviation

    def score(self, cohort: Cohort) -> Scores:
        """Return deviations above the others' mean."""
        lengths = np.log([features.norm + TINY for features in cohort.features])
        others = len(lengths) - 1
        mean = (lengths.sum() - lengths) / others
        square = ((lengths**2).sum() - lengths**2) / others
        deviation = np.maximum(np.sqrt(np.maximum(square - mean**2, 0)), self._least)
        values = np.clip((lengths - mean) / deviation, -MOST, MOST)
        evidence = tuple(f"log norm {value:+.1f} standard deviations from the others' mean" for value in values)
        return Scores(values, np.full(len(cohort), self._threshold), evidence)
