"""Pattern: boosted decision trees that were shown injected attacks, and honest updates of unlike clients.

Source: Friedman, Greedy function approximation: a gradient boosting machine, 2001. What they were fitted on, and what they
miss, is in docs/DETECTION.md; `pattern.npz` holds the trees, so that judging needs numpy alone.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from refold.consumers.detectors.contract import Cohort, Floats, Scores
from refold.consumers.detectors.quantile import SPARSE
from refold.consumers.detectors.traits import LEAST_COHORT, NAMES, table
from refold.consumers.detectors.trees import Trees
from refold.consumers.features import ZEROS

MOST = 12.0
LEAST_PARAMETERS = 100
"""Cosines and shares of fewer vary by chance more than the trees know: of pure noise in 10 dimensions they refuse 6 %."""

FEW = 12
SLEEPER = 1.5
"""By so much a round must stand out more where its client's past does not count."""

DECAY = 0.75
ROUNDS = 8
"""A client's traits of now are seen beside their mean over so many of its updates, each older one counting for less."""


class Pattern:
    """Log-odds that an update is an attack, from its traits and those of the client's last rounds.

    The threshold follows the federation: `times` the distance between the tenth and the thirtieth percentile of what was said
    of everyone lately above the latter, between `least` and `most`. Both lie among the honest as long as a majority is. Where
    honest clients are more unlike than the trees were shown, it rises until they are silent, rather than blame anyone.
    """

    name, version, reason = "pattern", 2, "pattern"

    def __init__(self, *, times: float = 7.0, least: float = 3.0, most: float = 8.0) -> None:
        self._times, self._least, self._most = times, least, most

    def score(self, cohort: Cohort) -> Scores:
        """Return the log-odds; nothing of a cohort below eight, of models too small, or of sparse updates."""
        if not _is_comparable(cohort):
            silent = np.zeros(len(cohort))
            return Scores(silent, silent + self._most, ("too few updates or changes to compare",) * len(cohort))
        now = table(cohort)
        with_their_past, alone = (_single(rows) for rows in (with_past(cohort, now), without_past(now)))
        # Who was honest for long and then is not would be carried by his past.
        values = np.maximum(_trees().log_odds(with_their_past), _trees().log_odds(alone) - SLEEPER)
        values = np.clip(values, -MOST, MOST)
        lately = [value for past in cohort.history.values() for value in tuple(past.get(self.name, ()))[1 - ROUNDS :]]
        low, middle = np.quantile([*values, *lately], [0.1, 0.3])
        threshold = np.clip(middle + self._times * (middle - low), self._least, self._most)
        # Among few, what honest clients look like spreads wider than where the trees learned.
        threshold += max(0, FEW - len(cohort)) / 2
        return Scores(values, np.full(len(cohort), threshold), _evidence(now, values))


def _is_comparable(cohort: Cohort) -> bool:
    """Whether the trees know such cohorts: the changes of ``topk`` hardly overlap, and they were shown whole ones."""
    if len(cohort) < LEAST_COHORT or cohort.features[0].count < LEAST_PARAMETERS:
        return False
    unchanged = np.median([features.facts[:, ZEROS].sum() / features.count for features in cohort.features])
    return bool(unchanged <= SPARSE)


def with_past(cohort: Cohort, now: Floats) -> Floats:
    """Return the traits of now, their means with those of each client's last updates, and how many those are, side by side."""
    means, counts = [], []
    for client, row in zip(cohort.clients, now, strict=True):
        rows = [row, *(cohort.recent.rows_of(client, ROUNDS - 1) if cohort.recent else [])]
        weights = DECAY ** np.arange(len(rows))
        means.append(weights @ np.array(rows) / weights.sum())
        counts.append(len(rows))
    return np.column_stack([now, np.array(means), counts])


def without_past(now: Floats) -> Floats:
    """Return the same of clients that are seen for the first time."""
    return np.column_stack([now, now, np.ones(len(now))])


def _single(rows: Floats) -> Floats:
    """Return float64 that went through float32, as the rows did that the trees were fitted on."""
    return np.asarray(rows, np.float32).astype(np.float64)


def _evidence(rows: Floats, values: Floats) -> tuple[str, ...]:
    """Say what stands out most in each row, against the cohort's own spread."""
    apart = rows - np.median(rows, axis=0)
    spread = 1.4826 * np.median(np.abs(apart), axis=0)
    apart = np.where(spread > 1e-9, apart / np.maximum(spread, 1e-9), 0.0)
    found = []
    for row, value in zip(apart, values, strict=True):
        first, second = np.argsort(-np.abs(row))[:2]
        most = f"{NAMES[first]} {row[first]:+.1f}, {NAMES[second]} {row[second]:+.1f} deviations from the cohort"
        found.append(f"log-odds {value:+.1f}; {most}")
    return tuple(found)


@lru_cache(maxsize=1)
def _trees() -> Trees:
    return Trees.load(Path(__file__).with_name("pattern.npz"))
