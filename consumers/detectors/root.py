"""Root data: an update that points away from what training on data of the server's own gives.

Source: Cao, Fang, Liu and Gong, FLTrust: Byzantine-robust federated learning via trust bootstrapping, 2021.
"""

from __future__ import annotations

import numpy as np

from refold.consumers.detectors.contract import TINY, Cohort, Scores


class Root:
    """Minus the cosine to the server's own update of the round; silent where there is none.

    Honest clients whose data is unlike the server's fall below a cosine of 0 too (3 to 7 % of updates on digits), so the
    threshold is stricter than the paper's.
    """

    name, version, reason = "root", 1, "root"

    def __init__(self, threshold: float = 0.3) -> None:
        self._threshold = threshold

    def score(self, cohort: Cohort) -> Scores:
        """Return how much the update opposes the server's own."""
        if cohort.root is None:
            silent = np.zeros(len(cohort))
            return Scores(silent, silent + self._threshold, ("no root data",) * len(cohort))
        root = cohort.root.sketch.astype(np.float64)
        sketches = np.array([features.sketch for features in cohort.features], dtype=np.float64)
        cosines = sketches @ root / (np.linalg.norm(sketches, axis=1) * np.linalg.norm(root) + TINY)
        evidence = tuple(f"cosine {cosine:.2f} to the server's own update" for cosine in cosines)
        return Scores(-cosines, np.full(len(cohort), self._threshold), evidence)
