"""Parcels: records of one place that travel as one batch, and what a broker may say to one."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import kafka.errors
from kafka.protocol.producer import ProduceRequest

from refold.bus._kafka_batches import HEADER, Sender, encode_batch
from refold.bus._kafka_errors import refused
from refold.bus._kafka_reply import Reply
from refold.bus._kafka_topics import MAX_MESSAGE_BYTES
from refold.bus._producer import QueueDelivery
from refold.bus._store import Draft
from refold.bus.contract import Place
from refold.schemas.errors import BusError, ConfigurationError, RefoldError

PRODUCE_S = 15.0
"""How long a broker may take to acknowledge; then its connection is given up, and the parcel is sent again over another."""

E = kafka.errors
_LOST_COUNT = (
    E.OutOfOrderSequenceNumberError.errno,
    E.UnknownProducerIdError.errno,
    E.InvalidProducerEpochError.errno,
    E.DuplicateSequenceNumberError.errno,
)


@dataclass(slots=True)
class Parcel:
    """Records of one place that travel as one batch."""

    place: Place
    parts: list[bytes] = field(default_factory=list)
    deliveries: list[QueueDelivery] = field(default_factory=list)
    size_bytes: int = HEADER.size
    record_bytes: int = 0
    first_ms: int = 0
    last_ms: int = 0
    batch: bytearray | None = None
    reply: Reply | None = None

    def add(self, parts: list[bytes], draft: Draft, delivery: QueueDelivery) -> None:
        """Put a record in."""
        self.parts += parts
        self.size_bytes += sum(map(len, parts))
        self.record_bytes += draft.size_bytes
        self.last_ms = max(self.last_ms, draft.timestamp_ms)
        self.deliveries.append(delivery)

    def seal(self, sender: Sender, sequence: int) -> None:
        """Number its records, once and for all."""
        self.batch = encode_batch(self.parts, len(self.deliveries), (self.first_ms, self.last_ms), sender, sequence)
        self.parts = []


@dataclass(slots=True)
class Lane:
    """One place's parcels, in order: first those under way, then those that wait, the last of which may still be open."""

    parcels: deque[Parcel] = field(default_factory=deque)
    next_sequence: int = 0
    acknowledged_at: float = -math.inf
    in_trouble: bool = False
    """A parcel is to be sent again: nothing behind it goes out until all that is under way came back."""


def size_bound(draft: Draft) -> int:
    """Return at most how large a record is when it is encoded: its bytes, and a length of up to five for each part."""
    return draft.size_bytes + 32 + 10 * len(draft.headers)


def produce_request(parcel: Parcel) -> Any:
    """Return the request that sends a sealed parcel; it is acknowledged by all replicas in sync."""
    topic = ProduceRequest.TopicProduceData
    part = topic.PartitionProduceData(index=parcel.place.partition, records=parcel.batch)
    return ProduceRequest(
        transactional_id=None,
        acks=-1,
        timeout_ms=int((PRODUCE_S - 2) * 1000),
        topic_data=[topic(name=parcel.place.topic, partition_data=[part])],
        max_version=12,
    )


def refusal(parcel: Parcel, code: int, error: Exception, said: str | None, account: str | None) -> RefoldError:
    """Return the error for a parcel that no repetition gets through."""
    where = {"topic": parcel.place.topic, "partition": parcel.place.partition}
    if code in _LOST_COUNT:
        hint = "read the log's end before deciding what to send again"
        return BusError(f"the broker lost count of what this producer sent ({type(error).__name__})", hint=hint, **where)
    if code in (E.MessageSizeTooLargeError.errno, E.RecordListTooLargeError.errno):
        hint = f"set max.message.bytes of the topic to {MAX_MESSAGE_BYTES}, as Refold does when it makes one"
        return ConfigurationError("the topic takes no records as large as Refold's", hint=hint, **where)
    if said and not isinstance(error, E.AuthorizationError):
        return BusError(f"the broker refused: {said}", hint="see the broker's log for why", **where)
    return refused("sending", error, account=account, **where)
