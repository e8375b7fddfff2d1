"""Norms: an update much longer than its cohort's, as a whole or in one tensor.

Source: median and MAD as in Rousseeuw and Croux 1993; norm bounding of updates as in Sun et al., Can you really backdoor federated
learning?, 2019.
"""

from __future__ import annotations

import numpy as np

from refold.consumers.detectors.contract import Cohort, Floats, Scores, robust_z

TINY = 1e-30


class Norm:
    """Robust z of the logarithm of the update's norm; only too long counts."""

    name, version, reason = "norm", 1, "norm"

    def __init__(self, threshold: float = 4.0, least_scale: float = 0.35) -> None:
        self._threshold = threshold
        self._least_scale = least_scale

    def score(self, cohort: Cohort) -> Scores:
        """Return robust z of log norms."""
        norms = np.array([features.norm for features in cohort.features])
        values = robust_z(np.log(norms + TINY), least_scale=self._least_scale)
        median = float(np.median(norms))
        evidence = tuple(f"norm {norm:.3g}, {norm / (median + TINY):.2g} times the cohort's median" for norm in norms)
        return Scores(values, self._threshold, evidence)


class TensorNorm:
    """The same for each tensor; the worst tensor speaks."""

    name, version, reason = "tensor-norm", 1, "tensor-norm"

    def __init__(self, threshold: float = 6.0, least_scale: float = 0.5) -> None:
        self._threshold = threshold
        self._least_scale = least_scale

    def score(self, cohort: Cohort) -> Scores:
        """Return the largest robust z over tensors."""
        norms = np.array([features.tensor_norms for features in cohort.features])
        table: Floats = np.column_stack(
            [robust_z(np.log(column + TINY), least_scale=self._least_scale) for column in norms.T if np.median(column) > 0]
            or [np.zeros(len(cohort))]
        )
        worst = table.argmax(axis=1)
        evidence = tuple(f"tensor {index}: robust z {row[index]:.1f}" for index, row in zip(worst, table, strict=True))
        return Scores(table.max(axis=1), self._threshold, evidence)
