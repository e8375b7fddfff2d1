"""Asks detectors, which may be anybody's code: one that raises, hangs or answers nonsense is left out and counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from refold.consumers.detectors.contract import Cohort, Detector, Scores

PATIENCE_S = 10.0
"""How long a detector may take over a cohort; about a member's session, which one that hangs may cost it once."""


class _Question:
    """A detector that is asked, and what came of it."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.answer: Scores | None = None
        self.error: BaseException | None = None
        self.done = threading.Event()

    def ask(self, cohort: Cohort) -> None:
        """Keep the answer, or the error."""
        try:
            self.answer = _usable(self.detector.score(cohort), len(cohort))
        except BaseException as error:  # Even one that calls `sys.exit` ends nobody else.
            self.error = error
        self.done.set()


class _Thread:
    """Asks detectors one after another, until it is left behind with the one that hangs."""

    def __init__(self, questions: Sequence[_Question], cohort: Cohort) -> None:
        self._left = threading.Event()
        self._lock = threading.Lock()
        thread = threading.Thread(target=self._ask, args=(questions, cohort), name="refold-detectors", daemon=True)
        thread.start()

    def leave(self, question: _Question) -> bool:
        """Let no other be asked here; return whether this one hangs indeed, and was not answered just now."""
        with self._lock:
            if not question.done.is_set():
                self._left.set()
            return self._left.is_set()

    def _ask(self, questions: Sequence[_Question], cohort: Cohort) -> None:
        for question in questions:
            question.ask(cohort)
            with self._lock:
                if self._left.is_set():
                    return


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
        self._hanging: dict[str, _Question] = {}

    def ask(self, detectors: Sequence[Detector], cohort: Cohort) -> list[tuple[Detector, Scores]]:
        """Return the detectors' answers, of those that give one that can be used.

        Raises
        ------
        MemoryError
            It is the machine's fault then, and no detector's.
        """
        for name in [name for name, question in self._hanging.items() if question.done.is_set()]:
            del self._hanging[name]
        for detector in detectors:
            if detector.name in self._hanging:
                self._blame(detector, "still hangs over an earlier round")
        questions = [_Question(detector) for detector in detectors if detector.name not in self._hanging]
        self._wait(questions, cohort)
        found = []
        for question in questions:
            fault = self._what_is_wrong(question)
            if fault:
                self._blame(question.detector, fault)
            elif question.answer is not None:
                found.append((question.detector, question.answer))
        return found

    def _wait(self, questions: Sequence[_Question], cohort: Cohort) -> None:
        thread = _Thread(questions, cohort) if questions else None
        for at, question in enumerate(questions, 1):
            if not question.done.wait(self._patience_s) and thread and thread.leave(question):
                self._hanging[question.detector.name] = question
                thread = _Thread(questions[at:], cohort)

    def _blame(self, detector: Detector, fault: str) -> None:
        self.faults[detector.name] += 1
        self.last_fault[detector.name] = fault

    def _what_is_wrong(self, question: _Question) -> str:
        if question.detector.name in self._hanging:
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
