"""Decision trees on past verdicts and on faults injected into past cohorts: what this federation's own attacks look like.

Source: Breiman, Random forests, 2001. `pattern` was shown attacks on other data long ago; these trees know nothing but the last
rounds. How well they find a kind that they were not shown is in docs/DETECTION.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.consumers.detectors.contract import Cohort, Floats
from refold.consumers.detectors.injected import KINDS
from refold.consumers.detectors.learned import LEAST_ROWS, OUTERMOST, Learned
from refold.consumers.detectors.recent import LATELY, Past, lately
from refold.consumers.detectors.traits import LEAST_COHORT, table

TREES, DEPTH, LEAST_LEAF = 80, 8, 4
PAST = 6
"""So many rounds are shown with faults injected, the newest."""

BAD = 0.2
"""Share of a past cohort that an injected fault is given to."""

UNSURE = 0.02
LEAST_RANGE = 0.6
SLEEPER = 1.5
"""By so much a round must stand out more where its client's past does not count."""
FAR = 20.0
SEED = 0
Flags = npt.NDArray[np.bool_]


class Tree(Learned):
    """How far the log-odds, by decision trees, that an update is like those refused or injected lie above what is usual.

    Parameters
    ----------
    kinds
        Which faults are injected, of `refold.consumers.detectors.injected`.
    """

    name, version, reason = "tree", 1, "pattern"
    threshold = 4.5

    def __init__(self, threshold: float | None = None, *, kinds: Sequence[str] = tuple(KINDS)) -> None:
        super().__init__(threshold)
        self._kinds = tuple(kinds)
        self._bad: Flags = np.zeros(0, bool)

    def _learn(self, recent: Past) -> None:
        rows, bad, usual = shown(recent, self._kinds)
        if np.count_nonzero(usual) < LEAST_ROWS // 2:
            return
        self._middle, self._spread = np.median(rows[~bad], axis=0), np.ones(rows.shape[1])
        self._bad = bad
        trees = self._model = self._fit(self._scaled(rows))
        # Of each row only those trees are asked that were grown without it.
        low, high = np.percentile(_log_odds(trees.oob_decision_function_[usual, 1]), [25, 75])
        self._usual = (float(high), max(float(high - low), LEAST_RANGE))

    def _fit(self, rows: Floats) -> Any:
        from sklearn.ensemble import RandomForestClassifier

        trees = RandomForestClassifier(
            TREES, max_depth=DEPTH, min_samples_leaf=LEAST_LEAF, class_weight="balanced", oob_score=True, random_state=SEED
        )
        return trees.fit(rows, self._bad)

    def _rows(self, cohort: Cohort) -> Floats:
        return table(cohort)

    def _values(self, cohort: Cohort, rows: Floats) -> Floats:
        """Return what the trees say of now and of each client's last updates, together."""
        said = self._score(self._scaled(rows))
        past = [cohort.recent.rows_of(client, LATELY - 1) if cohort.recent else [] for client in cohort.clients]
        before = [self._score(self._scaled(np.array(found))) if found else np.zeros(0) for found in past]
        together = [float(lately(np.append(now, then))) for now, then in zip(said, before, strict=True)]
        return np.maximum(together, said - SLEEPER)

    def _score(self, rows: Floats) -> Floats:
        return _log_odds(self._model.predict_proba(rows)[:, 1])


def _log_odds(share: Floats) -> Floats:
    share = np.clip(np.nan_to_num(share, nan=0.5), UNSURE, 1 - UNSURE)
    return np.asarray(np.log(share / (1 - share)))


def shown(recent: Past, kinds: Sequence[str]) -> tuple[Floats, Flags, Flags]:
    """Return the traits that the trees are fitted on, which are bad, and which are as usual.

    Bad is what was refused, or injected into a past cohort. As usual is the inner half of what was accepted, in the cohort that
    it really was in. The outer half teaches nothing: who is bad from the start and was never refused lies in there.
    """
    rng = np.random.default_rng(SEED)
    rows, bad, usual = [], [], []
    for cohort, accepted in islice(recent.cohorts(), PAST):
        if len(cohort) < LEAST_COHORT:
            continue
        now = table(cohort)
        inner = accepted & _is_inner(now)
        rows.append(now[inner | ~accepted])
        bad.append(~accepted[inner | ~accepted])
        usual.append(inner[inner | ~accepted])
        for kind in kinds:
            victims = np.sort(rng.permutation(len(cohort))[: max(1, round(BAD * len(cohort)))])
            injected = _injected(cohort, kind, victims.tolist(), rng)
            honest = np.setdiff1d(np.flatnonzero(inner), victims)
            rows.append(injected[np.append(victims, honest)])
            bad.append(np.arange(len(victims) + len(honest)) < len(victims))
            usual.append(np.zeros(len(victims) + len(honest), bool))
    if not rows:
        return np.zeros((0, 0)), np.zeros(0, bool), np.zeros(0, bool)
    return np.concatenate(rows), np.concatenate(bad), np.concatenate(usual)


def _is_inner(rows: Floats) -> Flags:
    """Return which updates of a cohort lie no further out than half of it."""
    apart = rows - np.median(rows, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(apart), axis=0), 0.05)
    outward = np.sort(np.minimum(np.abs(apart) / spread, FAR), axis=1)[:, -OUTERMOST:].mean(axis=1)
    return np.asarray(outward <= np.median(outward))


def _injected(cohort: Cohort, kind: str, victims: Sequence[int], rng: np.random.Generator) -> Floats:
    """Return the traits of a cohort in which these sent what a fault makes."""
    features = list(cohort.features)
    for at, made in zip(victims, KINDS[kind](cohort.features, victims, rng), strict=True):
        features[at] = made
    return table(Cohort(0, cohort.clients, tuple(features)))
