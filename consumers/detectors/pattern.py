"""Pattern: boosted decision trees that were shown injected attacks, and honest updates of unlike clients.

Source: Friedman, Greedy function approximation: a gradient boosting machine, 2001. What they were fitted on, and what they
miss, is in docs/DETECTION.md; `pattern.npz` holds the trees, so that judging needs numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from refold.consumers.detectors.contract import Cohort, Floats, Scores, median
from refold.consumers.detectors.quantile import SPARSE
from refold.consumers.detectors.seen import columns_of
from refold.consumers.detectors.traits import LEAST_COHORT, NAMES
from refold.consumers.detectors.trees import Trees
from refold.consumers.features import ZEROS

MOST = 12.0
LEAST_PARAMETERS = 100
"""Cosines and shares of fewer vary by chance more than the trees know: of pure noise in 10 dimensions they refuse 6 %."""

FEW = 12
"""The trees were shown no smaller cohorts; where there are fewer, more is asked of them."""

MOST_SIZE = 12.0
"""Logarithm of the number of parameters beyond which the trees make no difference."""

RATE, LEAST_RATE, MOST_RATE = 0.003, 0.0001, 0.05
"""The share of honest updates that may be refused, unless told otherwise, and its bounds."""


class Pattern:
    """Log-odds that an update is an attack, from its traits and those of the client's last rounds.

    They are seen beside the cohort's own. The threshold is what nine in ten federations, seen by trees that did not learn from
    them, exceed with at most `rate` of their honest updates, and all together with half of it. What exceeds the limit of
    `MOST_RATE` supports what others find.
    """

    name, version, reason = "pattern", 3, "pattern"

    def __init__(self, *, rate: float = RATE) -> None:
        self._rate = rate

    @property
    def limit(self) -> float:
        """The log-odds that refuse, in a cohort that is not small."""
        return _fitted().limit(self._rate)

    def score(self, cohort: Cohort) -> Scores:
        """Return the log-odds; nothing of a cohort below eight, of models too small, or of sparse updates."""
        if not _is_comparable(cohort):
            silent = np.zeros(len(cohort))
            return Scores(silent, silent + MOST, ("too few updates or changes to compare",) * len(cohort))
        rows = rows_of(cohort)
        fitted = _fitted()
        values = np.clip(beside_the_others(fitted.trees.log_odds(rows.astype(np.float64))), -MOST, MOST)
        more = max(0, FEW - len(cohort)) / 2
        limits, supports = (np.full(len(cohort), fitted.limit(rate) + more) for rate in (self._rate, MOST_RATE))
        return Scores(values, limits, _evidence(rows[:, : len(NAMES)].astype(np.float64), values), supports)


def beside_the_others(odds: Floats) -> Floats:
    """Return log-odds less half of the cohort's median: where honest clients are unlike, all look a little like attackers."""
    return np.asarray(odds - median(odds) / 2)


@dataclass(frozen=True, slots=True)
class _Fitted:
    """What `tools/fit_pattern.py` made: trees, and the log-odds that so large a share of honest updates exceeds."""

    trees: Trees
    rates: Floats
    limits: Floats

    def limit(self, rate: float) -> float:
        return float(np.interp(np.log(rate), np.log(self.rates), self.limits))


def _is_comparable(cohort: Cohort) -> bool:
    """Whether the trees know such cohorts: the changes of ``topk`` hardly overlap, and they were shown whole ones."""
    if len(cohort) < LEAST_COHORT or cohort.features[0].count < LEAST_PARAMETERS:
        return False
    unchanged = np.median([features.facts[:, ZEROS].sum() / features.count for features in cohort.features])
    return bool(unchanged <= SPARSE)


def rows_of(cohort: Cohort) -> Floats:
    """Return what the trees see, as float32 that they were fitted on: `seen.NAMES`, and how large the model is."""
    size = np.full(len(cohort), min(np.log(cohort.features[0].count), MOST_SIZE))
    return np.column_stack([columns_of(cohort), size]).astype(np.float32)


def _evidence(rows: Floats, values: Floats) -> tuple[str, ...]:
    """Say what stands out most in each row, against the cohort's own spread."""
    apart = rows - median(rows)
    spread = 1.4826 * median(np.abs(apart))
    apart = np.where(spread > 1e-9, apart / np.maximum(spread, 1e-9), 0.0)
    found = []
    for row, value in zip(apart, values, strict=True):
        first, second = np.argsort(-np.abs(row))[:2]
        most = f"{NAMES[first]} {row[first]:+.1f}, {NAMES[second]} {row[second]:+.1f} deviations from the cohort"
        found.append(f"log-odds {value:+.1f}; {most}")
    return tuple(found)


@lru_cache(maxsize=1)
def _fitted() -> _Fitted:
    path = Path(__file__).with_name("pattern.npz")
    with np.load(path, allow_pickle=False) as file:
        return _Fitted(Trees.load(path), file["rates"].astype(np.float64), file["limits"].astype(np.float64))
