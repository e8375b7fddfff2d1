"""Counting rare states. What is counted decides nothing: a run that never met them would prove less."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from refold.consumers.coverage import Coverage

if TYPE_CHECKING:
    from tests.simulation.world import World

SAID = {
    "another detection's commit was taken first": "detection stood back",
    "another aggregation's commit was taken first": "aggregation stood back",
    "taking another way": "broken snapshot passed over",
    "an update waits in the outbox": "client kept an update that the bus did not take",
}
"""What a log line holds → the state it tells of."""


class _Listener(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self._world.note(text)
        for part, state in SAID.items():
            if part in text:
                self._world.rare[state] += 1


@contextmanager
def watched(world: World) -> Iterator[None]:
    """Count what the members say and find while this lasts."""
    log, listener = logging.getLogger("refold"), _Listener(world)
    hole_before = Coverage.hole_before

    def counted(self: Coverage, previous: int) -> Any:
        found = hole_before(self, previous)
        if found is not None:
            world.rare["hole in checked found"] += 1
        return found

    before = log.propagate, log.level
    log.propagate = False
    log.setLevel(logging.WARNING)
    log.addHandler(listener)
    Coverage.hole_before = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Coverage.hole_before = hole_before  # type: ignore[method-assign]
        log.removeHandler(listener)
        log.propagate, _ = before
        log.setLevel(before[1])
