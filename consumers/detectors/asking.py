"""Asks detectors, which may be anybody's code: one that raises, hangs or answers nonsense is left out and counted."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from refold.consumers.detectors.contract import Cohort, Detector, Scores

PATIENCE_S = 10.0
"""How long a detector may take over a cohort; about a member's session, which one that hangs may cost it once."""


class _Question:
    """A detector at work in a thread of its own, and what came of it."""

    def __init__(self, detector: Detector, cohort: Cohort) -> None:
        self.answer: Scores | None = None
        self.error: BaseException | None = None
        name = f"refold-detector-{detector.name}"
        self.thread = threading.Thread(target=self._ask, args=(detector, cohort), name=name, daemon=True)
        self.thread.start()

    def _ask(self, detector: Detector, cohort: Cohort) -> None:
        try:
            self.answer = _usable(detector.score(cohort), len(cohort))
        except BaseException as error:  # Even one that calls `sys.exit` ends only its own thread.
            self.error = error


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
            fault = "still hangs over an earlier round"
        else:
            question = _Question(detector, cohort)
            question.thread.join(self._patience_s)
            if question.thread.is_alive():
                self._hanging[detector.name] = question.thread
            fault = self._what_is_wrong(question)
            if not fault:
                return question.answer
        self.faults[detector.name] += 1
        self.last_fault[detector.name] = fault
        return None

    def _what_is_wrong(self, question: _Question) -> str:
        if question.thread.is_alive():
            return f"did not answer within {self._patience_s:g} s"
        if isinstance(question.error, MemoryError):
            raise question.error
        if question.error is not None:
            return f"raised {type(question.error).__name__}: {question.error}"
        return "" if question.answer else "gave no finite value, threshold and sentence for each update"


def _usable(answer: Scores, count: int) -> Scores | None:
    """Return an answer as plain numbers and text; None where it is not one of each for every update."""
    given = (answer.values, answer.thresholds, *((answer.supports,) if answer.supports is not None else ()))
    numbers = [np.array(found, np.float64) for found in given]
    evidence = tuple(map(str, answer.evidence))
    if any(found.shape != (count,) or not np.isfinite(found).all() for found in numbers) or len(evidence) != count:
        return None
    return Scores(numbers[0], numbers[1], evidence, numbers[2] if len(numbers) > 2 else None)


def sealed(cohort: Cohort) -> Cohort:
    """Return a cohort whose history, like its arrays, cannot be changed by who is given it."""
    history = {
        client: MappingProxyType({detector: tuple(values) for detector, values in past.items()})
        for client, past in cohort.history.items()
    }
    return replace(cohort, history=MappingProxyType(history))
