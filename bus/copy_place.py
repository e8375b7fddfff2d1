"""Who copies to a bus, and how far the copy says it is: a group with one place, and words stored with its position.

The group keeps two copies from writing at once; the words keep a server from going on where the log's end is still missing.
"""

from __future__ import annotations

import time
from typing import Self

from refold.bus.contract import Bus, Committed, Place
from refold.schemas.errors import PlaceTakenError, TryAgainError, UsageError

UNDER_WAY, COMPLETE, PARTIAL = "under way", "complete", "partial"

SESSION_S = 20.0
"""Longer than a batch takes to become durable on a slow disk."""

WAIT_S = 40.0
"""How long to wait for the place: longer than a killed copy's session lasts."""


def _group(federation: str) -> str:
    return f"{federation}.copy"


class CopyPlace:
    """The right to write a copy to a bus, held until `close`.

    Raises
    ------
    PlaceTakenError
        Another copy to this bus is under way.
    """

    def __init__(self, bus: Bus, federation: str, *, wait_s: float = WAIT_S) -> None:
        self._place = Place(f"{federation}.accepted", 0)
        self._bus = bus
        self._is_lost = False
        self._consumer = bus.consumer(group=_group(federation), max_in_flight_bytes=1 << 16, session_timeout_s=SESSION_S)
        self._consumer.subscribe([self._place.topic], on_assigned=self._go_to_end, on_revoked=self._lose)
        deadline_s = time.monotonic() + wait_s
        self._consumer.poll(0.0, max_records=1)
        while not self._consumer.assignment():
            if time.monotonic() > deadline_s:
                self._consumer.close()
                raise _taken(self._place)
            self._consumer.poll(0.2, max_records=1)

    def _go_to_end(self, places: frozenset[Place]) -> None:
        """Read nothing: membership alone is wanted."""
        for place in places:
            self._consumer.seek(place, self._bus.end_offset(place))

    def _lose(self, _places: frozenset[Place]) -> None:
        self._is_lost = True

    def keep(self) -> None:
        """Stay alive in the group; PlaceTakenError if the place went to another, or did for a while."""
        self._consumer.poll(0.0, max_records=1)
        if self._is_lost:
            raise _taken(self._place)

    def mark(self, state: str) -> None:
        """Say how far the copy is."""
        self.keep()
        self._consumer.commit({self._place: Committed(self._bus.end_offset(self._place), state)})

    def close(self) -> None:
        """Let another copy in."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def copy_state(bus: Bus, federation: str) -> str:
    """Return what a copy says of itself; "" where the federation was not copied here."""
    stored = bus.committed(_group(federation), Place(f"{federation}.accepted", 0))
    return stored.metadata if stored else ""


def require_whole(bus: Bus, federation: str) -> None:
    """Refuse a copy that lacks something which a server needs to go on.

    Raises
    ------
    TryAgainError
        The copy is under way, or was cut off.
    UsageError
        Only some topics were copied.
    """
    state = copy_state(bus, federation)
    if state == UNDER_WAY:
        raise TryAgainError(
            "this copy of the federation is not complete",
            federation=federation,
            hint="run the same `refold export` or `import` again; if the source is lost, `refold serve --even-incomplete`",
        )
    if state == PARTIAL:
        raise UsageError(
            "this is a copy of some topics only, for reading",
            federation=federation,
            hint="copy the rest: `refold export` or `import` without --topics",
        )


def _taken(place: Place) -> PlaceTakenError:
    return PlaceTakenError(
        "another copy to this bus is under way",
        topic=place.topic,
        hint="wait for it, or stop it; the same command goes on after it",
    )
