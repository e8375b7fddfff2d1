"""Norms: an update much longer than its cohort's, as a whole or in one tensor.

Source: median and MAD as in Rousseeuw and Croux 1993; bounding the norm of updates as in Sun et al., Can you really backdoor
federated learning?, 2019.
"""

from __future__ import annotations

import numpy as np

from refold.consumers.detectors.contract import TINY, Cohort, Floats, Habit, Scores, median, robust_z
from refold.consumers.features import SQUARES

MOST = 12.0
"""Values are cut here: beyond it more says no more, and a value must stay finite whatever a client sends."""


SPREAD = 1.75
"""Where lengths spread widely, so many deviations are one unit: the threshold of 2 then is 3.5 deviations."""

MANY = 12
"""Among fewer, one long update widens the deviation itself."""


class Norm:
    """Robust z of the logarithm of the update's norm, now and as a habit; only too long counts.

    `least_scale` carries most cohorts: their norms spread by less, and two of it make e times the median. Measured on digits
    (`benchmarks/detection_small.py`): honest clients stay below that, five-fold ones above. Where honest norms spread more, MAD
    takes over.
    """

    name, version, reason = "norm", 3, "norm"

    def __init__(self, threshold: float = 2.0, least_scale: float = 0.5) -> None:
        self._threshold = threshold
        self._least_scale = least_scale
        self._habit = Habit(mean=0.9 * threshold, least=0.6 * threshold)

    def score(self, cohort: Cohort) -> Scores:
        """Return robust z of log norms."""
        norms = cohort.norms
        lengths = np.log(norms + TINY)
        # Two of the least scale is far; two of the cohort's own deviations is what two in a hundred honest ones have.
        spread = SPREAD if len(cohort) >= MANY else 1.0
        scale = max(self._least_scale, spread * 1.4826 * float(median(np.abs(lengths - median(lengths)))))
        values = np.clip((lengths - median(lengths)) / scale, -MOST, MOST)
        middle = float(median(norms))
        evidence = tuple(f"norm {norm:.3g}, {norm / (middle + TINY):.2g} times the cohort's median" for norm in norms)
        return Scores(values, self._habit.thresholds(cohort, self.name, self._threshold), evidence)


class TensorNorm:
    """The same for each tensor, without a memory; the worst tensor speaks."""

    name, version, reason = "tensor-norm", 2, "tensor-norm"

    def __init__(self, threshold: float = 3.0, least_scale: float = 0.6) -> None:
        self._threshold = threshold
        self._least_scale = least_scale

    def score(self, cohort: Cohort) -> Scores:
        """Return the largest robust z over tensors."""
        norms = np.sqrt(cohort.facts[:, :, SQUARES])
        # Those that most do not change, integers among them, have no usual length.
        changed = np.flatnonzero(median(norms) > 0)
        if not len(changed):
            silent = np.zeros(len(cohort))
            return Scores(silent, silent + self._threshold, ("no tensor that most change",) * len(cohort))
        table: Floats = np.column_stack(
            [robust_z(np.log(norms[:, index] + TINY), least_scale=self._least_scale) for index in changed]
        )
        worst = table.argmax(axis=1)
        evidence = tuple(
            f"{cohort.tensor(int(changed[at]))}: robust z {row[at]:.1f}" for at, row in zip(worst, table, strict=True)
        )
        values = np.clip(table.max(axis=1), -MOST, MOST)
        return Scores(values, np.full(len(cohort), self._threshold), evidence)
