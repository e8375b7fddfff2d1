"""Consumers: positions, turns and a life in a group, the same for all drivers; and how the embedded ones wait."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Protocol, Self

from refold.bus._groups import Group
from refold.bus._membership import Membership, not_held
from refold.bus._store import Store, check_place
from refold.bus.contract import Committed, Listener, Place, Record, TopicSpec
from refold.schemas.errors import UsageError


def _ignore(places: frozenset[Place]) -> None:
    """Listen to nothing."""


class Log(Protocol):
    """What a consumer asks of its driver, whatever it reads from."""

    def spec(self, topic: str) -> TopicSpec: ...
    def begin_offset(self, place: Place) -> int: ...
    def end_offset(self, place: Place) -> int: ...
    def committed(self, group: str, place: Place) -> Committed | None: ...
    def close(self) -> None: ...


class Life(Protocol):
    """A membership in a group, as `Membership` and `KafkaMembership` live it."""

    @property
    def places(self) -> frozenset[Place]: ...
    def stay(self) -> None: ...
    def commit(self, offsets: Mapping[Place, Committed]) -> None: ...
    def leave(self) -> None: ...


class PlacesConsumer(ABC):
    """Reads places it names, or those that its group gives it; a driver says how it joins, reads and commits."""

    _membership: Life | None

    def __init__(
        self, log: Log, group: str | None, instance: str | None, max_in_flight_bytes: int, session_timeout_s: float
    ) -> None:
        if max_in_flight_bytes < 1 or not session_timeout_s > 0:
            raise UsageError("bytes in flight and the session timeout must be above 0")
        if instance is not None and group is None:
            raise UsageError("an instance name needs a group", instance=instance)
        self._log = log
        self._group = group
        self._instance = instance
        self._max_bytes = max_in_flight_bytes
        self._session_timeout_s = session_timeout_s
        self._positions: dict[Place, int] | None = None
        self._turns: list[Place] = []
        self._membership = None
        self._closed = False

    @abstractmethod
    def _join(self, topics: list[str], on_assigned: Listener, on_revoked: Listener) -> Life:
        """Make a membership; it joins at the next poll."""

    @abstractmethod
    def _read(self, deadline: float, max_records: int) -> list[Record]:
        """Keep the membership and return new records, or none when the time (monotonic) has come."""

    @abstractmethod
    def _commit_alone(self, group: str, offsets: Mapping[Place, Committed]) -> None:
        """Store a group's positions if it has no members; PlaceTakenError if it has."""

    def assign(self, places: Iterable[Place]) -> None:
        """Read these places and no others, from their beginning; leaves the group if it was subscribed."""
        self._check_open()
        checked = {check_place(self._log.spec(topic), partition) for topic, partition in places}
        self._leave()
        self._positions = {place: self._log.begin_offset(place) for place in sorted(checked)}
        self._turns = list(self._positions)

    def subscribe(
        self, topics: Iterable[str], *, on_assigned: Listener | None = None, on_revoked: Listener | None = None
    ) -> None:
        """Join the group at the next `poll`."""
        self._check_open()
        if self._group is None:
            raise UsageError("subscribing needs a group", hint="open the consumer with group=NAME, or assign places")
        names = [self._log.spec(topic).name for topic in topics]
        self._leave()
        self._positions, self._turns = {}, []
        listener = on_assigned or _ignore

        def assigned(gained: frozenset[Place]) -> None:
            self._start(gained)
            listener(gained)

        self._membership = self._join(names, assigned, on_revoked or _ignore)

    def _start(self, gained: frozenset[Place]) -> None:
        assert self._group is not None
        positions = self._places()
        for place in sorted(gained):
            stored = self._log.committed(self._group, place)
            positions[place] = self._log.begin_offset(place) if stored is None else stored.next_offset
        self._turns = [place for place in self._turns if place not in gained] + sorted(gained)

    def assignment(self) -> frozenset[Place]:
        """Places read at present."""
        return frozenset(self._positions or ()) if self._membership is None else self._membership.places

    def poll(self, timeout_s: float = 0.0, *, max_records: int = 500) -> list[Record]:
        """Return new records. The group's affairs come first, so that no record of a lost place is returned."""
        self._check_open()
        self._places()
        if max_records < 1:
            raise UsageError("max_records must be at least 1", max_records=max_records)
        return self._read(time.monotonic() + timeout_s, max_records)

    def stay(self) -> None:
        """Keep the membership, if there is one, through work between two polls."""
        self._check_open()
        if self._membership is not None:
            self._membership.stay()

    def seek(self, place: Place, next_offset: int) -> None:
        """Go on from this offset, which must not lie past the end."""
        positions = self._held(place)
        end = self._log.end_offset(place)
        if not 0 <= next_offset <= end:
            hint = "the log is shorter than the reader remembers: it lost its tail, or is another log"
            raise UsageError(
                "no such offset", topic=place.topic, partition=place.partition, offset=next_offset, end_offset=end, hint=hint
            )
        positions[place] = next_offset

    def position(self, place: Place) -> int:
        """Offset that `poll` reads next at the earliest."""
        return self._held(place)[place]

    def commit(self, offsets: Mapping[Place, Committed]) -> None:
        """Store the group's positions. With `assign`, only while the group has no members."""
        self._check_open()
        if self._group is None:
            raise UsageError("committing needs a group", hint="open the consumer with group=NAME")
        for place in offsets:
            check_place(self._log.spec(place.topic), place.partition)
        if self._membership is not None:
            self._membership.commit(offsets)
            return
        self._commit_alone(self._group, offsets)

    def _places(self) -> dict[Place, int]:
        if self._positions is None:
            raise UsageError("the consumer reads nothing yet", hint="call assign or subscribe first")
        return self._positions

    def _held(self, place: Place) -> dict[Place, int]:
        self._check_open()
        if place not in self.assignment():
            raise UsageError("this consumer does not read the place", topic=place.topic, partition=place.partition)
        return self._places()

    def _leave(self) -> None:
        membership, self._membership = self._membership, None
        if membership is not None:
            membership.leave()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the consumer is closed")

    def close(self) -> None:
        """Leave the group and let go. The listeners are not called. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            self._leave()
        finally:
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class LogConsumer(PlacesConsumer):
    """Reads from a `Store`. It holds no records between polls, so what is in flight is what the last poll returned."""

    _membership: Membership | None

    def __init__(
        self, store: Store, group: str | None, instance: str | None, max_in_flight_bytes: int, session_timeout_s: float
    ) -> None:
        super().__init__(store, group, instance, max_in_flight_bytes, session_timeout_s)
        self._store = store

    def _join(self, topics: list[str], on_assigned: Listener, on_revoked: Listener) -> Membership:
        assert self._group is not None
        return Membership(self._store, self._group, self._instance, self._session_timeout_s, topics, on_assigned, on_revoked)

    def _read(self, deadline: float, max_records: int) -> list[Record]:
        """Read what is new. The group's affairs come first, so that no record of a lost place is returned."""
        while True:
            if self._membership is not None:
                self._membership.keep()
            records = self._fetch(max_records)
            left_s = deadline - time.monotonic()
            if records or left_s <= 0:
                return records
            self._wait(left_s)

    def _wait(self, left_s: float) -> None:
        positions = {place: self._places()[place] for place in self._turns}
        if self._membership is None:
            self._store.wait(positions, None, left_s)
        else:
            self._store.wait(positions, self._membership.known, min(left_s, self._membership.next_duty_s()))

    def _fetch(self, max_records: int) -> list[Record]:
        positions = self._places()
        mine = self.assignment()
        self._turns = [place for place in self._turns if place in mine]
        fetched = self._store.fetch([(place, positions[place]) for place in self._turns], max_records, self._max_bytes)
        positions.update(fetched.positions)
        # Whoever was served goes to the end of the queue.
        self._turns = self._turns[fetched.served :] + self._turns[: fetched.served]
        return fetched.records

    def _commit_alone(self, group: str, offsets: Mapping[Place, Committed]) -> None:
        def check(found: Group) -> Group:
            if found.members and offsets:
                raise not_held(group, next(iter(offsets)))
            return found

        self._store.change_group(group, check, offsets)
