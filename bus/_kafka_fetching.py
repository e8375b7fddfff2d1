"""Fetching from a Kafka cluster's brokers: what is asked for, what is held, what is handed out.

Records are not read ahead while nobody asks for them, except in a stream: a reader that comes back for what follows finds the
next answer on its way. Questions that wait at a broker for new records have a connection of their own and outlast the `poll`
that asked them, so that an idle reader asks twice a second however often it polls, and a seek never waits behind an older one.

Everybody reads *uncommitted*. Refold uses no transactions; a reader of committed records would stop before the first record of
a foreign transaction that hangs, and a client could stall a federation with one. What the log means is decided by its chain.

Bytes held and asked for stay within the consumer's bound, but a broker sends at least one batch, however large (about 1 MB).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import kafka.errors

from refold.bus._kafka_answers import Held, fetch_request
from refold.bus._kafka_client import ANSWER_S, KafkaClient
from refold.bus._kafka_errors import Again, NoAnswer, Unanswered, refused
from refold.bus._kafka_places import EARLIEST, LATEST, offset_at
from refold.bus._kafka_reply import Reply
from refold.bus._store import Fetched
from refold.bus.contract import Place, Record
from refold.schemas.errors import BusError

FIRST_ASK_BYTES = 1 << 20
"""How much is asked for after a seek; each further question of a stream asks for twice as much, up to half the bound."""

LONGEST_WAIT_S = 0.5
"""How long a broker keeps a question for which it has nothing."""

FIND_S = 0.5
LEADERLESS_S = 0.1
"""How long a place that had no leader is left alone."""

RETRY_S = 0.02

E = kafka.errors
_ELSEWHERE = (E.UnknownTopicOrPartitionError.errno, E.UnknownTopicIdError.errno)


@dataclass(slots=True)
class Flight:
    """A question under way to one broker: what is asked for, from where on, and at most how much."""

    reply: Reply
    offsets: dict[Place, int]
    asked_bytes: int
    sent_at: float = field(default_factory=time.monotonic)


class Lane(NamedTuple):
    """A connection to a broker: the patient one is for questions that wait for records, the other for those that do not."""

    node: int
    patient: bool


class Fetching:
    """The fetches of one consumer. Belongs to one thread; `wake` may be set by the network's."""

    def __init__(self, client: KafkaClient, max_bytes: int) -> None:
        self.wake = threading.Event()
        self._client = client
        self._max_bytes = max_bytes
        self._ask_bytes = FIRST_ASK_BYTES
        self._held: dict[Place, Held] = {}
        self._flights: dict[Lane, Flight] = {}
        self._ends: dict[Place, int] = {}
        self._looked: dict[Place, tuple[int, float]] = {}
        self._leaderless: dict[Place, float] = {}
        self._failing_since: float | None = None
        self._retry_at = 0.0

    @property
    def in_flight_bytes(self) -> int:
        """Bytes held and asked for."""
        held = sum(held.size_bytes for held in self._held.values())
        return held + sum(flight.asked_bytes for flight in self._flights.values())

    @property
    def pause_s(self) -> float:
        """Seconds after which a question that found no broker is asked again."""
        return self._retry_at - time.monotonic()

    def take(self, positions: Sequence[tuple[Place, int]], max_records: int, max_bytes: int) -> Fetched:
        """Hand out what is held, in this order of places, up to one of the bounds; the first record ignores bytes."""
        self._drop_others(dict(positions))
        records: list[Record] = []
        after: dict[Place, int] = {}
        served, size = 0, 0
        for number, (place, _) in enumerate(positions, 1):
            held = self._held.get(place)
            if held is None:
                continue
            full = False
            while (record := self._peek(held, bool(records))) is not None:
                full = len(records) >= max_records or bool(records and size + record.size_bytes > max_bytes)
                if full:
                    break
                records.append(record)
                size += record.size_bytes
                held.take()
                served = number
            after[place] = held.position
            if full:
                break
            del self._held[place]
        return Fetched(records, after, served)

    def _peek(self, held: Held, found_some: bool) -> Record | None:
        try:
            return held.peek()
        except BusError:
            if found_some:
                return None  # What precedes the damage is handed out first; the next call comes to it again.
            raise

    def _drop_others(self, wanted: dict[Place, int]) -> None:
        for place, held in list(self._held.items()):
            if wanted.get(place) != held.position:
                del self._held[place]
                self._ask_bytes = FIRST_ASK_BYTES

    def ask(self, positions: Sequence[tuple[Place, int]], wait_s: float = 0.0, *, patient: bool = False) -> None:
        """Ask for what is neither held nor under way.

        Parameters
        ----------
        wait_s
            How long the brokers may wait until there is something.
        patient
            Whether the question may stay there longer than that.
        """
        if time.monotonic() < self._retry_at:
            return
        leaders = self._leaders([place for place, _ in positions])
        if not leaders:
            return
        # Questions that wait at their brokers for records hold what they ask for: together never so much that one more broker,
        # where records are, could not be asked.
        most = max(1, self._max_bytes // (1 + len(set(leaders.values()))))
        wanted: dict[Lane, dict[Place, int]] = {}
        for place, position in positions:
            if place in self._held or place not in leaders:
                continue
            lane = self._lane_for(leaders[place], place, position, patient=patient)
            if lane is not None:
                wanted.setdefault(lane, {})[place] = position
        for lane, offsets in wanted.items():
            self._send(lane, offsets, LONGEST_WAIT_S if lane.patient else min(wait_s, LONGEST_WAIT_S), most)

    def _leaders(self, places: Sequence[Place]) -> dict[Place, int]:
        """Return who leads each place. One without a leader keeps no other from being read; if all are, that is a failure."""
        leaders: dict[Place, int] = {}
        trouble: BaseException | None = None
        for place in places:
            if time.monotonic() < self._leaderless.get(place, 0.0):
                continue
            try:
                leaders[place] = self._client.leader(place, FIND_S)
            except Again as error:
                self._leaderless[place] = time.monotonic() + LEADERLESS_S
                trouble = error
            except NoAnswer as error:
                trouble = error
                break  # Nobody answers: asking for each place in turn would only take its time.
        if places and not leaders:
            self._failed(trouble or Again("no partition has a leader"))
        return leaders

    def _lane_for(self, node: int, place: Place, position: int, *, patient: bool) -> Lane | None:
        """Return where to ask, None if that has been done or must wait for an answer."""
        slow, quick = Lane(node, True), Lane(node, False)
        under_way = (slow, quick) if patient else (quick,)
        if any(self._flights[lane].offsets.get(place) == position for lane in under_way if lane in self._flights):
            return None
        return next((lane for lane in under_way if lane not in self._flights), None)

    def _send(self, lane: Lane, offsets: dict[Place, int], wait_s: float, most_bytes: int) -> None:
        room = self._max_bytes - self.in_flight_bytes
        if room <= 0 and (self._held or self._flights):
            return
        size = max(1, min(self._ask_bytes, most_bytes, max(room, 1)))
        try:
            node = self._client.second_line(lane.node) if lane.patient else lane.node
        except Again as error:
            self._failed(error)
            return
        reply = self._client.send(fetch_request(offsets, size, wait_s), node, wait_s + ANSWER_S, self.wake.set)
        self._flights[lane] = Flight(reply, offsets, size)

    def read_on(self, positions: Sequence[tuple[Place, int]]) -> None:
        """Ask for what follows, where more is known to be there and half of the bound is free."""
        more = [(place, at) for place, at in positions if at < self._ends.get(place, 0)]
        if more and 2 * self.in_flight_bytes <= self._max_bytes:
            self.ask(more)

    def looked_since(self, began: float, positions: Sequence[tuple[Place, int]]) -> bool:
        """Whether each place's broker was asked since then, and said that there is nothing."""
        return all(
            self._looked.get(place, (-1, 0.0))[0] == position and self._looked[place][1] >= began
            for place, position in positions
        )

    def collect(self) -> dict[Place, tuple[int, int]]:
        """Take in what was answered; return places that go on elsewhere, each with where it stood and where it goes on.

        Raises
        ------
        NotFoundError
            A topic was deleted.
        BusError
            A broker refused, or none answered for `ANSWER_S`.
        """
        moved: dict[Place, tuple[int, int]] = {}
        for lane, flight in list(self._flights.items()):
            if not flight.reply.is_there:
                continue
            del self._flights[lane]
            try:
                response = flight.reply.result(0)
            except (Again, Unanswered) as error:
                for place in flight.offsets:
                    self._client.forget(place.topic)
                self._failed(error)
                continue
            except E.KafkaError as error:
                raise refused("reading", error, account=self._client.account) from error
            moved |= self._land(flight, response)
        return moved

    def _land(self, flight: Flight, response: Any) -> dict[Place, tuple[int, int]]:
        parts = [(Place(topic.topic, part.partition_index), part) for topic in response.responses for part in topic.partitions]
        brought = sum(len(part.records or b"") for _, part in parts)
        if brought:
            self._ask_bytes = min(2 * self._ask_bytes, max(self._max_bytes // 2, 1))
        moved: dict[Place, tuple[int, int]] = {}
        for place, part in parts:
            offset = flight.offsets[place]
            if part.error_code:
                moved |= self._refused(place, offset, part.error_code)
                continue
            self._failing_since = None
            self._looked[place] = offset, flight.sent_at
            self._ends[place] = part.high_watermark
            if part.records and place not in self._held:
                self._held[place] = Held(place, offset, part.high_watermark, memoryview(part.records))
            elif not brought and part.high_watermark > offset:
                # Nothing is left of what was there: the cleaner took it. A broker reads up to the end it tells, so an answer
                # that is empty altogether means that; one that is full may only have had no room for this place.
                moved[place] = offset, part.high_watermark
        return moved

    def _refused(self, place: Place, offset: int, code: int) -> dict[Place, tuple[int, int]]:
        if code == E.OffsetOutOfRangeError.errno:
            return self._back_in_range(place, offset)
        error = E.for_code(code)()
        if code in _ELSEWHERE:
            self._client.look_up(place.topic)  # NotFoundError if it is gone.
        elif not isinstance(error, E.RetriableError):
            raise refused("reading", error, account=self._client.account, topic=place.topic, partition=place.partition)
        self._client.forget(place.topic)
        self._failed(error)
        return {}

    def _back_in_range(self, place: Place, offset: int) -> dict[Place, tuple[int, int]]:
        begin = offset_at(self._client, place, EARLIEST)
        if offset < begin:
            return {place: (offset, begin)}
        end = offset_at(self._client, place, LATEST)
        if offset <= end:
            return {}  # A new leader that just learns how far it may tell.
        hint = "the log is shorter than the reader remembers: it lost its tail, or is another log"
        raise BusError("no such offset", topic=place.topic, partition=place.partition, offset=offset, end_offset=end, hint=hint)

    def _failed(self, error: BaseException) -> None:
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        self._retry_at = now + RETRY_S
        if now - self._failing_since >= ANSWER_S:
            self._failing_since = None
            raise self._client.no_answer("reading", ANSWER_S, error) from error
