"""Asks detectors, which may be anybody's code: one that raises, hangs or answers nonsense is left out and counted."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from refold.consumers.detectors.contract import Cohort, Detector, Scores

PATIENCE_S = 10.0
"""How long a detector may take over a cohort; about a member's session, which one that hangs may cost it once."""


@dataclass(slots=True)
class _Question:
    """A detector at work in a thread of its own, and what came of it."""

    thread: threading.Thread | None = None
    answer: Scores | None = None
    error: BaseException | None = None


class Asking:
    """Detectors' answers, those that can be used.

    A thread cannot be ended from outside: one that hangs is left behind, and its detector is not asked again until it returns.

    Parameters
    ----------
    patience_s
        How long to wait for an answer.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self.faults: Counter[str] = Counter()
        self.last_fault: dict[str, str] = {}
        self._patience_s = patience_s
        self._hanging: dict[str, threading.Thread] = {}

    def ask(self, detector: Detector, cohort: Cohort) -> Scores | None:
        """Return a detector's answer, or None where it gives none that can be used.

        Raises
        ------
        MemoryError
            It is the machine's fault then, and no detector's.
        """
        hanging = self._hanging.get(detector.name)
        if hanging is not None and hanging.is_alive():
            return self._fault(detector, "still hangs over an earlier round")
        question = _put(detector, cohort)
        assert question.thread is not None
        question.thread.join(self._patience_s)
        if question.thread.is_alive():
            self._hanging[detector.name] = question.thread
            return self._fault(detector, f"did not answer within {self._patience_s:g} s")
        if isinstance(question.error, MemoryError):
            raise question.error
        if question.error is not None:
            return self._fault(detector, f"raised {type(question.error).__name__}: {question.error}")
        if question.answer is None:
            return self._fault(detector, "gave no finite value, threshold and sentence for each update")
        return question.answer

    def _fault(self, detector: Detector, what: str) -> None:
        self.faults[detector.name] += 1
        self.last_fault[detector.name] = what


def _put(detector: Detector, cohort: Cohort) -> _Question:
    """Begin to ask."""
    question = _Question()

    def answer() -> None:
        try:
            question.answer = _usable(detector.score(cohort), len(cohort))
        except BaseException as error:  # Even one that calls `sys.exit` ends only its own thread.
            question.error = error

    question.thread = threading.Thread(target=answer, name=f"refold-detector-{detector.name}", daemon=True)
    question.thread.start()
    return question


def _usable(answer: Scores, count: int) -> Scores | None:
    """Return an answer as plain numbers and text; None where it is not one of each for every update."""
    values, thresholds = (np.array(found, np.float64) for found in (answer.values, answer.thresholds))
    evidence = tuple(map(str, answer.evidence))
    if values.shape != (count,) or thresholds.shape != (count,) or len(evidence) != count:
        return None
    if not (np.isfinite(values).all() and np.isfinite(thresholds).all()):
        return None
    return Scores(values, thresholds, evidence)


def sealed(cohort: Cohort) -> Cohort:
    """Return a cohort whose history, like its arrays, cannot be changed by who is given it."""
    history = {
        client: MappingProxyType({detector: tuple(values) for detector, values in past.items()})
        for client, past in cohort.history.items()
    }
    return replace(cohort, history=MappingProxyType(history))
