"""Faults as a list that is made before a run begins, so that one can be left out and the run repeated.

A fault happens either when a *point* is passed for the n-th time (`topic/kind` of what is written, as ``accepted/Commit``), or
at a time. The fates of a write, of which everything else is made:

=============  =====================================================================================================
crash-before   the process dies, the batch is lost
crash-after    the batch is there, the process dies
crash-part     a part of the batch is there, the process dies
crash-late     the process dies; its batch arrives later: the late record of a dead writer
lose-send      an error, and nothing is there
lose-ack       an error, and all is there
late-send      an error, and all is there later, whatever the writer did meanwhile
hole           an error, and all is there but a piece in the middle
hole-crash     the same, and the process dies
freeze-before  the process stands still, past its lease perhaps, and then writes
freeze-after   the process stands still before it hears that all is there
repeat         all is there, and later once more
corrupt        a chunk arrives with other bytes
poison         the process dies, and so do the next two that try the same
disk-full      the outbox refuses an update
=============  =====================================================================================================
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Parameters
    ----------
    point, nth
        Where: the n-th time that anyone passes a point. Or
    at_s
        when: seconds from the beginning.
    span_s
        How long, or how much later.
    pick
        Any further choice: which process, which piece.
    """

    what: str
    point: str = ""
    nth: int = 0
    at_s: float = 0.0
    span_s: float = 0.0
    pick: int = 0

    def __str__(self) -> str:
        where = f"at {self.point} #{self.nth}" if self.point else f"at {self.at_s:.2f} s"
        return f"{self.what} {where}" + (f", {self.span_s:.2f} s" if self.span_s else "") + f", pick {self.pick}"


class Plot:
    """The faults of a run that wait for their points."""

    def __init__(self, faults: list[Fault]) -> None:
        self._waiting = {(fault.point, fault.nth): fault for fault in faults if fault.point}
        self._passed: Counter[str] = Counter()
        self.happened: list[Fault] = []
        self.is_over = False

    def again(self, point: str, times: int, what: str = "crash-after", pick: int = 0) -> None:
        """Let this happen at the next passings of a point, too."""
        for number in range(1, times + 1):
            nth = self._passed[point] + number
            self._waiting[point, nth] = Fault(what, point, nth, pick=pick)

    def pass_points(self, points: list[str]) -> Fault | None:
        """Take note that these were passed, and return the fault that happens there, if any."""
        found = None
        for point in points:
            self._passed[point] += 1
            fault = self._waiting.get((point, self._passed[point]))
            if fault is not None and found is None and not self.is_over:
                found = fault
        if found is not None:
            self.happened.append(found)
        return found
