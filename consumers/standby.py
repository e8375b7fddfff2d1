"""One active member, the others standing by: the place is a partition of a group, the truth is the chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from refold.bus.clock import Clock
from refold.bus.closing import close_all
from refold.bus.contract import Bus, Place
from refold.bus.keeping import keeping
from refold.bus.topics import Topics
from refold.schemas.events import Genesis
from refold.schemas.keys import SigningKey


class Turns(Protocol):
    """What the active member does."""

    def turn(self) -> bool:
        """Take one turn; return whether anything was done."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


@dataclass(frozen=True)
class Seat:
    """Where a member of a group works.

    Parameters
    ----------
    member
        A stable name: started again under the same name, it takes its own place at once.
    log_key
        The server's own signature, where it has one.
    """

    bus: Bus
    topics: Topics
    genesis: Genesis
    member: str
    clock: Clock
    log_key: SigningKey | None = None


class Standby:
    """A member of a group with one place, on a topic with one partition.

    Whoever holds the place makes its working state anew from the log (`start`, given the seat with a bus that keeps the place
    during a long turn) and takes turns; whoever loses it throws that state away. Two that believe they hold it do no
    harm: only one of their commits extends the chain.
    """

    name: str

    def __init__(self, seat: Seat, *, topic: str, start: Callable[[Seat], Turns]) -> None:
        self._seat = replace(seat, bus=keeping(seat.bus, lambda: self._consumer.stay()))
        self._start = start
        self._active: Turns | None = None
        self._consumer = seat.bus.consumer(group=f"{seat.topics.federation}.{self.name}", instance=seat.member)
        self._consumer.subscribe([topic], on_assigned=self._take_over, on_revoked=self._stand_by)

    def step(self, timeout_s: float) -> bool:
        """Wait for news of the topic, at most so long, and take a turn if this member is the active one."""
        self._consumer.poll(timeout_s)
        return self._active.turn() if self._active else False

    def _take_over(self, places: frozenset[Place]) -> None:
        for place in places:
            self._consumer.seek(place, self._seat.bus.end_offset(place))
        self._active = self._start(self._seat)

    def _stand_by(self, _places: frozenset[Place]) -> None:
        active, self._active = self._active, None
        close_all(active)

    def close(self) -> None:
        """Leave the group."""
        active, self._active = self._active, None
        close_all(active, self._consumer)
