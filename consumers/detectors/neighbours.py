"""Nearest neighbours: an update far from the past ones that are most like it, or in thinner company than they are.

Source: Ramaswamy, Rastogi and Shim, Efficient algorithms for mining outliers from large data sets, 2000 (distance to the k-th
neighbour); Breunig et al., LOF: identifying density-based local outliers, 2000.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refold.consumers.detectors.contract import Floats
from refold.consumers.detectors.learned import Learned

NEIGHBOURS = 10


class Neighbours(Learned):
    """Mean distance to the ten accepted updates with the most similar traits."""

    name, version, reason = "neighbours", 3, "outlier"
    threshold = 5.0

    def _fit(self, rows: Floats) -> Any:
        from sklearn.neighbors import NearestNeighbors

        return NearestNeighbors(n_neighbors=min(NEIGHBOURS + 1, len(rows))).fit(rows)

    def _score(self, rows: Floats) -> Floats:
        distances = self._model.kneighbors(rows)[0]
        # A row that was fitted on finds itself first; the nearest is left out of all, so that both kinds compare.
        return np.asarray(distances[:, 1:].mean(axis=1))


class LocalOutlier(Learned):
    """How much thinner the company of an update's traits is than that of its neighbours."""

    name, version, reason = "local-outlier", 3, "outlier"
    threshold = 11.0

    def _fit(self, rows: Floats) -> Any:
        from sklearn.neighbors import LocalOutlierFactor

        return LocalOutlierFactor(n_neighbors=2 * NEIGHBOURS, novelty=True).fit(rows)

    def _score(self, rows: Floats) -> Floats:
        return np.asarray(-self._model.score_samples(rows))
