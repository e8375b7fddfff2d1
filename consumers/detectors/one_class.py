"""One-class support vector machine: an update outside the region that holds nearly all past ones.

Source: Schölkopf et al., Estimating the support of a high-dimensional distribution, 2001.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refold.consumers.detectors.contract import Floats
from refold.consumers.detectors.learned import Learned


class OneClass(Learned):
    """How far outside the boundary an update's traits lie."""

    name, version, reason = "one-class", 3, "outlier"
    threshold = 5.0

    def _fit(self, rows: Floats) -> Any:
        from sklearn.svm import OneClassSVM

        return OneClassSVM(nu=0.05, gamma=0.2 / rows.shape[1]).fit(rows)

    def _score(self, rows: Floats) -> Floats:
        return np.asarray(-self._model.decision_function(rows))
