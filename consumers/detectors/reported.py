"""What clients report: a loss or an accuracy unlike everyone's. A claim, and so a hint: who lies here is not found here.

Source: Tukey, Exploratory data analysis, 1977 (the far fence).
"""

from __future__ import annotations

import numpy as np

from refold.consumers.detectors.contract import Cohort, Scores

MOST = 50.0
WORSE = {"loss": 1.0, "accuracy": -1.0}
"""Metric → the direction in which it is worse."""


class Reported:
    """How many interquartile ranges a reported loss lies above the upper quartile, or an accuracy below the lower one."""

    name, version, reason = "reported", 1, "reported"

    def __init__(self, threshold: float = 6.0) -> None:
        self._threshold = threshold

    def score(self, cohort: Cohort) -> Scores:
        """Return the worst of both metrics; nothing of a client that reports none, or where fewer than four do."""
        values, evidence = np.zeros(len(cohort)), ["nothing reported"] * len(cohort)
        for metric, sign in WORSE.items():
            told = {i: float(m[metric]) for i, m in enumerate(cohort.metrics) if metric in m and np.isfinite(m[metric])}
            if len(told) < 4:
                continue
            worse = sign * np.array(list(told.values()))
            low, high = np.percentile(worse, [25, 75])
            excess = np.clip((worse - high) / max(high - low, 0.05 * abs(float(np.median(worse))), 1e-6), -MOST, MOST)
            for index, value in zip(told, excess, strict=True):
                if value > values[index] or evidence[index] == "nothing reported":
                    values[index] = value
                    evidence[index] = f"{metric} {told[index]:.3g}, the cohort's median {sign * float(np.median(worse)):.3g}"
        return Scores(values, np.full(len(cohort), self._threshold), tuple(evidence))
