"""From scores to verdicts: any detector may reject, never most of a cohort; the scores of all are kept as evidence."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refold.consumers.detectors.asking import PATIENCE_S, Asking, sealed
from refold.consumers.detectors.contract import Cohort, Detector, Floats, Scores
from refold.consumers.detectors.direction import Direction
from refold.consumers.detectors.norm import Norm, TensorNorm
from refold.consumers.detectors.pattern import Pattern
from refold.consumers.detectors.quantile import Quantile
from refold.consumers.detectors.recent import Past
from refold.schemas.events import Score

LEAST_COHORT = 3
STEEPNESS, MOST_EXCESS = 12.0, 30.0

BLATANT = 2.0
"""So many times its threshold a value must be to count without support."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """The ensemble's judgement of one update: reasons, none where it is accepted, and every detector's score.

    Parameters
    ----------
    excess
        By how much the worst value exceeds what refuses, as log-odds.
    """

    reasons: tuple[str, ...]
    scores: tuple[Score, ...]
    excess: float = -MOST_EXCESS

    @property
    def score(self) -> float:
        """From 0 to 1, higher is worse, above 0.5 where a value exceeds what refuses: the logistic of `excess`."""
        return 1 / (1 + math.exp(-min(max(self.excess, -MOST_EXCESS), MOST_EXCESS)))


class Ensemble:
    """Several detectors as one.

    A detector that raises, hangs, or whose answer cannot be used, is left out of this judgement and counted in `faults`: it may
    neither reject nor stop anyone.

    Parameters
    ----------
    patience_s
        How long a detector may take over a cohort.
    """

    def __init__(self, detectors: Sequence[Detector] | None = None, *, patience_s: float = PATIENCE_S) -> None:
        self.detectors: tuple[Detector, ...] = tuple(detectors or (Norm(), TensorNorm(), Quantile(), Direction(), Pattern()))
        self._asking = Asking(patience_s)

    @property
    def faults(self) -> Mapping[str, int]:
        """How often each detector was left out."""
        return self._asking.faults

    @property
    def last_fault(self) -> Mapping[str, str]:
        """What each detector that was ever left out did the last time."""
        return self._asking.last_fault

    def learn(self, past: Past) -> None:
        """Let detectors that learn do so now, in a thread of their own, so that the next judgement only scores."""
        learning = [found for detector in self.detectors if callable(found := getattr(detector, "learn", None))]

        def work() -> None:
            for learn in learning:
                # What fails here fails again where the detector is asked, and is counted there.
                with contextlib.suppress(Exception):
                    learn(past)

        if learning:
            threading.Thread(target=work, name="refold-learning", daemon=True).start()

    def judge(self, cohort: Cohort) -> list[Opinion]:
        """Return an opinion of each update; a cohort of fewer than three is accepted, there being nothing to compare with."""
        cohort = sealed(cohort)
        asked = self.detectors if len(cohort) >= LEAST_COHORT else ()
        answers = self._asking.ask(asked, cohort)
        needs = _needs([answer for _, answer in answers], len(cohort))
        worst = np.full(len(cohort), -MOST_EXCESS)
        table = np.array([_excess(answer, needs) for _, answer in answers]).reshape(len(answers), len(cohort))
        found = table > 0
        worst = np.maximum(worst, table.max(axis=0, initial=-MOST_EXCESS))
        for index in _too_many(np.where(found, table, 0.0).sum(axis=0)):
            found[:, index] = False
        return [
            Opinion(
                tuple(detector.reason for (detector, _), is_found in zip(answers, found[:, index], strict=True) if is_found),
                tuple(_score_of(detector, answer, index) for detector, answer in answers),
                float(worst[index]),
            )
            for index in range(len(cohort))
        ]


def _score_of(detector: Detector, answer: Scores, index: int) -> Score:
    value, threshold = float(answer.values[index]), float(answer.thresholds[index])
    return Score(detector.name, detector.version, value, threshold, answer.evidence[index][:400])


def _needs(answers: Sequence[Scores], count: int) -> Floats:
    """Return for each client how many times a threshold a value must be: once, if it is supported or nobody can support it."""
    witnesses = [answer.values > answer.supports for answer in answers if answer.supports is not None]
    if not witnesses:
        return np.ones(count)
    return np.where(np.any(witnesses, axis=0), 1.0, BLATANT)


def _excess(answer: Scores, needs: Floats) -> Floats:
    """Return by how much each value exceeds what refuses, as log-odds."""
    if answer.supports is not None:
        return np.asarray(answer.values - answer.thresholds)
    # A client's threshold may be lower than the others' for its past; what is blatant is the same for all.
    limits = np.where(needs > 1, needs * answer.thresholds.max(initial=0.0), answer.thresholds)
    # Others are made as steep as log-odds are: what lies at two thirds of a threshold is hardly suspicious.
    return np.asarray(STEEPNESS * (answer.values - limits) / np.maximum(np.abs(limits), 1e-9))


def _too_many(excess: np.typing.NDArray[np.float64]) -> list[int]:
    """Return the least anomalous of those found so, where they are half of the cohort or more: a majority is the norm."""
    found = [int(index) for index in np.argsort(excess) if excess[index] > 0]
    return found[: max(0, len(found) - (len(excess) - 1) // 2)]
