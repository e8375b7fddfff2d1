"""Quantiles: an update whose magnitudes are spread otherwise than its cohort's.

Source: Tukey's fences (Exploratory Data Analysis, 1977) on the quantiles of the magnitudes.
"""

from __future__ import annotations

import numpy as np

from refold.consumers.detectors.contract import Cohort, Scores

LEVELS = (0.5, 0.75, 0.99)


class Quantile:
    """How many interquartile ranges a magnitude's quantile lies above the cohort's upper quartile; the worst level speaks.

    Sees what a norm does not: noise on every parameter, or a few parameters changed a lot.
    """

    name, version, reason = "quantile", 2, "quantile"

    def __init__(self, threshold: float = 3.0, least_range: float = 0.7) -> None:
        self._threshold = threshold
        self._least_range = least_range

    def score(self, cohort: Cohort) -> Scores:
        """Return the largest excess over the upper quartile, in interquartile ranges of log2 magnitudes."""
        table = np.log2([[features.quantile(level) for level in LEVELS] for features in cohort.features])
        low, high = np.percentile(table, [25, 75], axis=0)
        spread = np.maximum(high - low, self._least_range)
        excess = (table - high) / spread
        worst = excess.argmax(axis=1)
        evidence = tuple(
            f"{LEVELS[index]:.0%} quantile of magnitudes {row[index]:.1f} ranges above the upper quartile"
            for index, row in zip(worst, excess, strict=True)
        )
        return Scores(excess.max(axis=1), np.full(len(cohort), self._threshold), evidence)
