"""The consumer of the Kafka driver."""

from __future__ import annotations

import time
from collections.abc import Mapping

import kafka.errors

from refold.bus._consumer import PlacesConsumer
from refold.bus._kafka_client import ANSWER_S, KafkaClient, close_with
from refold.bus._kafka_errors import Again, Unanswered, check
from refold.bus._kafka_fetching import Fetching
from refold.bus._kafka_group import KafkaMembership
from refold.bus._kafka_member import Identity, commit, first_error
from refold.bus._kafka_places import COORDINATOR_MOVED, EARLIEST, end_at, offset_at, stored_positions
from refold.bus._kafka_topics import Specs
from refold.bus._membership import not_held
from refold.bus._store import check_place
from refold.bus.contract import Committed, Listener, Place, Record, TopicSpec

PATIENT_S = 0.02
"""A `poll` with less time than this takes one look and returns; one with more waits for what comes."""

LOOK_S = 0.25
"""How long a `poll` that has no time waits for the brokers' answer: what is there when it is called, it is to return."""


class KafkaLog:
    """What a consumer asks about its topics, over its own connections."""

    def __init__(self, client: KafkaClient, specs: Specs) -> None:
        self.client = client
        self._specs = specs

    def spec(self, topic: str) -> TopicSpec:
        return self._specs.get(self.client, topic)

    def begin_offset(self, place: Place) -> int:
        return offset_at(self.client, check_place(self.spec(place.topic), place.partition), EARLIEST)

    def end_offset(self, place: Place) -> int:
        place = check_place(self.spec(place.topic), place.partition)
        return end_at(self.client, place, self._specs.acknowledged(place))

    def committed(self, group: str, place: Place) -> Committed | None:
        return stored_positions(self.client, group, place).get(place)

    def close(self) -> None:
        self.client.close()


class KafkaConsumer(PlacesConsumer):
    """Reads from a Kafka cluster."""

    _membership: KafkaMembership | None

    def __init__(
        self, log: KafkaLog, group: str | None, instance: str | None, max_in_flight_bytes: int, session_timeout_s: float
    ) -> None:
        super().__init__(log, group, instance, max_in_flight_bytes, session_timeout_s)
        self._client = log.client
        self._fetching = Fetching(log.client, max_in_flight_bytes)
        self._expected: dict[Place, int] = {}
        # Who drops a consumer without closing it loses its connections and their thread with it.
        close_with(self, log.client)

    @property
    def in_flight_bytes(self) -> int:
        """Bytes held and asked for."""
        return self._fetching.in_flight_bytes

    def _join(self, topics: list[str], on_assigned: Listener, on_revoked: Listener) -> KafkaMembership:
        assert self._group is not None
        return KafkaMembership(
            self._client,
            self._group,
            self._instance,
            self._session_timeout_s,
            topics,
            lambda topic: self._log.spec(topic).partitions,
            on_assigned,
            on_revoked,
            self._fetching.wake.set,
        )

    def _read(self, deadline: float, max_records: int) -> list[Record]:
        """Read what is new. The group's affairs come first, so that no record of a lost place is returned."""
        began = time.monotonic()
        patient = deadline - began >= PATIENT_S
        # Who has no time to wait is told what is there now: that takes one answer.
        look_until = deadline if patient else began + LOOK_S
        while True:
            # Cleared before anything is looked at: what is answered after it must end the wait.
            self._fetching.wake.clear()
            sure = self._membership is None or self._membership.keep()
            records = self._take(max_records) if sure else []
            standing, now = self._standing(), time.monotonic()
            if not standing or self._fetching.looked_since(began, standing):
                look_until = deadline
            until = max(deadline, look_until)
            if records or now >= until:
                return records
            if sure:
                self._fetching.ask(standing, max(0.0, deadline - now) if patient else 0.0, patient=patient)
            self._fetching.wake.wait(self._patience_s(until))

    def _patience_s(self, until: float) -> float:
        """Return how long to wait for an answer before something else is to be done."""
        waits = [until - time.monotonic()]
        if self._membership is not None:
            waits.append(self._membership.next_duty_s())
        if self._fetching.pause_s > 0:
            waits.append(self._fetching.pause_s)
        return max(0.001, min(waits))

    def _standing(self) -> list[tuple[Place, int]]:
        """Where each place goes on, in the order of turns."""
        positions, mine = self._places(), self.assignment()
        self._turns = [place for place in self._turns if place in mine]
        return [(place, positions[place]) for place in self._turns]

    def _take(self, max_records: int) -> list[Record]:
        positions = self._places()
        standing = dict(self._standing())
        for place, (stood, offset) in self._fetching.collect().items():
            if standing.get(place) == stood:
                positions[place] = offset
        fetched = self._fetching.take(self._standing(), max_records, self._max_bytes)
        in_stream = any(standing.get(place) == at for place, at in self._expected.items())
        positions.update(fetched.positions)
        # Whoever was served goes to the end of the queue.
        self._turns = self._turns[fetched.served :] + self._turns[: fetched.served]
        if fetched.records:
            if in_stream:
                self._fetching.read_on(self._standing())
            self._expected = dict(fetched.positions)
        return fetched.records

    def _commit_alone(self, group: str, offsets: Mapping[Place, Committed]) -> None:
        def attempt(left_s: float) -> int:
            try:
                node = self._client.coordinator(group, left_s).prompt
                code = first_error(self._client.ask(commit(Identity(group, None), offsets), node, left_s))
                if code in COORDINATOR_MOVED:
                    raise Again("the coordinator moved")
            except (Again, Unanswered):
                self._client.forget_coordinator(group)
                raise
            if code not in _HAS_MEMBERS:
                check(code)
            return code

        if not offsets:
            return
        code = self._client.persist(attempt, "storing a group's positions", ANSWER_S, group=group)
        if code:
            raise not_held(group, next(iter(offsets)))


_HAS_MEMBERS = (kafka.errors.UnknownMemberIdError.errno, kafka.errors.RebalanceInProgressError.errno)
