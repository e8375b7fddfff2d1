"""Refold's detection as a judge of the bench."""

from __future__ import annotations

from typing import Any

import numpy as np
from _peers import Judged, Round

import refold


class Own:
    """The public interface, with the memory that it keeps from round to round."""

    def __init__(self, *, flat: bool = False, selection: str = "", **config: Any) -> None:
        self._detection = refold.Detection(refold.DetectionConfig(**config) if config else None)
        self._flat = flat
        self.selection = selection

    def judge(self, given: Round) -> Judged:
        """Return who is refused, and scores."""
        names = [f"client-{client:03d}" for client in given.clients]
        cohort = refold.Cohort(given.round, names, self._deltas(given), given.examples.tolist())
        verdicts = self._detection.judge(cohort)
        if faults := self._detection.faults:
            raise RuntimeError(f"a detector was left out: {faults}")
        return np.array([not v.accepted for v in verdicts]), np.array([v.score for v in verdicts])

    def _deltas(self, given: Round) -> Any:
        if self._flat:
            return given.deltas
        ends = np.cumsum([int(np.prod(shape)) for shape in given.shapes])[:-1]
        return [
            {
                f"tensor-{at}": part.reshape(shape)
                for at, (part, shape) in enumerate(zip(np.split(row, ends), given.shapes, strict=True))
            }
            for row in given.deltas
        ]


OWN: dict[str, Any] = {
    "refold": Own,
    "refold-flat": lambda: Own(flat=True),
    "refold-bound": lambda: Own(selection="norm-bound"),
    "refold-doubt": lambda: Own(selection="doubt"),
    "refold-strict": lambda: Own(false_alarm_rate=0.01),
    "refold-careful": lambda: Own(false_alarm_rate=0.001),
}
