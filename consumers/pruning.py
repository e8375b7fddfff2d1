"""Pruning: payloads of old rounds go, by policy. Detection does it, since it writes the log.

In this order:

1. What may go is worked out from the log: in each partition all below the first chunk that is still needed. Nothing changes.
2. `DeltasPruned` is committed: which rounds, and up to which offset of each partition. A crash after this: whoever takes over
   finds it in the log and goes on with 3.
3. The records are deleted. Idempotent.

Pruned are accepted deltas, features too large for a verdict, and evidence of what was refused until the last of the rounds
closed. The verdicts stay, for they are the log, and in them what travels inline: small deltas and small features. The initial
state lies in `deltas` too: nothing is pruned before its snapshot was read back whole. A delta may go once its round is made, so
that only an audit would ever read it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from refold.bus.contract import Bus, Place, Record
from refold.bus.ledger import Entry, LedgerReader
from refold.bus.ranges import records_in
from refold.bus.topics import Topics
from refold.producers.history import History
from refold.schemas.canonical import decode
from refold.schemas.checks import Quarantined
from refold.schemas.commits import Position
from refold.schemas.erasure import ChangePruning, DeltasPruned, Pruned, PruningChanged
from refold.schemas.errors import IntegrityError, InvalidRecord, NotFoundError
from refold.schemas.events import Genesis, RoundClosed, UpdateAccepted, UpdateRejected
from refold.schemas.payload import Payload, chunk_digest

DELTAS, FEATURES, QUARANTINE = "deltas", "features", "quarantine"
QUARANTINED_TYPE = b"refold.Quarantined"


@dataclass(slots=True)
class PruningLog:
    """What the log says of pruning: a fold over `accepted`.

    Parameters
    ----------
    keep_rounds, before_round
        As the newest `PruningChanged` says.
    last
        The newest `DeltasPruned`.
    """

    keep_rounds: int = 0
    before_round: int = 0
    last: DeltasPruned | None = None

    def fold(self, event: object) -> None:
        """Take an event in."""
        match event:
            case PruningChanged():
                self.keep_rounds, self.before_round = event.keep_rounds, event.before_round
            case DeltasPruned():
                self.last = event

    @property
    def done_before(self) -> int:
        """Payloads of rounds below this one are pruned."""
        return self.last.before_round if self.last else 0

    def allowed(self, closed: int) -> int:
        """Return below which round payloads may go, `closed` being the newest that is closed."""
        aged = closed + 1 - self.keep_rounds if self.keep_rounds else 0
        return max(0, min(closed + 1, max(aged, self.before_round)))

    def due(self, closed: int, made: int) -> int:
        """Return below which round payloads go now, or 0. By age some rounds go at once, for it takes a pass over the log."""
        wanted = min(self.allowed(closed), made + 1)
        ordered = min(self.before_round, made + 1)
        several = max(1, self.keep_rounds // 4)
        return wanted if ordered > self.done_before or wanted >= self.done_before + several else 0

    def changed(self, order: ChangePruning, command_id: bytes) -> PruningChanged:
        """Return the event of an order."""
        keep = self.keep_rounds if order.keep_rounds is None else order.keep_rounds
        before = self.before_round if order.before_round is None else order.before_round
        return PruningChanged(keep, before, command_id)


@dataclass(slots=True)
class _Shelf:
    """Payloads of one topic: those that may go, and those still needed."""

    dropped: list[Payload] = field(default_factory=list)
    needed: list[Payload] = field(default_factory=list)


def plan_pruning(bus: Bus, topics: Topics, before_round: int) -> DeltasPruned | None:
    """Work out what goes; None while the initial state is nowhere but in `deltas`."""
    if not _has_initial_snapshot(bus, topics):
        return None
    deltas, features, judged = _shelves(bus, topics, before_round)
    places = [
        *_below(bus, topics.deltas, DELTAS, deltas),
        *_below(bus, topics.features, FEATURES, features),
        *_refused(bus, topics.quarantine, QUARANTINE, judged),
    ]
    return DeltasPruned(before_round, tuple(places))


def carry_out(bus: Bus, topics: Topics, pruned: DeltasPruned) -> None:
    """Delete what an event of the log says is pruned. Idempotent."""
    for part in pruned.places:
        place = Place(f"{topics.federation}.{part.topic}", part.partition)
        if part.next_offset > bus.begin_offset(place):
            bus.delete_records(place, part.next_offset)


def _has_initial_snapshot(bus: Bus, topics: Topics) -> bool:
    history = History(bus, topics)
    try:
        history.refresh()
        history.rebuild(0, start=0, slots=False)
    except (NotFoundError, IntegrityError):
        return False
    finally:
        history.close()
    return True


def _shelves(bus: Bus, topics: Topics, before_round: int) -> tuple[_Shelf, _Shelf, Position]:
    """Return deltas, features, and what was judged once the last of the rounds was closed."""
    deltas, features, judged = _Shelf(), _Shelf(), Position()
    open_: dict[bytes, Payload] = {}
    reader = LedgerReader(bus, topics.accepted)
    try:
        for entry in reader.read_to_end():
            for event in entry.events:
                match event:
                    case Genesis():
                        deltas.dropped.append(event.initial)
                    case UpdateAccepted() if event.payload is not None:
                        open_[event.origin.digest] = event.payload
                    case RoundClosed():
                        shelf = deltas.dropped if event.round < before_round else deltas.needed
                        shelf += [open_.pop(member.digest) for member in event.members if member.digest in open_]
                        judged = entry.commit.position if event.round < before_round else judged
            _sort_features(entry, features, before_round)
    finally:
        reader.close()
    deltas.needed += open_.values()
    return deltas, features, judged


def _sort_features(entry: Entry, features: _Shelf, before_round: int) -> None:
    for event in entry.events:
        if isinstance(event, UpdateAccepted | UpdateRejected) and event.features is not None:
            goes = event.origin.base_round + 1 < before_round
            (features.dropped if goes else features.needed).append(event.features)


def _below(bus: Bus, topic: str, name: str, shelf: _Shelf) -> Iterator[Pruned]:
    """Yield for each partition up to where it goes: below all that is needed, and not beyond what may go."""
    for partition in range(bus.topics()[topic].partitions):
        place = Place(topic, partition)
        gone = [payload.hint for payload in shelf.dropped if payload.hint and payload.hint.partition == partition]
        kept = [payload.hint for payload in shelf.needed if payload.hint and payload.hint.partition == partition]
        end = min([max((hint.last_offset + 1 for hint in gone), default=0), *(hint.first_offset for hint in kept)])
        end = _first_needed(bus, place, end, shelf.needed)
        if end > bus.begin_offset(place):
            yield Pruned(name, partition, end)


def _first_needed(bus: Bus, place: Place, end: int, needed: Iterable[Payload]) -> int:
    """Return the first offset below `end` of a chunk that is needed and not where its hint says, or `end`.

    Hints are no more than that: in a log that was moved by other means, what is needed may lie anywhere.
    """
    wanted = {digest: payload for payload in needed if payload.inline is None for digest in payload.chunks}
    for record in records_in(bus, place, bus.begin_offset(place), end - 1) if wanted else ():
        payload = wanted.get(chunk_digest(record.value or b""))
        if payload is not None and not _is_where_it_says(bus, place.topic, payload):
            return record.offset
    return end


def _is_where_it_says(bus: Bus, topic: str, payload: Payload) -> bool:
    if payload.hint is None:
        return False
    place = Place(topic, payload.hint.partition)
    there = records_in(bus, place, payload.hint.first_offset, payload.hint.last_offset)
    return set(payload.chunks) <= {chunk_digest(record.value or b"") for record in there}


def _refused(bus: Bus, topic: str, name: str, judged: Position) -> Iterator[Pruned]:
    """Yield for each partition up to where all evidence is of updates that a position covers: all of a turn's is, or none.

    By which update it is of and never by when it was written: clocks go wrong, and are put right.
    """
    parts = {part.partition: part for part in judged.updates}
    for partition in range(bus.topics()[topic].partitions):
        place = Place(topic, partition)
        begin = end = bus.begin_offset(place)
        for record in records_in(bus, place, begin, bus.end_offset(place) - 1):
            said = _quarantined(record)
            if said is None:
                continue  # A chunk, or damaged: it goes with the record after it.
            if said.partition not in parts or not parts[said.partition].is_judged(said.offset):
                # Its chunks lie right before it, or among another's where a member came to life again.
                end = min(end, said.payload.hint.first_offset) if said.payload.hint else end
                break
            end = record.offset + 1
        if end > begin:
            yield Pruned(name, partition, end)


def _quarantined(record: Record) -> Quarantined | None:
    if record.header("ce_type") != QUARANTINED_TYPE:
        return None
    try:
        return decode(record.value or b"", Quarantined)
    except InvalidRecord:
        return None
