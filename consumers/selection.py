"""Rules that choose or clip, as integer weights: a pure function of the features of those that are let in.

Distances are the sketches', which keep them to a few percent whatever the model's size. An update that is not chosen stays
accepted, with weight 0: nobody is blamed for not being in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from refold.consumers.features import Features
from refold.schemas.errors import UsageError

Floats = npt.NDArray[np.float64]
Chosen = npt.NDArray[np.bool_]

NORM_BOUND = 1.5
"""Times the median norm: longer updates count for as much less as they are longer."""

DOUBT, LEAST_TRUST = 12.0, 1 / 16

GRAIN = 1 << 10
"""Weights are multiplied by this before they are clipped, so that rounding to integers costs less than a thousandth."""


def krum(features: Sequence[Features], bad: int) -> Chosen:
    """Choose the one update that is nearest to its neighbours. Source: Blanchard et al., NeurIPS 2017."""
    scores = _scores(_distances(features), bad)
    return np.asarray(np.arange(len(scores)) == scores.argmin())


def multi_krum(features: Sequence[Features], bad: int) -> Chosen:
    """Choose all but the `bad` + 2 that are furthest from their neighbours. Source: Blanchard et al., NeurIPS 2017."""
    scores = _scores(_distances(features), bad)
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(scores, kind="stable")[: max(1, len(scores) - bad - 2)]] = True
    return chosen


def bulyan(features: Sequence[Features], bad: int) -> Chosen:
    """Choose by Krum, one after another among those left, all but twice the bad ones; trim their mean afterwards.

    Source: El Mhamdi, Guerraoui and Rouault, The hidden vulnerability of distributed learning in Byzantium, 2018.
    """
    distances = _distances(features)
    left = list(range(len(features)))
    chosen = np.zeros(len(features), bool)
    for _ in range(max(1, len(features) - 2 * bad)):
        best = left.pop(int(_scores(distances[np.ix_(left, left)], bad).argmin()))
        chosen[best] = True
    return chosen


RULES: dict[str, Callable[[Sequence[Features], int], Chosen]] = {"krum": krum, "multi-krum": multi_krum, "bulyan": bulyan}
SELECTIONS = ("", "norm-bound", "doubt", *RULES)


def selected(
    rule: str, features: Sequence[Features], weights: Sequence[int], bad_ppm: int, scores: Sequence[float] = ()
) -> list[int]:
    """Return the weights as a rule leaves them.

    Parameters
    ----------
    rule
        One of `SELECTIONS`; "" leaves all as they are.
    bad_ppm
        Share of the updates, in millionths, that may be bad; the number is rounded down.
    scores
        What the ensemble says of each, from 0 to 1, for ``doubt``; who was not judged is not doubted.

    Raises
    ------
    UsageError
        There is no such rule.
    """
    if rule not in SELECTIONS:
        raise UsageError(f"selection {rule!r} is not one of {', '.join(SELECTIONS[1:])}")
    if not rule or len(weights) < 3:
        return list(weights)
    if rule in ("norm-bound", "doubt"):
        shares = bounded(np.array([found.norm for found in features]))
        shares *= trusted(scores) if rule == "doubt" and len(scores) else 1.0
        return [max(1, int(weight * GRAIN * share)) for weight, share in zip(weights, shares, strict=True)]
    chosen = RULES[rule](features, len(weights) * bad_ppm // 1_000_000)
    return [weight if keep else 0 for weight, keep in zip(weights, chosen, strict=True)]


def bounded(norms: Floats) -> Floats:
    """Return shares of weights by which no update moves the mean further than one of the bound's length would.

    Source: Sun, Kairouz, Suresh and McMahan, Can you really backdoor federated learning?, 2019.
    """
    return np.asarray(np.minimum(1.0, NORM_BOUND * float(np.median(norms)) / np.maximum(norms, 1e-30)))


def trusted(scores: Sequence[float]) -> Floats:
    """Return the share of its weight that each update keeps: the less, the nearer its score is to being refused.

    Half is left at odds of 1 to `DOUBT`, well below what refuses; nobody keeps less than `LEAST_TRUST`, so that a client which
    is only unlike the others is still heard.
    """
    values = np.clip(np.asarray(scores, dtype=np.float64), 0.0, 1.0 - 1e-9)
    return np.asarray(np.maximum(LEAST_TRUST, 1 / (1 + DOUBT * values / (1 - values))))


def _distances(features: Sequence[Features]) -> Floats:
    sketches = np.array([found.sketch for found in features], dtype=np.float64)
    square = (sketches**2).sum(axis=1)
    distances = np.maximum(square[:, None] + square - 2 * sketches @ sketches.T, 0)
    np.fill_diagonal(distances, np.inf)
    return np.asarray(distances)


def _scores(distances: Floats, bad: int) -> Floats:
    """Return the sum of squared distances to the nearest n − bad − 2 others, at least one."""
    near = min(max(1, len(distances) - bad - 2), max(1, len(distances) - 1))
    return np.asarray(np.sort(distances, axis=1)[:, :near].sum(axis=1))
