"""Planted bugs: a checker that finds nothing wrong has to show that it finds these.

Each is a small change of one class or function, of the kind that a hurried hand might make, and each names a piece of what the
checker says of it. `BUGS` tells within how many seeds it must be caught.

Not among them: a detection that goes on with a view that a dead member's late commit went past. Of the 419 seeds below 3,000
with a late or repeated commit of `accepted` none meets all that it takes. `test_intake` has that meeting made by hand, and
fails with the bug.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

import refold.bus.payloads
import refold.consumers.intake
from refold.bus.contract import Place, Record
from refold.bus.ledger import Appended, LedgerWriter
from refold.consumers import aggregation, detection
from refold.consumers.branches import Branches
from refold.consumers.consistency import Consistency
from refold.consumers.coverage import Coverage
from refold.consumers.view import LogView
from refold.producers.answers import Answers
from refold.schemas.canonical import encode
from refold.schemas.codec import encode_raw
from refold.schemas.commits import Chain
from refold.schemas.errors import IntegrityError, TryAgainError
from refold.schemas.events import Receipt, Receipts, RoundCommitted, SnapshotTaken
from refold.schemas.layout import Layout
from refold.schemas.payload import describe
from refold.state.aggregation import WeightedMean

Patch = Callable[[Any, str, object], None]


def previous_hash_unchecked(patch: Patch) -> None:
    """Take every commit, whatever it follows."""
    patch(Chain, "_extends", lambda self, commit: True)


def no_de_duplication(patch: Patch) -> None:
    """Take every update for a new one in its time."""
    patch(refold.consumers.intake, "refusal", lambda *_, **_settings: "")


def holes_accepted(patch: Patch) -> None:
    """Believe that nothing lies between two records of `checked`."""
    patch(Coverage, "hole_before", lambda self, previous: None)


def digest_unchecked(patch: Patch) -> None:
    """Take for a chunk what lies in its place and is as long."""

    def records(self: Any, payload: Any, hint: Any) -> Iterator[bytes]:
        place, wanted = Place(self.topic, hint.partition), list(payload.lengths)
        for record in self._records(place, hint.first_offset, hint.last_offset + 1):
            if wanted and record.value is not None and len(record.value) == wanted[0]:
                wanted.pop(0)
                yield record.value

    patch(refold.bus.payloads.PayloadReader, "_read_hinted", records)


def position_ahead(patch: Patch) -> None:
    """Cover what still waits for its verdict."""
    after = Coverage.after
    patch(Coverage, "after", lambda self, judged: after(self, judged | self.pending))


def receipt_before_commit(patch: Patch) -> None:
    """Tell clients of their acceptance as soon as it is decided, before the log holds it."""
    commit = detection._Active._commit

    def hasty(self: Any, events: Any, judged: Any) -> bool:
        happy = tuple(Receipt(item.client, item.digest, "accepted") for item in judged if item.body and not item.reason)
        if happy and self._rounds.lineage.opened is not None:
            writer = LedgerWriter(self._bus, self._rounds.reader, writer="hasty", clock=self._clock)
            writer.append((Receipts(happy),), self._rounds.reader.chain.position)
        return commit(self, events, judged)

    patch(detection._Active, "_commit", hasty)


def snapshot_of_uncommitted_state(patch: Patch) -> None:
    """Write a round's snapshot as soon as its state is there, before `rounds` holds the round."""
    commit = aggregation._Active._commit

    def eager(self: Any, entry: Any, events: list[object]) -> None:
        for made in [event for event in events if isinstance(event, RoundCommitted)]:
            payload = describe(list(encode_raw(self._holding._state.parameters, Layout.of(self._genesis.schema))))
            chain = self._history.rounds.reader.chain
            digests = (made.parameters_digest, made.state_digest)
            taken = SnapshotTaken(made.round, bytes(8), *digests, payload, None, (), chain.next_index, chain.head, 0)
            self._producer.send(self._topics.snapshots, encode(taken), key=str(made.round).encode(), partition=0)
            self._producer.flush()
        commit(self, entry, events)

    patch(aggregation._Active, "_commit", eager)


def float_sum_in_arrival_order(patch: Patch) -> None:
    """Add the cohort's weighted deltas up as halves, one client after the other."""
    add, result = WeightedMean.add, WeightedMean.result

    def adding(self: Any, blocks: Any, exponents: Any, *, weight: int, index: int) -> None:
        blocks = list(blocks)
        for block, integers in blocks:
            tensor = self.schema.tensors[block.tensor]
            if tensor.is_float:
                values = integers * 2.0 ** (exponents[block.tensor] - tensor.exponent)
                halves.setdefault(id(self), {}).setdefault(block.index, []).append((weight, values, block.tensor))
        add(self, blocks, exponents, weight=weight, index=index)

    def resulting(self: Any) -> Any:
        found = result(self)
        for number, parts in halves.pop(id(self), {}).items():
            mean, total = np.float16(0), sum(weight for weight, _, _ in parts)
            for weight, values, _ in parts:
                mean = mean + (values * (weight / total)).astype(np.float16)
            tensor = parts[0][2]
            scale = 2.0 ** (self.schema.tensors[tensor].exponent - found.exponents[tensor]) * total
            found.sums[number] = np.rint(mean.astype("f8") * scale).astype("i8")
        return found

    halves: dict[int, dict[int, list[Any]]] = {}
    patch(WeightedMean, "add", adding)
    patch(WeightedMean, "result", resulting)


def group_offset_as_position(patch: Patch) -> None:
    """Start where the group's own offsets say, not where the log does."""
    start = Consistency._start_where_the_log_says

    def trusting(self: Any, places: frozenset[Place]) -> None:
        start(self, places)
        for place in places:
            stored = self._bus.committed(f"{self._topics.federation}.consistency", place)
            if stored is not None:
                self._consumer.seek(place, max(stored.next_offset, self._bus.begin_offset(place)))

    patch(Consistency, "_start_where_the_log_says", trusting)


def round_made_again(patch: Patch) -> None:
    """Do not look whether a late commit made the round meanwhile."""
    patch(aggregation._Active, "_require_uncovered", lambda self, entry: None)


def deleted_before_commit(patch: Patch) -> None:
    """Delete updates when they are decided, before the log holds it."""
    commit = detection._Active._commit

    def hasty(self: Any, events: Any, judged: Any) -> bool:
        for item in judged:
            self._bus.delete_records(Place(self._topics.updates, item.partition), item.offset + 1)
        return commit(self, events, judged)

    patch(detection._Active, "_commit", hasty)


def lost_tail_unnoticed(patch: Patch) -> None:
    """Do not ask whether `accepted` has the head that `rounds` covers."""
    read = LogView.read_to_end

    def careless(self: Any) -> None:
        try:
            read(self)
        except IntegrityError:
            return

    patch(LogView, "read_to_end", careless)
    patch(aggregation._Active, "_require_covered", lambda self: None)


def commit_counted_before_read_back(patch: Patch) -> None:
    """Take one's own commit for the one that was taken, as soon as it is written."""
    append, send = LedgerWriter.append, LedgerWriter._send_commit

    def hasty(self: Any, events: Any, position: Any) -> Appended:
        own: list[Any] = []

        def sent(data: bytes, commit: Any) -> None:
            send(self, data, commit)
            reader = self._reader
            own.append(reader._take(Record(reader.topic, 0, reader.next_offset, commit.time_ms, None, data, ())))

        self._send_commit = sent
        try:
            append(self, events, position)
        finally:
            del self._send_commit
        return Appended(tuple(own), True)

    patch(LedgerWriter, "append", hasty)


def lost_tail_awaited(patch: Patch) -> None:
    """Wait for the rest of a log that lost its tail, and tell nobody."""

    def waiting(method: Callable[..., None]) -> Callable[..., None]:
        def patient(self: Any) -> None:
            try:
                method(self)
            except IntegrityError as error:
                raise TryAgainError("the log may still come") from error

        return patient

    patch(LogView, "read_to_end", waiting(LogView.read_to_end))
    patch(aggregation._Active, "_require_covered", waiting(aggregation._Active._require_covered))


def evaluation_forgotten(patch: Patch) -> None:
    """Let go of an accepted evaluation while its round is still open."""
    patch(Answers, "_evaluation_of", lambda self, digest: 0)


def left_branch_accepted(patch: Patch) -> None:
    """Take an update of a branch that was left for one of the newest round."""
    staleness = Branches.staleness
    patch(Branches, "staleness", lambda self, base: staleness(self, base) or 0)


@dataclass(frozen=True, slots=True)
class Bug:
    """A planted bug.

    Parameters
    ----------
    said
        A piece of what is said of it, each of several alike.
    within
        In so many seeds it is caught.
    first
        The seed to begin with: that of one which needs a rare meeting of faults lies near a seed that is known to have it.
    """

    plant: Callable[[Patch], None]
    said: tuple[str, ...]
    within: int
    first: int = 0

    @property
    def seeds(self) -> range:
        """The seeds that are tried."""
        return range(self.first, self.first + self.within)


BUGS = {
    bug.plant.__name__: bug
    for bug in (
        Bug(previous_hash_unchecked, ("covers", "verdicts on", "is not there", "I11"), 200),
        Bug(no_de_duplication, ("was accepted",), 50),
        Bug(holes_accepted, ("covers",), 1500),
        Bug(digest_unchecked, ("is not the one that it signed",), 1500),
        Bug(position_ahead, ("covers",), 50),
        Bug(receipt_before_commit, ("was told accepted",), 50),
        Bug(snapshot_of_uncommitted_state, ("before the round",), 50),
        Bug(float_sum_in_arrival_order, ("is not what its members make",), 300),
        Bug(group_offset_as_position, ("covers", "no verdict", "I11"), 2000),
        Bug(round_made_again, ("in order, once each",), 1500),
        Bug(deleted_before_commit, ("no verdict", "I11", "covers"), 1500),
        Bug(lost_tail_unnoticed, ("was gone on with",), 1000),
        Bug(left_branch_accepted, ("does not stand on",), 200),
        Bug(commit_counted_before_read_back, ("covers", "I11", "no verdict"), 1500, first=220),
        Bug(lost_tail_awaited, ("nobody refused",), 200),
        Bug(evaluation_forgotten, ("asked again to evaluate",), 1500),
    )
}


@contextmanager
def planted(bug: str) -> Iterator[None]:
    """Run with a bug; with none if the name is empty."""
    with ExitStack() as stack:

        def patch(owner: Any, name: str, value: object) -> None:
            old = owner.__dict__[name]
            setattr(owner, name, value)
            stack.callback(setattr, owner, name, old)

        if bug:
            BUGS[bug].plant(patch)
        yield
