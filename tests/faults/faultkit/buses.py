"""A bus that calls a hook before and after everything durable, so that a process can die, freeze or fail right there.

A *point* is named ``topic/kind``: ``accepted/Commit``, ``deltas/Chunk``, ``updates/delete``, ``updates/offsets``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from refold.bus.contract import Bus, Committed, Consumer, Delivery, Headers, Place, Producer, TopicSpec
from refold.bus.wrapping import Wrapped
from refold.schemas.errors import BusError

BEFORE, AFTER = "before", "after"
Hook = Callable[[str, str], None]
"""Called with a point and a side."""
Drop = Callable[[str, bytes | None], bool]
"""Called with a point and a record's value; True loses the record, as a producer's delivery time-out does."""


def point_of(topic: str, value: bytes | None, headers: Headers) -> str:
    """Return the point that a record's write is."""
    kinds = [value.decode().removeprefix("refold.") for name, value in headers if name == "ce_type"]
    kind = "tombstone" if value is None else kinds[0] if kinds else "record"
    return f"{topic.partition('.')[2]}/{kind}"


class Lost:
    """The acknowledgement of a record that is not there."""

    def result(self, timeout_s: float | None = None) -> int:
        """Say that all went well."""
        return 0


class HookedProducer:
    """A producer whose flushes pass the points of what they write."""

    def __init__(self, inner: Producer, hook: Hook, drop: Drop) -> None:
        self._inner = inner
        self._hook = hook
        self._drop = drop
        self._points: dict[str, None] = {}
        self._given_up = False

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> Delivery:
        """Queue a record, or lose it."""
        point = point_of(topic, value, headers)
        if self._drop(point, value):
            return Lost()
        delivery = self._inner.send(topic, value, key=key, partition=partition, headers=headers)
        self._points[point] = None
        return delivery

    def flush(self, timeout_s: float = 30.0) -> None:
        """Write what is queued, passing its points before and after."""
        if self._given_up:
            return
        self._pass(BEFORE)
        self._inner.flush(timeout_s)
        points, self._points = self._points, {}
        for point in points:
            self._hook(point, AFTER)

    def _pass(self, side: str) -> None:
        try:
            for point in list(self._points):
                self._hook(point, side)
        except BusError:
            self._given_up = True  # As a driver does: what it could not send it does not send later.
            raise

    def close(self) -> None:
        """Write what is queued and let go."""
        if not self._given_up:
            self._pass(BEFORE)
            self._points.clear()
            self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class HookedConsumer(Wrapped):
    """A consumer whose group commits pass a point; all else is the driver's."""

    def __init__(self, inner: Consumer, hook: Hook) -> None:
        super().__init__(inner)
        self._hook = hook

    def commit(self, offsets: Mapping[Place, Committed]) -> None:
        """Store the group's positions."""
        points = {f"{place.topic.partition('.')[2]}/offsets" for place in offsets}
        for point in points:
            self._hook(point, BEFORE)
        self._inner.commit(offsets)
        for point in points:
            self._hook(point, AFTER)


class HookedBus(Wrapped):
    """A bus that passes points on everything durable.

    Parameters
    ----------
    on_delete
        Called with the bus, a place and the offset below which records go, before they go.
    session_timeout_s
        Of every consumer that joins a group, instead of what its owner asked for.
    """

    def __init__(
        self,
        inner: Bus,
        hook: Hook = lambda _point, _side: None,
        *,
        drop: Drop = lambda _point, _value: False,
        on_delete: Callable[[Bus, Place, int], None] = lambda _bus, _place, _before: None,
        session_timeout_s: float | None = None,
    ) -> None:
        super().__init__(inner)
        self._hook = hook
        self._drop = drop
        self._on_delete = on_delete
        self._session_timeout_s = session_timeout_s

    def create_topics(self, specs: Iterable[TopicSpec]) -> None:
        """Create what is not there."""
        self._hook("topics/create", BEFORE)
        self._inner.create_topics(specs)
        self._hook("topics/create", AFTER)

    def producer(self, *, max_in_flight_bytes: int = 16 << 20) -> HookedProducer:
        """Open a producer."""
        return HookedProducer(self._inner.producer(max_in_flight_bytes=max_in_flight_bytes), self._hook, self._drop)

    def consumer(self, *, session_timeout_s: float = 10.0, **settings: Any) -> HookedConsumer:
        """Open a consumer."""
        timeout_s = self._session_timeout_s or session_timeout_s
        return HookedConsumer(self._inner.consumer(session_timeout_s=timeout_s, **settings), self._hook)

    def delete_records(self, place: Place, before_offset: int) -> None:
        """Delete records, passing a point before and after."""
        point = f"{place.topic.partition('.')[2]}/delete"
        self._on_delete(self._inner, place, before_offset)
        self._hook(point, BEFORE)
        self._inner.delete_records(place, before_offset)
        self._hook(point, AFTER)
