"""What a process does to itself when it passes a point: die, freeze, or lose an acknowledgement. Given before it starts."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from faultkit.buses import AFTER, BEFORE
from refold.schemas.errors import BusError

KILL, LOSE = "kill", "lose"
ON_DEMAND = "accepted/Commit"


@dataclass(frozen=True, slots=True)
class Fault:
    """The n-th passing of one side of a point, and what happens there."""

    point: str
    side: str
    nth: int = 1
    action: str = KILL

    def __str__(self) -> str:
        return f"{self.action} {self.side} {self.point} #{self.nth}"


@dataclass
class Faulty:
    """A hook that makes one process's faults happen, and writes down what it passed.

    Parameters
    ----------
    faults
        In order: each waits until the one before it happened (only a lost acknowledgement is survived).
    diary
        A line goes to this file before a fault happens.
    """

    faults: tuple[Fault, ...]
    diary: Path
    _passed: Counter[tuple[str, str]] = field(default_factory=Counter)
    _next: int = 0

    def __call__(self, point: str, side: str) -> None:
        """Pass one side of a point."""
        if (point, side) == (ON_DEMAND, BEFORE):
            self._freeze_if_asked()
        if self._next == len(self.faults):
            return
        fault = self.faults[self._next]
        if (point, side) != (fault.point, fault.side):
            return
        self._passed[point, side] += 1
        if self._passed[point, side] < fault.nth:
            return
        self._passed.clear()
        self._next += 1
        note(self.diary, str(fault))
        if fault.action == LOSE:
            raise BusError("the acknowledgement was lost", hint="a test lost it")
        _strike(signal.SIGKILL if fault.action == KILL else signal.SIGSTOP)

    def _freeze_if_asked(self) -> None:
        """Stop if someone is asked to, and nobody else was first."""
        try:
            freeze_request(self.diary.parent).unlink()
        except FileNotFoundError:
            return
        note(self.diary, f"frozen {os.getpid()}")
        _strike(signal.SIGSTOP)


def _strike(number: int) -> None:
    # To this thread: one sent to the process may find another thread first, and this one runs on for a moment.
    signal.pthread_kill(threading.get_ident(), number)


def freeze_request(folder: Path) -> Path:
    """Return the file that asks for a freeze: whoever passes `ON_DEMAND` next takes it away and stops."""
    return folder / "freeze"


def note(path: Path, line: str) -> None:
    """Append a line, whole or not at all, whoever else writes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def both_sides(point: str, times: int) -> list[Fault]:
    """Return death before and after a point, the first to the last time."""
    return [Fault(point, side, nth) for nth in range(1, times + 1) for side in (BEFORE, AFTER)]
