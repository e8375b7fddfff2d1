"""Time as an argument: groups wait by a monotonic clock and stamp records by the wall clock, both replaceable in tests."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: `monotonic_s` decides waits, `wall_ms` is written down and decides nothing."""

    def monotonic_s(self) -> float:
        """Seconds that never go back."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970, for people."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic_s(self) -> float:
        """Seconds since the machine started."""
        return time.monotonic()

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock that stands until it is moved."""

    def __init__(self, start_s: float = 1000.0) -> None:
        self.now_s = start_s

    def advance(self, seconds: float) -> None:
        """Move the clock on."""
        self.now_s += seconds

    def monotonic_s(self) -> float:
        """The hand-set time."""
        return self.now_s

    def wall_ms(self) -> int:
        """The hand-set time in milliseconds."""
        return int(self.now_s * 1000)
