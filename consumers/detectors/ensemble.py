"""From scores to verdicts: the first detector above its threshold rejects; the scores of all are kept as evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refold.consumers.detectors.contract import Cohort, Detector, Scores
from refold.consumers.detectors.direction import Direction
from refold.consumers.detectors.norm import Norm, TensorNorm
from refold.consumers.detectors.quantile import Quantile
from refold.schemas.events import Score

LEAST_COHORT = 3


@dataclass(frozen=True, slots=True)
class Opinion:
    """The ensemble's judgement of one update: reasons, none where it is accepted, and every detector's score."""

    reasons: tuple[str, ...]
    scores: tuple[Score, ...]


class Ensemble:
    """Several detectors as one.

    A detector that raises, or whose values are not finite, is left out of this judgement and named in `faults`: it may neither
    reject nor stop anyone.
    """

    def __init__(self, detectors: Sequence[Detector] | None = None) -> None:
        self.detectors: tuple[Detector, ...] = tuple(detectors or (Norm(), TensorNorm(), Quantile(), Direction()))
        self.faults: dict[str, int] = {}

    def judge(self, cohort: Cohort) -> list[Opinion]:
        """Return an opinion of each update; a cohort of fewer than three is accepted, there being nothing to compare with."""
        scores: list[list[Score]] = [[] for _ in cohort.clients]
        reasons: list[list[str]] = [[] for _ in cohort.clients]
        for detector in self.detectors if len(cohort) >= LEAST_COHORT else ():
            answer = self._score(detector, cohort)
            if answer is None:
                continue
            for index, value in enumerate(answer.values):
                said = Score(detector.name, detector.version, float(value), answer.threshold, answer.evidence[index][:400])
                scores[index].append(said)
                if value > answer.threshold:
                    reasons[index].append(detector.reason)
        return [Opinion(tuple(r), tuple(s)) for r, s in zip(reasons, scores, strict=True)]

    def _score(self, detector: Detector, cohort: Cohort) -> Scores | None:
        """Return a detector's answer, or None and count a fault where it gives none that can be used."""
        try:
            answer = detector.score(cohort)
            if len(answer.values) == len(cohort) and np.isfinite(answer.values).all():
                return answer
        except (ArithmeticError, ValueError, TypeError, LookupError):
            pass
        self.faults[detector.name] = self.faults.get(detector.name, 0) + 1
        return None
