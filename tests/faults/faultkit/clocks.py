"""Wall clocks that jump an hour or ten years, either way, whenever they are asked; the monotonic one stays what it is."""

from __future__ import annotations

import random
import time
from functools import partial

from refold.bus.sqlite import SqliteBus

HOUR_S, TEN_YEARS_S = 3600.0, 10 * 365.25 * 86_400


class JumpingTime:
    """`time`, as `refold.bus.clock` uses it."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since 1970, or not."""
        return time.time() + self._chance.choice((-TEN_YEARS_S, -HOUR_S, 0.0, HOUR_S, TEN_YEARS_S))

    def time_ns(self) -> int:
        """The same in nanoseconds."""
        return int(self.time() * 1e9)


def jumping(seed: int) -> tuple[tuple[str, str, object], ...]:
    """Return the patches by which a process's wall clocks jump: what records are stamped with, and what the bus stamps."""
    clock = JumpingTime(seed)
    return (
        ("refold.bus.clock", "time", clock),
        ("faultkit.processes", "SqliteBus", partial(SqliteBus, wall=clock.time)),
    )
