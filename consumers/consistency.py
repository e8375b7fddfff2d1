"""Group `consistency`: reads `updates`, writes `checked`. Members share the partitions.

For each update, in order:

1. `Attempted` is acknowledged, for all updates that were read together. A crash after this, before 3, counts as an attempt at
   this update. Those that have such a count are from then on begun one by one, so that only the one that causes crashes goes on
   counting; after too many it is passed over, and detection, which counts the same, judges it undecoded.
2. The update is decoded and inspected. No state changes.
3. `Checked` is sent. A crash after this: the update is inspected again, and detection knows it by its source position.
4. At the end of the batch everything sent is acknowledged. A failed send ends the member, which starts again where `accepted`
   says; a hole in what arrived shows by the back-references.

Where it starts: at `accepted`'s position for each partition, never at the group's own offsets (invariant I8). What is judged
but not deleted yet is passed over with only its chunks noted: an upload that began there may still be under way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import blake3

from refold.bus.clock import Clock
from refold.bus.closing import close_all
from refold.bus.contract import Bus, Committed, Place, Record
from refold.bus.keeping import keeping
from refold.bus.ledger import LedgerReader
from refold.bus.topics import Topics, event_headers, hint_of, is_chunk
from refold.consumers.attempts import MAX_ATTEMPTS, Attempts, read_attempts
from refold.consumers.inspection import Inspector
from refold.consumers.sealing import KeyLackingError, SealingLog
from refold.consumers.window import ChunkWindow
from refold.schemas.canonical import decode, encode
from refold.schemas.checks import NO_OFFSET, Attempted, Checked
from refold.schemas.commits import PartitionPosition
from refold.schemas.errors import InvalidRecord, PlaceTakenError
from refold.schemas.events import Regridded
from refold.schemas.identity import KeyRequest
from refold.schemas.payload import Payload
from refold.schemas.updates import ClientUpdate, Sealing

FETCH_BYTES = 4 << 20
"""Read at once: a few chunks, so that memory follows the model's size and not the number of clients."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What inspection found: the update if it is one, a fault's reason and detail or "", and packed features.

    Parameters
    ----------
    is_request
        It is a client's request for a key; whether it is granted depends on the log.
    """

    update: ClientUpdate | None
    fault: str
    detail: str
    features: bytes | None
    is_request: bool = False


SealingFault = Callable[[str, Sealing | None], str]
"""Says of a client and how it sealed an update why the log does not let that in, or ""."""


def inspect(inspector: Inspector, window: ChunkWindow, record: Record, sealing_fault: SealingFault) -> Finding:
    """Inspect one manifest with its chunks; bad input becomes a finding, anything else raises.

    Parameters
    ----------
    sealing_fault
        Asked where the key that an update names is not here. If the log calls that key good, it is this server that is at
        fault, and the error is raised.
    """
    try:
        update = inspector.open(record.value)
    except InvalidRecord as error:
        if error.reason == "unknown-type" and is_key_request(record.value):
            return Finding(None, "", "", None, is_request=True)
        return Finding(None, error.reason, printable(error.message), None)
    try:
        inspector.check_claims(update.body)
        if update.body.payload is None:
            return Finding(update, "", "", None)
        chunks = _chunks(window, update.body.payload, record)
        return Finding(update, "", "", inspector.examine(update.body, chunks).pack())
    except InvalidRecord as error:
        return Finding(update, error.reason, printable(error.message), None)
    except KeyLackingError as error:
        reason = sealing_fault(update.body.client, update.body.sealing)
        if not reason:
            raise
        return Finding(update, reason, printable(error.message), None)
    finally:
        if update.body.payload is not None:
            window.forget(update.body.payload, record.key)


def is_key_request(value: bytes | None) -> bool:
    """Whether a record is a client's request for a key."""
    try:
        decode(value or b"", KeyRequest)
    except InvalidRecord:
        return False
    return True


def _chunks(window: ChunkWindow, payload: Payload, record: Record) -> Iterator[bytes]:
    if payload.inline is not None:
        return iter((payload.inline,))
    return window.read(payload, hint_of(record))


def printable(text: str, most: int = 400) -> str:
    """Return the text with what does not print replaced, and cut: safe in any log, screen or record."""
    return "".join(c if c.isprintable() else "·" for c in text)[:most]


class Consistency:
    """One member of the group.

    Parameters
    ----------
    member
        A stable name of this member: restarted under the same name, it takes its own place at once.
    life
        Names the run of the process, so that a member that starts again after a failure of the bus is not taken for one that
        crashed over an update; one of its own if "".
    """

    name = "consistency"

    def __init__(self, bus: Bus, topics: Topics, inspector: Inspector, *, member: str, clock: Clock, life: str = "") -> None:
        self._bus = keeping(bus, lambda: self._consumer.stay())
        self._topics = topics
        self._inspector = inspector
        self._member = member
        self._life = f"{life or os.urandom(4).hex()}/{member}"[:200]
        self._clock = clock
        self._accepted = LedgerReader(bus, topics.accepted)
        bounds = (inspector.open_chunks, inspector.open_chunk_bytes)
        self._window = ChunkWindow(self._bus, topics.updates, clock, of_one_writer=bounds)
        self._producer = self._bus.producer()
        self._previous: dict[Place, int] = {}
        self._covered: dict[Place, PartitionPosition] = {}
        self._attempts = Attempts()
        self._sealing = SealingLog()
        self._consumer = bus.consumer(
            group=f"{topics.federation}.consistency", instance=member, max_in_flight_bytes=FETCH_BYTES
        )
        self._consumer.subscribe([topics.updates], on_assigned=self._start_where_the_log_says)

    def step(self, timeout_s: float) -> bool:
        """Inspect what is new; return whether there was anything."""
        records = self._consumer.poll(timeout_s)
        self._learn_lattices(records)
        # 1. The attempts at all that came together, in one go.
        self._announce(records)
        for record in records:
            if is_chunk(record.headers):
                self._window.add(record)
            elif self._is_judged(record):
                self._forget_chunks(record)
            else:
                self._check(record)
        if records:
            # 4. Acknowledged before anything is said of progress.
            self._producer.flush()
            self._show_progress()
        return bool(records)

    def _start_where_the_log_says(self, places: frozenset[Place]) -> None:
        """Pass over what the log has judged, but read from the beginning: chunks of open uploads may lie before it.

        Detection deletes what no open upload needs, so the beginning is near.
        """
        self._read_log()
        position = self._accepted.chain.position
        self._attempts = read_attempts(self._bus, self._topics.checked, position.checked)
        covered = {part.partition: part for part in position.updates}
        for place in places:
            self._previous[place] = NO_OFFSET
            self._covered[place] = covered.get(place.partition, PartitionPosition(place.partition, 0, ()))
            self._window.begin_anew(place.partition)
            self._consumer.seek(place, self._bus.begin_offset(place))

    def _read_log(self) -> None:
        for entry in self._accepted.read_to_end():
            for event in entry.events:
                self._sealing.fold(event)
                if isinstance(event, Regridded):
                    self._inspector.learn(event.exponents)

    def _learn_lattices(self, records: list[Record]) -> None:
        """Ask the log where an update is on a lattice that is not known: its client knows it from `rounds`."""
        for record in records:
            if not is_chunk(record.headers) and not self._is_judged(record) and self._is_on_unknown(record):
                self._read_log()
                return

    def _is_on_unknown(self, record: Record) -> bool:
        try:
            return self._inspector.open(record.value).body.schema_digest not in self._inspector.lattices
        except InvalidRecord:
            return False

    def _sealing_fault(self, client: str, sealing: Sealing | None) -> str:
        """Ask the log as it is now: whoever was told of a key in `rounds` finds it in `accepted`."""
        self._read_log()
        return self._sealing.fault(client, sealing)

    def _is_judged(self, record: Record) -> bool:
        return self._covered[Place(record.topic, record.partition)].is_judged(record.offset)

    def _announce(self, records: list[Record]) -> None:
        """Say of every update among these that it will be tried, and return once that is durable.

        Those that a crash was over before are said one by one: of a batch that ends in a crash each counts one, and only the
        one that causes it counts on.
        """
        updates = [record for record in records if not is_chunk(record.headers) and not self._is_judged(record)]
        tried = [record for record in updates if not self._crashes(record) and self._can_be_tried(record)]
        for record in tried:
            self._attempt(record)
        if tried:
            self._producer.flush()

    def _can_be_tried(self, record: Record) -> bool:
        """Whether there is a payload to decode; raises as `_require_key`."""
        if not self._has_payload(record):
            return False
        self._require_key(record)
        return True

    def _require_key(self, record: Record) -> None:
        """Raise where this server lacks a key that it should have, before that counts as an attempt at the update."""
        body = self._inspector.open(record.value).body
        try:
            if body.sealing is not None:
                self._inspector.keys.require(body.client, body.sealing.key_id)
        except KeyLackingError:
            if not self._sealing_fault(body.client, body.sealing):
                raise

    def _attempt(self, record: Record) -> None:
        self._send("Attempted", Attempted(record.partition, record.offset, self._life), record)

    def _crashes(self, record: Record) -> int:
        return self._attempts.crashes((record.partition, record.offset), self._life)

    def _check(self, record: Record) -> None:
        place = Place(record.topic, record.partition)
        if self._crashes(record) and self._can_be_tried(record):
            self._attempt(record)
            self._producer.flush()
            if self._crashes(record) >= MAX_ATTEMPTS:
                self._previous[place] = record.offset
                return
        # 2. and 3. The finding.
        first_chunk = first_chunk_of(self._inspector, self._window, record)
        finding = inspect(self._inspector, self._window, record, self._sealing_fault)
        open_from = self._window.open_from(record.partition, record.offset + 1)
        facts = checked(record, finding, self._previous[place], first_chunk, open_from, self._member)
        self._send("Checked", facts, record)
        self._previous[place] = record.offset

    def _has_payload(self, record: Record) -> bool:
        try:
            body = self._inspector.open(record.value).body
            self._inspector.check_claims(body)
        except InvalidRecord:
            return False
        return body.payload is not None

    def _forget_chunks(self, record: Record) -> None:
        """Take note that a judged update waits for nothing."""
        try:
            payload = self._inspector.open(record.value).body.payload
        except InvalidRecord:
            return
        if payload is not None:
            self._window.forget(payload, record.key)

    def _send(self, kind: str, value: object, record: Record) -> None:
        identity = f"{record.partition}/{record.offset}"
        subject = printable((record.key or b"").decode(errors="replace"), 100)
        headers = event_headers(
            kind, source=self._topics.checked, subject=subject, identity=identity, time_ms=self._clock.wall_ms()
        )
        self._producer.send(self._topics.checked, encode(value), partition=0, key=identity.encode(), headers=headers)

    def _show_progress(self) -> None:
        """Store the group's offsets, which only displays read, with who stored them and when."""
        said = f"{self._member} {self._clock.wall_ms()}"
        positions = {place: Committed(self._consumer.position(place), said) for place in self._consumer.assignment()}
        try:
            self._consumer.commit(positions)
        except PlaceTakenError:
            return  # The next poll revokes the places; the log decides where their new holder starts.

    def close(self) -> None:
        """Leave the group."""
        close_all(self._consumer, self._producer, self._accepted, self._window)


def first_chunk_of(inspector: Inspector, window: ChunkWindow, record: Record) -> int:
    """Return the lowest offset that a manifest's chunks take, or its own."""
    try:
        payload = inspector.open(record.value).body.payload
    except InvalidRecord:
        return record.offset
    if payload is None or payload.inline is not None:
        return record.offset
    return window.first_offset(payload, record)


def checked(record: Record, finding: Finding, previous: int, first_chunk: int, open_from: int, member: str) -> Checked:
    """Return the record of a finding."""
    return Checked(
        record.partition,
        record.offset,
        previous,
        first_chunk,
        open_from,
        blake3.blake3(record.value or b"").digest(),
        (record.value or b"") if finding.update or finding.is_request else b"",
        finding.fault,
        finding.detail,
        finding.features,
        member,
    )
