"""Invariants I1 and I2: one verdict per update, at most one accepted update per client, round and kind.

A commit's position says what is judged after it. A verdict must lie outside the position before and inside the position after;
so with positions that only grow, no update is judged twice. That none is passed over shows where the updates still lie, in
`audit.sources`: a position covers chunks too, so it alone does not tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from refold.bus.ledger import Entry
from refold.consumers.audit.findings import ACCEPTED_ONCE, NOTICE, ONE_VERDICT, SIGNATURES, STANDING, Finding, Summary
from refold.consumers.audit.identity import CHANGES, IdentityAudit
from refold.consumers.pruning import PruningLog
from refold.consumers.sealing import SealingLog
from refold.schemas.commits import PartitionPosition
from refold.schemas.events import (
    ClientErased,
    ClientKeyed,
    DeltasPruned,
    FederationEnded,
    Genesis,
    ModelReported,
    PolicyChanged,
    PruningChanged,
    Regridded,
    RolledBack,
    RoundClosed,
    Unattributed,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.identity import ClientEnrolled, UpdatesRefused


@dataclass(frozen=True, slots=True)
class Row:
    """The sources of one verdict: the first and last manifest, how many there are, and what they are.

    Parameters
    ----------
    of
        ``update``, ``request`` for a key, or ``record`` where nobody is held to it; `digest` is that of the first one.
    names_all
        Whether all of them have the same digest.
    """

    partition: int
    first: int
    last: int
    count: int
    index: int
    digest: bytes
    client: str | None
    of: str = "update"
    names_all: bool = True

    @property
    def is_sound(self) -> bool:
        """Whether so many manifests fit between first and last."""
        alone = self.first == self.last
        return self.first <= self.last and (self.count == 1) == alone and 1 <= self.count <= self.last - self.first + 1


def row_of(index: int, event: Any) -> Row | None:
    """Return the sources of a verdict; None for other events."""
    match event:
        case UpdateAccepted():
            origin = event.origin
            return Row(origin.partition, origin.offset, origin.offset, 1, index, origin.digest, origin.client)
        case UpdateRejected():
            origin = event.origin
            return Row(origin.partition, origin.offset, event.last_offset, event.count, index, origin.digest, origin.client)
        case Unattributed():
            alone = event.count == 1
            found = (event.partition, event.first_offset, event.last_offset, event.count, index, event.digest)
            return Row(*found, None, "record", alone)
        case UpdatesRefused():
            alone = event.count == 1
            found = (event.partition, event.first_offset, event.last_offset, event.count, index, event.digest)
            return Row(*found, event.client, "update", alone)
        case ClientEnrolled() if event.request is not None:
            request = event.request
            return Row(request.partition, request.offset, request.offset, 1, index, request.digest, event.client, "request")
    return None


class VerdictAudit:
    """Folds `accepted`.

    Parameters
    ----------
    keep_from
        For each partition of `updates` the first offset that still exists: verdicts from there on are kept in `rows`, to be
        compared with the records themselves.
    signatures
        Whether to check what clients signed.
    """

    def __init__(self, topic: str, summary: Summary, keep_from: dict[int, int], *, signatures: bool = True) -> None:
        self._signatures = signatures
        self._topic = topic
        self._summary = summary
        self._keep_from = keep_from
        self._identity = IdentityAudit()
        self._ended: int | None = None
        self._by_round: dict[tuple[str, int, str], int] = {}
        self._sealing = SealingLog()
        self._pruning = PruningLog()
        self._last_closed = 0
        self.covered: dict[int, PartitionPosition] = {}
        self.accepted: dict[bytes, int] = {}
        self.rows: dict[int, list[Row]] = {partition: [] for partition in keep_from}

    def fold(self, entry: Entry) -> Iterator[Finding]:
        """Take a commit in and yield what is wrong with it."""
        rows = []
        for index, event in entry.indexed():
            row = row_of(index, event)
            if row is not None:
                rows.append(row)
                if row.last >= self._keep_from.get(row.partition, 0):
                    self.rows.setdefault(row.partition, []).append(row)
            yield from self._event(index, event, entry)
        if entry.commit.first_index or entry.commit.position.updates:
            yield from self._position(entry, rows)

    def _position(self, entry: Entry, rows: list[Row]) -> Iterator[Finding]:
        parts = {part.partition: part for part in entry.commit.position.updates}
        for partition in sorted(self.covered.keys() | parts.keys() | {row.partition for row in rows}):
            before = self.covered.get(partition, PartitionPosition(partition, 0, ()))
            after = parts.get(partition, PartitionPosition(partition, 0, ()))
            yield from self._grown(entry, partition, before, after)
            here = [row for row in rows if row.partition == partition]
            yield from self._judged(entry, here, before, after)
            self.covered[partition] = after

    def _grown(self, entry: Entry, partition: int, before: PartitionPosition, after: PartitionPosition) -> Iterator[Finding]:
        lost = [gap for run in before.judged_above for gap in _not_judged(run, after)]
        if after.next_offset < before.next_offset or lost:
            what = f"the position of updates/{partition} goes back from {before.next_offset} to {after.next_offset}"
            if lost:
                what += f" and forgets {', '.join(f'{first} to {last}' for first, last in lost[:5])}"
            yield self._at(ONE_VERDICT, what, entry, entry.commit.first_index, "what was judged may be judged again")

    def _judged(self, entry: Entry, rows: list[Row], before: PartitionPosition, after: PartitionPosition) -> Iterator[Finding]:
        seen: set[int] = set()
        for row in rows:
            place = f"update {row.partition}/{row.first}"
            if not row.is_sound:
                what = f"{place} to {row.last} cannot be {row.count} updates"
                yield self._at(ONE_VERDICT, what, entry, row.index, client=row.client)
            for offset in {row.first, row.last}:
                place = f"update {row.partition}/{offset}"
                if before.is_judged(offset) or offset in seen:
                    yield self._at(ONE_VERDICT, f"{place} is judged a second time", entry, row.index, client=row.client)
                elif not after.is_judged(offset):
                    what = f"{place} has a verdict and is not covered by its commit's position"
                    yield self._at(ONE_VERDICT, what, entry, row.index, "it would be judged again", client=row.client)
                seen.add(offset)

    def _event(self, index: int, event: Any, entry: Entry) -> Iterator[Finding]:
        match event:
            case Genesis():
                self._identity.begin(event)
                if index:
                    yield self._at(STANDING, "a second genesis", entry, index)
            case UpdateAccepted():
                yield from self._accepted(index, event, entry)
            case UpdateRejected():
                self._summary.rejected[event.reasons[0]] += event.count
                yield from self._standing(self._identity.verdict(event.origin), index, entry, event.origin.client)
                self._identity.rejected(event)
            case UpdatesRefused():
                self._summary.rejected[event.reason] += event.count
                yield from self._standing(self._identity.together(event), index, entry, event.client)
            case Unattributed():
                self._summary.unattributed[event.reason] += event.count
            case RoundClosed():
                self._identity.close(event)
                yield from self._closed(index, event, entry)
            case Regridded():
                self._identity.close(event)
                yield from self._closed(index, event, entry)
            case RolledBack():
                self._identity.close(event)
                self._identity.bar(event.culprits)
                yield from self._rolled_back(index, event, entry)
            case ClientKeyed() | ClientErased():
                self._sealing.fold(event)
                yield from self._standing(self._identity.commanded(index, event.command_id), index, entry, event.client)
            case PolicyChanged() | ModelReported():
                if event.command_id is not None:
                    yield from self._standing(self._identity.commanded(index, event.command_id), index, entry, None)
            case PruningChanged():
                self._pruning.fold(event)
                yield from self._standing(self._identity.commanded(index, event.command_id), index, entry, None)
            case DeltasPruned():
                yield from self._pruned(index, event, entry)
            case _ if isinstance(event, (*CHANGES, FederationEnded)):
                yield from self._changed(index, event, entry)

    def _changed(self, index: int, event: Any, entry: Entry) -> Iterator[Finding]:
        client = None if isinstance(event, FederationEnded) else event.client
        yield from self._standing(self._identity.change(index, event), index, entry, client)
        self._summary.clients = self._identity.count
        if isinstance(event, FederationEnded):
            self._ended = index

    def _pruned(self, index: int, event: DeltasPruned, entry: Entry) -> Iterator[Finding]:
        self._pruning.fold(event)
        allowed = self._pruning.allowed(self._last_closed)
        if event.before_round > allowed:
            what = f"rounds below {event.before_round} are pruned where no operator let more go than those below {allowed}"
            yield self._at(STANDING, what, entry, index)

    def _rolled_back(self, index: int, event: RolledBack, entry: Entry) -> Iterator[Finding]:
        if event.command_id is not None:
            yield from self._standing(self._identity.commanded(index, event.command_id), index, entry, None)
        yield from self._closed(index, event, entry)

    def _closed(self, index: int, event: RoundClosed | RolledBack | Regridded, entry: Entry) -> Iterator[Finding]:
        self._last_closed = event.round
        if self._ended is not None:
            what = f"round {event.round} is closed after the federation ended at event {self._ended}"
            yield self._at(STANDING, what, entry, index, round_=event.round)

    def _standing(self, faults: Iterator[str], index: int, entry: Entry, client: str | None) -> Iterator[Finding]:
        for what in faults:
            yield self._at(STANDING, what, entry, index, client=client)

    def _accepted(self, index: int, event: UpdateAccepted, entry: Entry) -> Iterator[Finding]:
        origin = event.origin
        round_ = origin.base_round + 1
        if event.payload is None:
            self._summary.evaluations += 1
        else:
            self._summary.accepted += 1
        yield from self._standing(self._identity.verdict(origin), index, entry, origin.client)
        yield from self._standing(self._identity.accepted(origin), index, entry, origin.client)
        yield from self._signed(index, event, entry)
        if self._ended is not None:
            what = f"an update is accepted after the federation ended at event {self._ended}"
            yield self._at(STANDING, what, entry, index, client=origin.client, round_=round_)
        fault = self._sealing.fault(origin.client, event.sealing)
        if fault:
            what = f"an update of {origin.client!r} is accepted that was sealed to a key of no standing by then: {fault}"
            yield self._at(STANDING, what, entry, index, client=origin.client, round_=round_)
        first = self.accepted.setdefault(origin.digest, index)
        if first != index:
            what = f"update {origin.digest.hex()[:12]} is accepted a second time, first by event {first}"
            yield self._at(ACCEPTED_ONCE, what, entry, index, client=origin.client, round_=round_)
        first = self._by_round.setdefault((origin.client, round_, origin.kind), index)
        if first != index:
            what = (
                f"a second {origin.kind} update of {origin.client!r} is accepted for round {round_}, the first by event {first}"
            )
            yield self._at(ACCEPTED_ONCE, what, entry, index, client=origin.client, round_=round_)

    def _signed(self, index: int, event: UpdateAccepted, entry: Entry) -> Iterator[Finding]:
        if self._identity.is_open or not self._signatures:
            return
        self._summary.signed += event.statement is not None
        self._summary.unsigned += event.statement is None
        fault = self._identity.signature(event)
        if fault:
            what = f"an accepted update of {event.origin.client!r} {fault}"
            hint = "whoever wrote `accepted` made it up or changed it"
            round_ = event.origin.base_round + 1
            yield self._at(SIGNATURES, what, entry, index, hint, client=event.origin.client, round_=round_)

    def unsigned(self) -> Iterator[Finding]:
        """Say of how many updates the log, read to its end, cannot show that their clients sent them."""
        if self._summary.unsigned:
            what = f"{self._summary.unsigned} accepted updates are from before the log kept what their clients signed"
            hint = "that they were not made up cannot be checked any more"
            yield Finding(SIGNATURES, what, hint, self._topic, severity=NOTICE)

    def _at(
        self,
        check: str,
        what: str,
        entry: Entry,
        index: int,
        hint: str = "",
        *,
        client: str | None = None,
        round_: int | None = None,
    ) -> Finding:
        return Finding(check, what, hint, self._topic, 0, entry.offset, index, client, round_)


def _not_judged(run: tuple[int, int], position: PartitionPosition) -> Iterator[tuple[int, int]]:
    """Yield what of a run of offsets a position does not cover."""
    first, last = max(run[0], position.next_offset), run[1]
    for judged_first, judged_last in position.judged_above:
        if first < judged_first and first <= last:
            yield first, min(last, judged_first - 1)
        first = max(first, judged_last + 1)
    if first <= last:
        yield first, last
