"""A bus through which a group's member works: each record that it reads or sends on the way keeps its place in the group.

A member polls its group between turns. A turn over a very large model takes longer than a session, and without this its place
would go to another member in the middle of it, which would begin the same work and lose its place in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

from refold.bus.contract import Bus, Consumer, Delivery, Headers, Producer, Record

Stay = Callable[[], None]


def keeping(bus: Bus, stay: Stay) -> Bus:
    """Return the bus as one that calls `stay` with every poll and send of what it opens."""
    return cast(Bus, _Bus(bus, stay))


class _Bus:
    def __init__(self, bus: Bus, stay: Stay) -> None:
        self._bus = bus
        self._stay = stay

    def producer(self, *, max_in_flight_bytes: int = 16 << 20) -> Producer:
        return cast(Producer, _Producer(self._bus.producer(max_in_flight_bytes=max_in_flight_bytes), self._stay))

    def consumer(self, **settings: Any) -> Consumer:
        return cast(Consumer, _Consumer(self._bus.consumer(**settings), self._stay))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


class _Producer:
    def __init__(self, producer: Producer, stay: Stay) -> None:
        self._producer = producer
        self._stay = stay

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> Delivery:
        self._stay()
        return self._producer.send(topic, value, key=key, partition=partition, headers=headers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._producer.close()


class _Consumer:
    def __init__(self, consumer: Consumer, stay: Stay) -> None:
        self._consumer = consumer
        self._stay = stay

    def poll(self, timeout_s: float = 0.0, *, max_records: int = 500) -> list[Record]:
        self._stay()
        return self._consumer.poll(timeout_s, max_records=max_records)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._consumer.close()
