"""From scores to verdicts: any detector may reject, never most of a cohort; the scores of all are kept as evidence."""

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

    @property
    def score(self) -> float:
        """From 0 to 1, higher is worse: r / (1 + r), where r is the largest share that a value has of its threshold."""
        share = max((score.value / max(score.threshold, 1e-9) for score in self.scores), default=0.0)
        return float(max(share, 0.0) / (1 + max(share, 0.0)))


class Ensemble:
    """Several detectors as one.

    A detector that raises, or whose answer cannot be used, is left out of this judgement and counted in `faults`: it may
    neither reject nor stop anyone.
    """

    def __init__(self, detectors: Sequence[Detector] | None = None) -> None:
        self.detectors: tuple[Detector, ...] = tuple(detectors or (Norm(), TensorNorm(), Quantile(), Direction()))
        self.faults: dict[str, int] = {}

    def judge(self, cohort: Cohort) -> list[Opinion]:
        """Return an opinion of each update; a cohort of fewer than three is accepted, there being nothing to compare with."""
        scores: list[list[Score]] = [[] for _ in cohort.clients]
        reasons: list[list[str]] = [[] for _ in cohort.clients]
        excess = np.zeros(len(cohort))
        for detector in self.detectors if len(cohort) >= LEAST_COHORT else ():
            answer = self._score(detector, cohort)
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

    def _score(self, detector: Detector, cohort: Cohort) -> Scores | None:
        """Return a detector's answer, or None and count a fault where it gives none that can be used."""
        try:
            answer = detector.score(cohort)
            if _usable(answer, len(cohort)):
                return answer
        except MemoryError:
            raise
        except Exception:
            # Whatever a plug-in raises is its own fault; the judgement goes on without it.
            pass
        self.faults[detector.name] = self.faults.get(detector.name, 0) + 1
        return None


def _usable(answer: Scores, count: int) -> bool:
    sizes = {len(answer.values), len(answer.thresholds), len(answer.evidence)}
    return sizes == {count} and bool(np.isfinite(answer.values).all() and np.isfinite(answer.thresholds).all())


def _too_many(excess: np.typing.NDArray[np.float64]) -> list[int]:
    """Return the least anomalous of those found so, where they are half of the cohort or more: a majority is the norm."""
    found = [int(index) for index in np.argsort(excess) if excess[index] > 0]
    return found[: max(0, len(found) - (len(excess) - 1) // 2)]
