"""Prediction: an update that does not go on from the client's own last one as the others go on from theirs.

Source: Zhang, Cao, Jia and Gong, FLDetector: defending federated learning against model poisoning attacks via detecting
malicious clients, 2022, with the client's last update and the change of the cohort's mean in the place of the Hessian.
"""

from __future__ import annotations

import numpy as np

from refold.consumers.detectors.contract import TINY, Cohort, Scores, robust_z

MOST = 12.0


class Prediction:
    """Robust z of the distance between what a client sends and what its last update foretells.

    Foretold is its last update plus by how much the mean of all moved since, both as unit vectors of the sketch.
    """

    name, version, reason = "prediction", 1, "prediction"

    def __init__(self, threshold: float = 6.0) -> None:
        self._threshold = threshold

    def score(self, cohort: Cohort) -> Scores:
        """Return how badly the last update foretold this one; nothing of whom there is no last one."""
        last = [cohort.recent.last(client) if cohort.recent else None for client in cohort.clients]
        known = np.array([index for index, features in enumerate(last) if features is not None], dtype=int)
        values, evidence = np.zeros(len(cohort)), ["no update before"] * len(cohort)
        if len(known) >= 6:
            now = _units([cohort.features[index].sketch for index in known])
            before = _units([features.sketch for features in last if features is not None])
            foretold = before + (np.median(now, axis=0) - np.median(before, axis=0))
            errors = np.linalg.norm(now - foretold, axis=1)
            values[known] = np.clip(robust_z(errors, least_scale=0.05), -MOST, MOST)
            for index, error in zip(known, errors, strict=True):
                usual = float(np.median(errors))
                evidence[index] = f"{error:.2f} from what its last update foretells, the median {usual:.2f}"
        return Scores(values, np.full(len(cohort), self._threshold), tuple(evidence))


def _units(sketches: list[np.typing.NDArray[np.float32]]) -> np.typing.NDArray[np.float64]:
    rows = np.array(sketches, dtype=np.float64)
    return np.asarray(rows / (np.linalg.norm(rows, axis=1, keepdims=True) + TINY))
