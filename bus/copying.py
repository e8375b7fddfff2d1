"""Copying a federation from one bus to another, whatever buses they are.

Every record keeps its offset. So all that names an offset stays true on the copy: hints of payloads, sources of verdicts, the
positions in `accepted` from which a server goes on (invariant I8). And how far a copy has come is the target's own end offset:
a copy that was killed at any instruction goes on there, and one that was complete takes in what came since.

Where the source has no record at an offset (deleted, compacted away, a transaction's marker) the target gets a *filler*: no
value, a chunk's header, a key of its own. Readers pass over it as over any chunk that nobody names. Fillers at the front are
deleted again as they are written; in a compacted topic they all have one key and compaction leaves none.

Record timestamps are the target's, because no bus lets a writer choose them alike; events carry their own in ``ce_time``.

The order makes any prefix of the work a log that reads well, also while the source goes on:

1. `updates` and `checked`, from which detection deletes what is judged, are copied to their ends.
2. The ends are fixed: `snapshots`, then `rounds`, then `accepted`, then all others. So whatever a commit below its end names
   lies below the ends fixed after it.
3. `updates` and `checked` are copied to theirs. If something went from there after 2. (the log as fixed has no verdict on it
   yet), it is done again from 1.: the copy must hold every update that its log still has to judge.
4. What logs name: chunks, quarantine, commands.
5. `accepted`, `rounds`, `snapshots`, in this order. Each names only what came before it.
6. What the source had deleted of `updates` and `checked` before 2. is deleted from the copy: the log as copied has judged it.
7. The chains' heads of both sides are computed and compared.

Nothing else that lies in the target is ever deleted, whatever became of it in the source. Between 1. and 7. the copy says of
itself that it is under way (`refold.bus.copy_place`), and a server refuses it: it would judge again what the log's missing end
has judged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from refold.bus import open_bus, parse_url
from refold.bus._copy_writer import BATCH_BYTES, PlaceWriter
from refold.bus.comparing import LOGS, compare_records, head_at, require_same
from refold.bus.contract import Bus, Place
from refold.bus.copy_place import COMPLETE, PARTIAL, UNDER_WAY, CopyPlace
from refold.bus.ranges import records_in
from refold.bus.topics import KEPT
from refold.schemas.commits import Chain
from refold.schemas.errors import IntegrityError, TryAgainError, UsageError

Progress = Callable[[str, int, int], None]
"""Told a topic, how many offsets of it were copied, and how many are to be."""

JUDGED = ("updates", "checked")
"""Topics from which a running server deletes."""

LAST = ("accepted", "rounds", "snapshots")
ORDER = (*JUDGED, *(topic for topic in KEPT if topic not in (*JUDGED, *LAST)), *LAST)

MOST_PASSES = 20


@dataclass(slots=True)
class Copied:
    """What a copy came to.

    Parameters
    ----------
    records, size_bytes, fillers
        Written by this run; nothing of it lay in the target before.
    ends
        Offset up to which each place was copied.
    heads
        The chain of each log, equal on both sides.
    complete
        Whether the target holds every topic, so that a server may go on there.
    compared
        Records compared afterwards, all equal; None if that was not asked for.
    """

    federation: str
    records: int = 0
    size_bytes: int = 0
    fillers: int = 0
    ends: dict[Place, int] = field(default_factory=dict)
    heads: dict[str, Chain] = field(default_factory=dict)
    complete: bool = False
    compared: int | None = None


def copy_federation(
    source: Bus,
    target: Bus,
    federation: str,
    *,
    topics: Collection[str] = (),
    verify: bool = False,
    progress: Progress | None = None,
) -> Copied:
    """Copy a federation's topics, or go on with a copy, and return what was done.

    Parameters
    ----------
    topics
        Short names of those to copy; all if empty. `accepted` and `rounds` always are.
    verify
        Compare every record afterwards, those of former runs too.

    Raises
    ------
    IntegrityError
        The target holds another log of this name, goes on beyond the source, or was written to by someone else.
    ConfigurationError
        The target has the topics with other settings.
    PlaceTakenError
        Another copy to this target is under way.
    TryAgainError
        The source's server deletes judged updates faster than they can be copied.
    """
    unknown = sorted(set(topics) - set(KEPT))
    if unknown:
        raise UsageError(f"no topic {', '.join(unknown)}", hint=f"there are {', '.join(KEPT)}")
    wanted = {*topics, *LOGS} if topics else set(KEPT)
    if parse_url(source.url)[:2] == parse_url(target.url)[:2]:
        raise UsageError("source and target are the same bus", url=target.url, hint="name another file or bus")
    specs = source.topics()
    target.create_topics([specs[name] for short in KEPT if (name := f"{federation}.{short}") in specs])
    with CopyPlace(target, federation) as place:
        copied = _Copy(source, target, federation, wanted, place, progress or _silent).run()
    if verify:
        copied.compared = _verify(source, target, copied.ends, progress or _silent)
    return copied


def _verify(source: Bus, target: Bus, ends: dict[Place, int], progress: Progress) -> int:
    specs, compared = source.topics(), 0
    for number, (place, end) in enumerate(sorted(ends.items()), 1):
        compared += compare_records(source, target, place, end, compacted=specs[place.topic].compacted)
        progress("comparing", number, len(ends))
    return compared


def export(source_url: str, target_url: str, *, progress: Progress | None = None) -> Copied:
    """Copy the federation that the source's URL names to another bus; see `copy_federation`.

    Raises
    ------
    UsageError
        The URL names no federation.
    """
    federation = parse_url(source_url).federation
    if federation is None:
        raise UsageError("the URL names no federation", url=source_url, hint="write sqlite:FILE?federation=NAME")
    with open_bus(source_url, create=False) as source, open_bus(target_url) as target:
        return copy_federation(source, target, federation, progress=progress)


class _Copy:
    """One run."""

    def __init__(
        self, source: Bus, target: Bus, federation: str, wanted: set[str], place: CopyPlace, progress: Progress
    ) -> None:
        self._source = source
        self._target = target
        self._federation = federation
        self._wanted = wanted
        self._place = place
        self._progress = progress
        self._specs = source.topics()
        self._logs = [f"{federation}.{short}" for short in LOGS]
        self._producer = target.producer(max_in_flight_bytes=2 * BATCH_BYTES)
        self._total: dict[str, int] = {}
        self._copied = Copied(federation)

    def run(self) -> Copied:
        """Copy; the numbers are those of the module's docstring."""
        try:
            for place in self._places(*reversed(ORDER)):
                require_same(self._source, self._target, place, is_log=place.topic in self._logs)
            self._place.mark(UNDER_WAY)
            # 1. to 3.
            begins, self._copied.ends = self._fix_ends()
            # 4. and 5.
            for place in self._places(*ORDER):
                self._copy(place, self._copied.ends[place])
            # 6.
            for place, begin in begins.items():
                self._target.delete_records(place, begin)
            # 7.
            self._compare_heads(self._copied.ends)
            self._copied.complete = self._is_whole()
            self._place.mark(COMPLETE if self._copied.complete else PARTIAL)
        finally:
            self._producer.close()
        return self._copied

    def _places(self, *topics: str) -> Iterator[Place]:
        """Yield the places of those of the topics that are wanted and there."""
        for short in topics:
            name = f"{self._federation}.{short}"
            if short in self._wanted and name in self._specs:
                yield from (Place(name, partition) for partition in range(self._specs[name].partitions))

    def _fix_ends(self) -> tuple[dict[Place, int], dict[Place, int]]:
        """Return where what a server deletes begins, and where every place ends."""
        for _ in range(MOST_PASSES):
            # 1. What a server deletes.
            for place in self._places(*JUDGED):
                self._copy(place, self._source.end_offset(place))
            # 2. The ends, what names before what is named.
            begins = {place: self._source.begin_offset(place) for place in self._places(*JUDGED)}
            ends = {place: self._source.end_offset(place) for place in self._places(*reversed(ORDER))}
            # 3. The rest of what a server deletes.
            lacking = [self._copy(place, ends[place]) for place in self._places(*JUDGED)]
            if not any(lacking):
                return begins, ends
        raise TryAgainError(
            "updates are judged and deleted faster than they are copied",
            topic=f"{self._federation}.updates",
            hint="run it again, at a quieter time or with the server stopped",
        )

    def _copy(self, place: Place, end: int) -> bool:
        """Copy a place up to an offset; return whether something on the way was no longer in the source."""
        at = self._target.end_offset(place)
        writer = PlaceWriter(self._target, self._producer, place, self._specs[place.topic], self._expect(place, end - at))
        writer.drop_front()
        if at >= end:
            return False
        for record in records_in(self._source, place, at, end - 1):
            writer.fill_to(record.offset)
            writer.send(record)
        writer.fill_to(end)
        writer.flush()
        self._copied.records += writer.records
        self._copied.size_bytes += writer.size_bytes
        self._copied.fillers += writer.fillers
        return writer.fillers > 0

    def _expect(self, place: Place, count: int) -> Callable[[int], None]:
        """Return what to call as so many offsets more of a topic are written."""
        before = self._total.get(place.topic, 0)
        self._total[place.topic] = before + max(0, count)
        short = place.topic.removeprefix(f"{self._federation}.")

        def told(written: int) -> None:
            self._place.keep()
            self._progress(short, before + written, self._total[place.topic])

        return told

    def _compare_heads(self, ends: dict[Place, int]) -> None:
        for short in LOGS:
            topic = f"{self._federation}.{short}"
            end = ends[Place(topic, 0)]
            ours, theirs = head_at(self._target, topic, end), head_at(self._source, topic, end)
            if ours.head != theirs.head:
                raise IntegrityError(
                    f"the copied log ends at event {ours.next_index}, the source at event {theirs.next_index}",
                    topic=topic,
                    hint="the target was changed while it was written; copy to a new one",
                )
            self._copied.heads[short] = theirs

    def _is_whole(self) -> bool:
        """Whether the target has all of every topic, wanted or not."""
        self._wanted = set(KEPT)
        return all(
            self._target.end_offset(place) >= self._copied.ends.get(place, self._source.end_offset(place))
            for place in self._places(*ORDER)
        )


def _silent(_what: str, _done: int, _total: int) -> None:
    """Tell nobody."""
