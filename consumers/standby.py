"""One active member, the others standing by: the place is a partition of a group, the truth is the chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from refold.bus.closing import close_all
from refold.bus.contract import Bus, Place
from refold.bus.keeping import keeping


class Turns(Protocol):
    """What the active member does."""

    def turn(self) -> bool:
        """Take one turn; return whether anything was done."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class Standby:
    """A member of a group with one place, on a topic with one partition.

    Whoever holds the place makes its working state anew from the log (`start`, given the bus to work through, which keeps the
    place during a long turn) and takes turns; whoever loses it throws that state away. Two that believe they hold it do no
    harm: only one of their commits extends the chain.
    """

    def __init__(self, bus: Bus, *, group: str, topic: str, member: str, start: Callable[[Bus], Turns]) -> None:
        self._bus = keeping(bus, lambda: self._consumer.stay())
        self._start = start
        self._active: Turns | None = None
        self._consumer = bus.consumer(group=group, instance=member)
        self._consumer.subscribe([topic], on_assigned=self._take_over, on_revoked=self._stand_by)

    def step(self, timeout_s: float) -> bool:
        """Wait for news of the topic, at most so long, and take a turn if this member is the active one."""
        self._consumer.poll(timeout_s)
        return self._active.turn() if self._active else False

    def _take_over(self, places: frozenset[Place]) -> None:
        for place in places:
            self._consumer.seek(place, self._bus.end_offset(place))
        self._active = self._start(self._bus)

    def _stand_by(self, _places: frozenset[Place]) -> None:
        active, self._active = self._active, None
        close_all(active)

    def close(self) -> None:
        """Leave the group."""
        active, self._active = self._active, None
        close_all(active, self._consumer)
