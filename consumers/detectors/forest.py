"""Isolation forest: an update that few random cuts separate from all others.

Source: Liu, Ting and Zhou, Isolation forest, 2008, on traits instead of raw parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refold.consumers.detectors.contract import Floats
from refold.consumers.detectors.learned import Learned


class Forest(Learned):
    """How early random cuts isolate an update's traits."""

    name, version, reason = "forest", 3, "outlier"
    threshold = 1.0

    def _fit(self, rows: Floats) -> Any:
        from sklearn.ensemble import IsolationForest

        return IsolationForest(n_estimators=100, random_state=0).fit(rows)

    def _score(self, rows: Floats) -> Floats:
        return np.asarray(-self._model.score_samples(rows))
