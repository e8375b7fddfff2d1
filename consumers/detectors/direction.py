"""Direction: an update that points away from where its cohort goes.

Source: cosine similarity to a robust centre as in Cao et al., FLTrust, 2021, with the coordinate-wise median of the others' unit
vectors in the place of root data.
"""

from __future__ import annotations

import numpy as np

from refold.consumers.detectors.contract import Cohort, Floats, Scores

TINY = 1e-30


class Direction:
    """How far an update's cosine to the others' centre lies below zero, now and on average over its last rounds.

    An honest client with rare data may point sideways in one round; one that points backwards round after round does not learn.
    The value is −(cosine now + mean of the last `memory` values); a single round needs a clear opposite, a habit less.
    """

    name, version, reason = "direction", 1, "direction"

    def __init__(self, threshold: float = 0.3, memory: int = 6) -> None:
        self._threshold = threshold
        self._memory = memory

    def score(self, cohort: Cohort) -> Scores:
        """Return how much the update opposes the others."""
        cosines = _cosines_to_others(np.array([features.sketch for features in cohort.features], dtype=np.float64))
        past = [list(cohort.past(client, self.name))[-self._memory :] for client in cohort.clients]
        values = np.array([-np.mean([cosine, *[-v for v in before]]) for cosine, before in zip(cosines, past, strict=True)])
        evidence = tuple(f"cosine to the others {cosine:.2f}" for cosine in cosines)
        return Scores(values, self._threshold, evidence)


def _cosines_to_others(sketches: Floats) -> Floats:
    """Return each sketch's cosine to the coordinate-wise median of the other sketches' unit vectors."""
    units = sketches / (np.linalg.norm(sketches, axis=1, keepdims=True) + TINY)
    found = []
    for index, unit in enumerate(units):
        centre = np.median(np.delete(units, index, axis=0), axis=0)
        found.append(float(unit @ centre / (np.linalg.norm(centre) + TINY)))
    return np.array(found)
