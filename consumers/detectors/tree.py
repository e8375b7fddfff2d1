"""Decision trees on past verdicts and on faults injected into past rounds: what this federation's own attacks look like.

Source: Breiman, Random forests, 2001. `pattern` was shown attacks on other data long ago; these trees know nothing but the last
rounds. How well they find a kind that they were not shown is in docs/DETECTION.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.consumers.detectors.contract import Floats
from refold.consumers.detectors.injected import KINDS
from refold.consumers.detectors.learned import LEAST_ROWS, OUTERMOST, Learned
from refold.consumers.detectors.recent import Past, Recent
from refold.consumers.detectors.seen import among_all, past_columns
from refold.consumers.detectors.traits import LEAST_COHORT

TREES, DEPTH, LEAST_LEAF = 80, 8, 4
PAST = 6
"""So many rounds are shown with faults injected, the newest."""

BAD = 0.2
"""Share of the clients that an injected fault is given to."""

UNSURE = 0.02
LEAST_RANGE = 0.6
SEED = 0
Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]


class Tree(Learned):
    """How far the log-odds, by decision trees, that an update is like those refused or injected lie above what is usual.

    Parameters
    ----------
    kinds
        Which faults are injected, of `refold.consumers.detectors.injected`.
    """

    name, version, reason = "tree", 2, "pattern"
    threshold = 8.5

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

    def _score(self, rows: Floats) -> Floats:
        return _log_odds(self._model.predict_proba(rows)[:, 1])


def _log_odds(share: Floats) -> Floats:
    share = np.clip(np.nan_to_num(share, nan=0.5), UNSURE, 1 - UNSURE)
    return np.asarray(np.log(share / (1 - share)))


def shown(recent: Past, kinds: Sequence[str]) -> tuple[Floats, Flags, Flags]:
    """Return what the trees are fitted on, which of it is bad, and which is as usual.

    Bad is what was refused, or sent by clients that are given a fault in every past round. As usual is the inner half of what
    was accepted, in the cohort that it really was in. The outer half teaches nothing: who is bad from the start and was never
    refused lies in there.
    """
    rng = np.random.default_rng(SEED)
    rows, bad, usual = [], [], []
    for columns, accepted in past_columns(recent, PAST):
        now = among_all(columns)
        inner = accepted & _is_inner(now)
        rows.append(now[inner | ~accepted])
        bad.append(~accepted[inner | ~accepted])
        usual.append(inner[inner | ~accepted])
    for kind in kinds if rows else ():
        injected, victims = _injected(recent, kind, rng)
        for (columns, accepted), at in zip(past_columns(injected, PAST), victims, strict=False):
            now = among_all(columns)
            honest = np.setdiff1d(np.flatnonzero(accepted & _is_inner(now)), at)
            rows.append(now[np.append(at, honest)])
            bad.append(np.arange(len(at) + len(honest)) < len(at))
            usual.append(np.zeros(len(at) + len(honest), bool))
    if not rows:
        return np.zeros((0, 0)), np.zeros(0, bool), np.zeros(0, bool)
    return np.concatenate(rows), np.concatenate(bad), np.concatenate(usual)


def _is_inner(rows: Floats) -> Flags:
    """Return which updates of a cohort, in its own deviations, lie no further out than half of it."""
    outward = np.sort(np.abs(rows), axis=1)[:, -OUTERMOST:].mean(axis=1)
    return np.asarray(outward <= np.median(outward))


def _injected(recent: Past, kind: str, rng: np.random.Generator) -> tuple[Past, list[Places]]:
    """Return the past as it would be had some clients sent what a fault makes in every round, and where they are in each.

    Only rounds that are large enough to be seen have an entry, newest first.
    """
    rounds = list(recent.cohorts())
    clients = sorted({client for cohort, _ in rounds for client in cohort.clients})
    chosen = {clients[at] for at in rng.permutation(len(clients))[: max(1, round(BAD * len(clients)))]}
    found, places = Recent(), []
    for at, (cohort, accepted) in enumerate(reversed(rounds), 1):
        victims = [index for index, client in enumerate(cohort.clients) if client in chosen and len(chosen) < len(cohort)]
        features = list(cohort.features)
        for index, made in zip(victims, KINDS[kind](cohort.features, victims, rng), strict=True):
            features[index] = made
        for client, one, is_accepted in zip(cohort.clients, features, accepted.tolist(), strict=True):
            found.take(at, client, one, accepted=is_accepted)
        if len(cohort) >= LEAST_COHORT:
            places.append(np.array(victims, np.int64))
    return found.view(len(rounds) + 1), places[::-1]
