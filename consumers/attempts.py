"""Attempts at decoding that nobody saw the end of: what tells an update that ends its reader from a process that was killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from refold.bus.contract import Bus, Place
from refold.bus.ranges import records_in
from refold.schemas.canonical import decode
from refold.schemas.checks import Attempted, Checked
from refold.schemas.errors import InvalidRecord

MAX_ATTEMPTS = 3
"""Crashes over one update after which it is judged `poison` undecoded."""

Source = tuple[int, int]


@dataclass(slots=True)
class Attempts:
    """For each update that was begun: which lives of which members began it, and where `checked` told so first.

    A life is a run of a process. One that begins again because the bus failed did not crash over the update, and counts once.
    """

    _begun: dict[Source, tuple[int, set[str]]] = field(default_factory=dict)

    def note(self, fact: Attempted, checked_offset: int) -> None:
        """Take note that an update was begun."""
        self._begun.setdefault((fact.partition, fact.offset), (checked_offset, set()))[1].add(fact.member)

    def end(self, source: Source) -> int | None:
        """Forget an update whose result is there; return where it was begun first."""
        found = self._begun.pop(source, None)
        return found[0] if found else None

    def crashes(self, source: Source, member: str) -> int:
        """Return how many lives other than this one began an update and did not end it."""
        return len(self._begun[source][1] - {member}) if source in self._begun else 0

    def first_offset(self, source: Source, default: int) -> int:
        """Return where `checked` told first that an update was begun."""
        return self._begun[source][0] if source in self._begun else default

    def needed(self) -> Iterator[int]:
        """Yield the offsets of `checked` that must be read again to know this much."""
        return (first for first, _ in self._begun.values())

    def drop(self, judged: Callable[[Source], bool]) -> None:
        """Forget what was judged."""
        self._begun = {source: begun for source, begun in self._begun.items() if not judged(source)}


def read_attempts(bus: Bus, topic: str, first: int) -> Attempts:
    """Return what `checked` tells from an offset on."""
    place = Place(topic, 0)
    attempts = Attempts()
    for record in records_in(bus, place, first, bus.end_offset(place) - 1):
        try:
            fact: Checked | Attempted = decode(record.value or b"", Checked, Attempted)
        except InvalidRecord:
            continue
        if isinstance(fact, Attempted):
            attempts.note(fact, record.offset)
        else:
            attempts.end((fact.partition, fact.offset))
    return attempts
