"""From scores to verdicts: any detector may reject, never most of a cohort; the scores of all are kept as evidence."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refold.consumers.detectors.asking import PATIENCE_S, Asking, sealed
from refold.consumers.detectors.contract import Cohort, Detector
from refold.consumers.detectors.direction import Direction
from refold.consumers.detectors.norm import Norm, TensorNorm
from refold.consumers.detectors.pattern import Pattern
from refold.consumers.detectors.quantile import Quantile
from refold.consumers.detectors.recent import Past
from refold.schemas.events import Score

LEAST_COHORT = 3
STEEPNESS, MOST_EXCESS = 12.0, 30.0


@dataclass(frozen=True, slots=True)
class Opinion:
    """The ensemble's judgement of one update: reasons, none where it is accepted, and every detector's score."""

    reasons: tuple[str, ...]
    scores: tuple[Score, ...]

    @property
    def score(self) -> float:
        """From 0 to 1, higher is worse, above 0.5 where a value exceeds its threshold: the logistic of the largest excess."""
        excess = max((_excess(score) for score in self.scores), default=-MOST_EXCESS)
        return 1 / (1 + math.exp(-min(max(excess, -MOST_EXCESS), MOST_EXCESS)))


def _excess(score: Score) -> float:
    """Return by how much a value exceeds its threshold, as log-odds."""
    over = score.value - score.threshold
    # Others are made as steep as log-odds are: what lies at two thirds of a threshold is hardly suspicious.
    return over if score.detector == Pattern.name else STEEPNESS * over / max(score.threshold, 1e-9)


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
        scores: list[list[Score]] = [[] for _ in cohort.clients]
        reasons: list[list[str]] = [[] for _ in cohort.clients]
        excess = np.zeros(len(cohort))
        cohort = sealed(cohort)
        for detector in self.detectors if len(cohort) >= LEAST_COHORT else ():
            answer = self._asking.ask(detector, cohort)
            if answer is None:
                continue
            for index, (value, threshold) in enumerate(zip(answer.values, answer.thresholds, strict=True)):
                evidence = answer.evidence[index][:400]
                scores[index].append(Score(detector.name, detector.version, float(value), float(threshold), evidence))
                if value > threshold:
                    reasons[index].append(detector.reason)
                    excess[index] += value - threshold
        for index in _too_many(excess):
            reasons[index].clear()
        return [Opinion(tuple(r), tuple(s)) for r, s in zip(reasons, scores, strict=True)]


def _too_many(excess: np.typing.NDArray[np.float64]) -> list[int]:
    """Return the least anomalous of those found so, where they are half of the cohort or more: a majority is the norm."""
    found = [int(index) for index in np.argsort(excess) if excess[index] > 0]
    return found[: max(0, len(found) - (len(excess) - 1) // 2)]
