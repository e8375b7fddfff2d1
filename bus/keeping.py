"""A bus through which a group's member works: each record that it reads or sends on the way keeps its place in the group.

A member polls its group between turns. A turn over a very large model takes longer than a session, and without this its place
would go to another member in the middle of it, which would begin the same work and lose its place in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from refold.bus.contract import Bus, Consumer, Delivery, Producer, Record
from refold.bus.wrapping import Wrapped

Stay = Callable[[], None]


def keeping(bus: Bus, stay: Stay) -> Bus:
    """Return the bus as one that calls `stay` with every poll and send of what it opens."""
    return cast(Bus, _Bus(bus, stay))


class _Keeping(Wrapped):
    def __init__(self, inner: Any, stay: Stay) -> None:
        super().__init__(inner)
        self._stay = stay


class _Bus(_Keeping):
    def producer(self, **settings: Any) -> Producer:
        return cast(Producer, _Producer(self._inner.producer(**settings), self._stay))

    def consumer(self, **settings: Any) -> Consumer:
        return cast(Consumer, _Consumer(self._inner.consumer(**settings), self._stay))


class _Producer(_Keeping):
    def send(self, topic: str, value: bytes | None, **where: Any) -> Delivery:
        self._stay()
        return cast(Delivery, self._inner.send(topic, value, **where))


class _Consumer(_Keeping):
    def poll(self, timeout_s: float = 0.0, **bounds: Any) -> list[Record]:
        self._stay()
        return cast(list[Record], self._inner.poll(timeout_s, **bounds))
