"""Consumers that anyone attaches: typed events of any topic, from genesis or from now on, resumed where they stopped.

They read beside the federation and hold nothing up. Delivery is at least once: the position is stored after the handler
returned, so a consumer that was killed sees the last batch again; `Context.index` (or partition and offset) tells repeats.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from refold.bus.contract import Bus, Committed, Place, Record
from refold.bus.ledger import Entry, LedgerReader
from refold.bus.topics import KEPT, Topics, is_chunk
from refold.schemas.canonical import decode
from refold.schemas.commits import Chain
from refold.schemas.errors import InvalidRecord, PlaceTakenError, UsageError

LEDGERS = ("accepted", "rounds")
GENESIS, NOW = "genesis", "now"


@dataclass(frozen=True, slots=True)
class Context:
    """Where an event lay.

    Parameters
    ----------
    index
        Index of the event in its log (`accepted`, `rounds`); the record's offset in other topics.
    time_ms
        Its writer's wall clock.
    """

    topic: str
    partition: int
    offset: int
    index: int
    time_ms: int


Handler = Callable[[Any, Context], None]


class Subscription:
    """One reader of one topic under a name; several processes with one name share the work or stand by.

    Parameters
    ----------
    name
        The group's name; a reader of the same name goes on where the last one stopped.
    topic
        Short name, such as ``accepted``.
    start
        Where a name that was never used begins: ``genesis`` or ``now``.
    """

    def __init__(self, bus: Bus, topics: Topics, name: str, *, topic: str = "accepted", start: str = GENESIS) -> None:
        if topic not in KEPT:
            raise UsageError(f"no topic {topic!r}", hint=f"there are {', '.join(KEPT)}")
        if start not in (GENESIS, NOW):
            raise UsageError(f"a subscription starts at {GENESIS!r} or {NOW!r}, not {start!r}")
        self._bus = bus
        self._short = topic
        self._topic = f"{topics.federation}.{topic}"
        self._group = f"{topics.federation}.attached.{name}"
        self._start = start
        self._reader: LedgerReader | None = None
        self._moved = False
        self._consumer = bus.consumer(group=self._group)
        self._consumer.subscribe([self._topic], on_assigned=self._resume, on_revoked=self._let_go)

    def poll(self, timeout_s: float = 0.25) -> list[tuple[Any, Context]]:
        """Return new events, waiting up to `timeout_s` for the first.

        Commits that do not extend the log, chunks and records that are no events are passed over.
        """
        records = self._consumer.poll(timeout_s)
        if self._short in LEDGERS:
            batch = self._from_ledger()
        else:
            batch = [found for record in records for found in self._decoded(record)]
        self._moved = self._moved or bool(batch or records)
        return batch

    def at_end(self) -> bool:
        """Whether everything that is in the topic now was delivered."""
        places = self._consumer.assignment()
        reader = self._reader
        if reader is not None:
            return reader.next_offset >= self._bus.end_offset(reader.place)
        return bool(places) and all(self._consumer.position(place) >= self._bus.end_offset(place) for place in places)

    def _resume(self, places: frozenset[Place]) -> None:
        for place in places:
            stored = self._bus.committed(self._group, place)
            if self._short in LEDGERS:
                self._consumer.seek(place, self._bus.end_offset(place))
                self._reader = self._ledger_from(stored)
            elif stored is None and self._start == NOW:
                self._consumer.seek(place, self._bus.end_offset(place))

    def _ledger_from(self, stored: Committed | None) -> LedgerReader:
        if stored is None:
            reader = LedgerReader(self._bus, self._topic)
            for _ in reader.read_to_end() if self._start == NOW else ():
                pass
            return reader
        try:
            said = json.loads(stored.metadata)
            chain = Chain(bytes.fromhex(said["head"]), next_index=said["index"], epoch=said["epoch"])
        except (ValueError, KeyError, TypeError):
            # Somebody's tool moved the group: what the chain was there is found by reading up to it.
            reader = LedgerReader(self._bus, self._topic)
            reader.read_past(stored.next_offset)
            return reader
        return LedgerReader(self._bus, self._topic, chain=chain, next_offset=stored.next_offset)

    def _let_go(self, _places: frozenset[Place]) -> None:
        if self._reader:
            self._reader.close()
        self._reader = None

    def _from_ledger(self) -> list[tuple[Any, Context]]:
        if self._reader is None:
            return []
        return [pair for entry in self._reader.poll(0.0) for pair in self._events(entry)]

    def _events(self, entry: Entry) -> Iterator[tuple[Any, Context]]:
        for index, event in entry.indexed():
            yield event, Context(self._topic, 0, entry.offset, index, entry.commit.time_ms)

    def _decoded(self, record: Record) -> list[tuple[Any, Context]]:
        if record.value is None or is_chunk(record.headers):
            return []
        try:
            event: Any = decode(record.value)
        except InvalidRecord:
            return []
        return [(event, Context(self._topic, record.partition, record.offset, record.offset, record.timestamp_ms))]

    def acknowledge(self) -> None:
        """Store the position: what `poll` returned so far is done with, and no reader of this name gets it again."""
        if not self._moved:
            return
        self._moved = False
        try:
            self._consumer.commit(self._positions())
        except PlaceTakenError:
            return  # Another reader of this name holds the place now; it goes on from the position stored last.

    def _positions(self) -> dict[Place, Committed]:
        if self._reader is None:
            return {place: Committed(self._consumer.position(place)) for place in self._consumer.assignment()}
        chain = self._reader.chain
        said = json.dumps({"head": chain.head.hex(), "index": chain.next_index, "epoch": chain.epoch})
        return {self._reader.place: Committed(self._reader.next_offset, said)}

    def close(self) -> None:
        """Leave the group; what was not stored is delivered again to the next reader of this name."""
        self._let_go(frozenset())
        self._consumer.close()
