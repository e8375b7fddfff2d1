"""The producer of the Kafka driver: idempotent, and never unsure in silence.

Records of one place wait in a parcel that goes out when it is full, at `flush`, at `close`, or when someone awaits a delivery.
Parcels of a place are numbered in order (the broker's idempotence: producer id and sequence), up to five are under way, and a
parcel that may or may not have arrived is sent again under its number, so that it is there once:

1. A parcel gets the numbers of its records, once and for all.
2. It is sent. A crash, or a broken connection, after this: it is there or not.
3. It is acknowledged, or sent again as it was, before anything behind it.

kafka-python's producer gives a parcel up after its delivery time-out and may still send what was queued behind it, which leaves
a hole. Here what is not acknowledged stays queued as long as the producer lives, and whatever makes an outcome unknown gives it
all up, with the producer's identity.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Self

import kafka.errors
from kafka.protocol.producer import InitProducerIdRequest

from refold.bus._kafka_batches import HEADER, Sender, encode_record
from refold.bus._kafka_client import KafkaClient, close_with
from refold.bus._kafka_errors import Again, NoAnswer, Unanswered, address, check, refused
from refold.bus._kafka_parcels import PRODUCE_S, Lane, Parcel, produce_request, refusal, size_bound
from refold.bus._kafka_topics import MAX_MESSAGE_BYTES, Specs
from refold.bus._producer import QueueDelivery
from refold.bus._store import Draft, make_draft
from refold.bus.contract import MAX_RECORD_BYTES, Headers, Place
from refold.schemas.errors import BusError, RefoldError, TryAgainError, UsageError

FLUSH_S = 30.0
MOST_UNDER_WAY = 5
"""Parcels of one place: so many of a producer's last numbers a broker remembers."""

KNOWN_S = 600.0
QUESTION_S = 3.0
RETRY_S = 0.02

E = kafka.errors
_SEND_AGAIN = (E.CorruptRecordError, E.RetriableError)


class KafkaProducer:
    """Sends records to a Kafka cluster.

    Parameters
    ----------
    wall
        Seconds, for timestamps.
    """

    def __init__(self, client: KafkaClient, specs: Specs, max_in_flight_bytes: int, wall: Callable[[], float]) -> None:
        if max_in_flight_bytes < 1:
            raise UsageError("bytes in flight must be above 0", max_in_flight_bytes=max_in_flight_bytes)
        self._client = client
        self._specs = specs
        self._max_bytes = max_in_flight_bytes
        self._wall = wall
        self._lanes: dict[Place, Lane] = {}
        self._bytes = 0
        self._sender: Sender | None = None
        self._wake = threading.Event()
        self._closed = False
        self._last_trouble = ""
        self._retry_at = 0.0
        self._deadline = 0.0
        # A delivery may be awaited in another thread than the one that sends.
        self._lock = threading.RLock()
        # Who drops a producer without closing it loses its connections with it, so that it can send nothing any more.
        close_with(self, client)

    @property
    def in_flight_bytes(self) -> int:
        """Bytes sent and not yet acknowledged."""
        return self._bytes

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> QueueDelivery:
        """Queue a record, flushing first where it would not fit the bytes in flight. If that raises, it was not queued."""
        with self._lock:
            self._check_open()
            now_ms = int(self._wall() * 1000)
            draft = make_draft(self._specs.get(self._client, topic), key, value, partition, headers, now_ms)
            self._make_room(draft.size_bytes)
            parcel = self._parcel_for(draft)
            if not parcel.deliveries:
                parcel.first_ms = parcel.last_ms = now_ms
            delivery = QueueDelivery(self)
            parts = encode_record(len(parcel.deliveries), now_ms - parcel.first_ms, key, value, draft.headers)
            parcel.add(parts, draft, delivery)
            self._bytes += draft.size_bytes
            if parcel.size_bytes >= MAX_RECORD_BYTES // 2:
                self._deadline = time.monotonic() + QUESTION_S
                self._pump()
            return delivery

    def _make_room(self, size_bytes: int) -> None:
        if not self._bytes or self._bytes + size_bytes <= self._max_bytes:
            return
        self._carry_on(FLUSH_S, lambda: self._bytes == 0 or self._bytes + size_bytes <= self._max_bytes)

    def _parcel_for(self, draft: Draft) -> Parcel:
        """Return the parcel that takes the record: the place's open one, if it has room."""
        lane = self._lanes.setdefault(draft.place, Lane())
        size = size_bound(draft)
        if size + HEADER.size > MAX_MESSAGE_BYTES:
            hint = f"its headers' lengths count too; the bound is {MAX_MESSAGE_BYTES} bytes with them"
            raise UsageError("the record is too large", topic=draft.place.topic, size_bytes=size, hint=hint)
        last = lane.parcels[-1] if lane.parcels else None
        if last is None or last.batch is not None or last.size_bytes + size > MAX_RECORD_BYTES:
            last = Parcel(draft.place)
            lane.parcels.append(last)
        return last

    def flush(self, timeout_s: float = FLUSH_S) -> None:
        """Return once everything sent is acknowledged."""
        with self._lock:
            self._check_open()
            self._carry_on(timeout_s, lambda: self._bytes == 0 and not any(lane.parcels for lane in self._lanes.values()))

    def _carry_on(self, timeout_s: float, is_enough: Callable[[], bool]) -> None:
        self._deadline = deadline = time.monotonic() + timeout_s
        while True:
            self._wake.clear()
            self._pump(everything=True)
            if is_enough():
                return
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                hint = "see whether the brokers run; what was sent stays queued, and a later flush writes it once"
                trouble = f" ({self._last_trouble})" if self._last_trouble else ""
                message = f"not everything was acknowledged within {timeout_s:g} s{trouble}"
                raise TryAgainError(message, bytes=self._bytes, address=address(self._client.brokers), hint=hint)
            # A retry wakes nobody, so its time is waited for.
            self._wake.wait(min(left_s, RETRY_S) if self._is_in_trouble() else left_s)

    def _is_in_trouble(self) -> bool:
        return self._retry_at > time.monotonic() - 1 or any(lane.in_trouble for lane in self._lanes.values())

    def _pump(self, *, everything: bool = False) -> None:
        """Take in acknowledgements and send what may go: full parcels, or all of them.

        Raises
        ------
        RefoldError
            The outcome of something is unknown: everything queued is given up.
        """
        try:
            for lane in list(self._lanes.values()):
                self._take_in(lane)
            if time.monotonic() >= self._retry_at:
                for lane in list(self._lanes.values()):
                    self._send_out(lane, everything)
        except RefoldError as error:
            self._give_up(error)
            raise
        except BaseException as error:
            self._give_up(BusError("sending was cut off", cause=repr(error)))
            raise

    # -- out -----------------------------------------------------------------------------------------------------------------

    def _send_out(self, lane: Lane, everything: bool) -> None:
        under_way = sum(parcel.reply is not None for parcel in lane.parcels)
        # A broker takes any number from a producer that it does not know, or no longer, so that a second parcel could get in
        # before the first. Until a place acknowledged one, and again after a while, there is only one under way.
        is_known = time.monotonic() - lane.acknowledged_at < KNOWN_S
        most = MOST_UNDER_WAY if is_known else 1
        if lane.in_trouble:
            if under_way:
                return
            lane.in_trouble = False
        for parcel in list(lane.parcels):
            if parcel.reply is not None:
                continue
            is_open = parcel is lane.parcels[-1] and parcel.batch is None
            if under_way >= most or (is_open and not everything and parcel.size_bytes < MAX_RECORD_BYTES // 2):
                return
            if not self._send_parcel(lane, parcel):
                return
            under_way += 1

    def _send_parcel(self, lane: Lane, parcel: Parcel) -> bool:
        try:
            node = self._client.leader(parcel.place, self._question_s())
            self._sender = self._sender or self._identify()
        except (Again, Unanswered, NoAnswer) as error:
            self._pause(str(error))
            return False
        except E.KafkaError as said:
            raise refused("sending", said, account=self._client.account, topic=parcel.place.topic) from said
        # 1. Numbers.
        if parcel.batch is None:
            parcel.seal(self._sender, lane.next_sequence)
            lane.next_sequence = (lane.next_sequence + len(parcel.deliveries)) & 0x7FFFFFFF
        # 2. On its way.
        parcel.reply = self._client.send(produce_request(parcel), node, PRODUCE_S, self._wake.set)
        return True

    def _identify(self) -> Sender:
        request = InitProducerIdRequest(
            transactional_id=None, transaction_timeout_ms=60_000, producer_id=-1, producer_epoch=-1, max_version=4
        )
        response = self._client.ask(request, None, self._question_s())
        check(response.error_code)
        return Sender(response.producer_id, response.producer_epoch)

    def _question_s(self) -> float:
        """Return how long a question on the way may take, so that a flush ends in its time."""
        return max(0.05, min(QUESTION_S, self._deadline - time.monotonic()))

    # -- in ------------------------------------------------------------------------------------------------------------------

    def _take_in(self, lane: Lane) -> None:
        while lane.parcels and lane.parcels[0].reply is not None and lane.parcels[0].reply.is_there:
            if not self._acknowledge(lane, lane.parcels[0]):
                break
        for parcel in lane.parcels:
            # Behind one that is to be sent again, whatever was said of the rest is void: it was refused for its number.
            if lane.in_trouble and parcel.reply is not None and parcel.reply.is_there:
                parcel.reply = None

    def _acknowledge(self, lane: Lane, parcel: Parcel) -> bool:
        """Take in the answer for a lane's first parcel; return whether it is done with."""
        assert parcel.reply is not None
        try:
            [answer] = parcel.reply.result(0).responses[0].partition_responses
            code = answer.error_code
        except (Again, Unanswered) as error:
            self._send_again(lane, parcel, str(error))
            return False
        except E.KafkaError as said:
            raise refused("sending", said, account=self._client.account, topic=parcel.place.topic) from said
        if code == 0:
            # 3. Acknowledged.
            for index, delivery in enumerate(parcel.deliveries):
                delivery.settle(answer.base_offset + index)
            self._specs.acknowledge(parcel.place, answer.base_offset + len(parcel.deliveries))
            lane.parcels.popleft()
            lane.acknowledged_at = time.monotonic()
            self._bytes -= parcel.record_bytes
            self._last_trouble = ""
            return True
        kind = E.for_code(code)
        if not issubclass(kind, _SEND_AGAIN):
            raise refusal(parcel, code, kind(), answer.error_message, self._client.account)
        if code == E.UnknownTopicOrPartitionError.errno:
            with suppress(NoAnswer):
                self._client.look_up(parcel.place.topic, self._question_s())  # NotFoundError if it is gone.
        self._send_again(lane, parcel, kind.__name__)
        return False

    def _send_again(self, lane: Lane, parcel: Parcel, why: str) -> None:
        parcel.reply = None
        lane.in_trouble = True
        self._client.forget(parcel.place.topic)
        self._pause(why)

    def _pause(self, why: str) -> None:
        self._last_trouble = why
        self._retry_at = time.monotonic() + RETRY_S

    def _give_up(self, error: RefoldError) -> None:
        """Give everything queued up, and the identity under which some of it may still arrive."""
        cause = error if isinstance(error, BusError) else BusError(f"given up: {error}")
        parcels = list(self._all_parcels())
        self._lanes.clear()
        self._bytes, self._sender = 0, None
        for parcel in parcels:
            for delivery in parcel.deliveries:
                delivery.settle(None, cause)

    def _all_parcels(self) -> Iterator[Parcel]:
        for lane in self._lanes.values():
            yield from lane.parcels

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the producer is closed")

    def close(self) -> None:
        """Flush and let go. What cannot be flushed is given up: its deliveries and this call raise. Idempotent."""
        with self._lock:
            if self._closed:
                return
            try:
                self.flush(FLUSH_S)
            except BaseException as error:
                self._give_up(BusError(f"the producer was closed before this was acknowledged ({error})"))
                raise
            finally:
                self._closed = True
                self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
