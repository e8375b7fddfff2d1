"""Detectors that learn from the last rounds' accepted updates: fitted between rounds, only scoring while a round is judged.

They see what is in `refold.consumers.detectors.seen`, never parameters: an update's traits, their means over its client's last
updates, and these laid over each other, in deviations of its own round, so that all rounds are of one kind. They are fitted on
the inner half of what was accepted, since who was bad from the start lies in there too and would be learned as usual. What they
say is set against what they say of all that was accepted, so that one threshold serves all: how many interquartile ranges above
the upper quartile a score lies. Thresholds are what three in a thousand honest updates of drawn federations exceed (the trees':
one in a hundred).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from refold.consumers.detectors.contract import Cohort, Floats, Scores
from refold.consumers.detectors.recent import LEARNED, Past
from refold.consumers.detectors.seen import NAMES, among_all, columns_of, past_columns
from refold.consumers.detectors.traits import LEAST_COHORT

LEAST_ROWS = 80
"""Fewer accepted updates are nothing to learn from."""

OUTERMOST = 8
"""How far out a row lies is the mean of so many of its largest deviations."""

MOST = 50.0


class Learned(ABC):
    """A detector that is fitted on traits. Subclasses say how in `_fit`, and what a row scores in `_score`, higher is worse."""

    name, version, reason = "learned", 1, "outlier"
    threshold = 5.0

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = self.threshold if threshold is None else threshold
        self._learning = threading.Lock()
        self._key: tuple[int, int] | None = None
        self._model: Any = None
        self._middle = self._spread = np.zeros(0)
        self._usual = (0.0, 1.0)

    def learn(self, recent: Past) -> None:
        """Fit on the updates accepted for rounds before this one; the same updates give the same model.

        Who judges meanwhile waits for it.
        """
        with self._learning:
            key = (recent.version, recent.round)
            if key != self._key:
                self._model = None
                self._learn(recent)
                self._key = key

    def _learn(self, recent: Past) -> None:
        rows = accepted_rows(recent)
        if len(rows) < LEAST_ROWS:
            return
        self._middle = np.median(rows, axis=0)
        self._spread = np.maximum(1.4826 * np.median(np.abs(rows - self._middle), axis=0), 0.05)
        scaled = self._scaled(rows)
        outward = np.sort(np.abs(scaled), axis=1)[:, -OUTERMOST:].mean(axis=1)
        self._model = self._fit(scaled[outward <= np.median(outward)])
        low, high = np.percentile(self._score(scaled), [25, 75])
        self._usual = (float(high), max(float(high - low), 1e-6))

    def score(self, cohort: Cohort) -> Scores:
        """Return how many interquartile ranges of what is usual a client's score lies above its upper quartile."""
        if cohort.recent is not None:
            self.learn(cohort.recent)
        if self._model is None or len(cohort) < LEAST_COHORT:
            silent = np.zeros(len(cohort))
            return Scores(silent, silent + self.threshold, ("not enough history to learn from",) * len(cohort))
        found = self._rows(cohort)
        rows = self._scaled(found)
        values = np.clip((self._values(cohort, found) - self._usual[0]) / self._usual[1], -MOST, MOST)
        worst = np.abs(rows).argmax(axis=1)
        evidence = tuple(f"most unusual in {NAMES[at]}: {row[at]:+.1f} deviations" for at, row in zip(worst, rows, strict=True))
        return Scores(values, np.full(len(cohort), self.threshold), evidence)

    def _scaled(self, rows: Floats) -> Floats:
        return np.asarray(np.clip((rows - self._middle) / self._spread, -20, 20))

    def _rows(self, cohort: Cohort) -> Floats:
        """Return what is seen of each update."""
        return among_all(columns_of(cohort))

    def _values(self, cohort: Cohort, rows: Floats) -> Floats:
        return self._score(self._scaled(rows))

    @abstractmethod
    def _fit(self, rows: Floats) -> Any:
        """Return a model of scaled rows, one for each update."""

    @abstractmethod
    def _score(self, rows: Floats) -> Floats:
        """Return how unusual each scaled row is."""


def accepted_rows(recent: Past) -> Floats:
    """Return what was seen of the updates accepted lately: (updates, `NAMES`), newest round first."""
    rows = [among_all(columns)[accepted] for columns, accepted in past_columns(recent, LEARNED)]
    return np.concatenate(rows) if rows else np.zeros((0, len(NAMES)))
