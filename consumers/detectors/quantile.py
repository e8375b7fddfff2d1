"""Quantiles: an update whose magnitudes are spread otherwise than its cohort's.

Source: Tukey's fences (Exploratory Data Analysis, 1977) on the quantiles of the magnitudes.
"""

from __future__ import annotations

import numpy as np

from refold.consumers.detectors.contract import Cohort, Scores
from refold.consumers.features import ZEROS, quantiles

LEVELS = (0.5, 0.75, 0.99)


SPARSE = 0.5
"""A cohort whose median update leaves more than this share of the parameters as they were is judged by what it changes."""


class Quantile:
    """How many interquartile ranges a magnitude's quantile lies above the cohort's upper quartile; the worst level speaks.

    Sees what a norm does not: noise on every parameter, or a few parameters changed a lot.

    In a sparse cohort (the codec ``topk``, embeddings) the levels count within as many of the largest magnitudes as the median
    update changes. Else a level could fall where zeros end, and there one entry more or less is worth 30 powers of two.
    """

    name, version, reason = "quantile", 3, "quantile"

    def __init__(self, threshold: float = 3.0, least_range: float = 0.7) -> None:
        self._threshold = threshold
        self._least_range = least_range

    def score(self, cohort: Cohort) -> Scores:
        """Return the largest excess over the upper quartile, in interquartile ranges of log2 magnitudes."""
        levels = _levels(cohort)
        table = np.column_stack([quantiles(cohort.histograms, level) for level in levels])
        low, high = np.percentile(table, [25, 75], axis=0)
        spread = np.maximum(high - low, self._least_range)
        excess = (table - high) / spread
        worst = excess.argmax(axis=1)
        evidence = tuple(
            f"{LEVELS[index]:.0%} quantile of magnitudes {row[index]:.1f} ranges above the upper quartile"
            for index, row in zip(worst, excess, strict=True)
        )
        return Scores(excess.max(axis=1), np.full(len(cohort), self._threshold), evidence)


def _levels(cohort: Cohort) -> tuple[float, ...]:
    """Return the levels to judge at, as shares of all parameters."""
    changed = float(np.median(1 - cohort.facts[:, :, ZEROS].sum(axis=1) / max(cohort.features[0].count, 1)))
    return LEVELS if changed >= SPARSE else tuple(1 - changed * (1 - level) for level in LEVELS)
