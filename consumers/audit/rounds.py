"""Invariant I3 and the rounds: what `rounds` says is what `accepted` asks for, no more and no less.

What `refold.consumers.aggregation` does is written here again: an audit that shared its rules would share its faults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from refold.bus.ledger import Entry
from refold.bus.topics import Topics
from refold.consumers.audit.findings import CHAIN, RECEIPTS, ROUNDS, Finding, Summary
from refold.consumers.audit.identity import CHANGES, Changed
from refold.consumers.audit.regrids import regrid_faults
from refold.consumers.sealing import SealingLog
from refold.producers.lineage import Lineage
from refold.schemas.events import (
    ClientErased,
    ClientKeyed,
    FederationEnded,
    FederationOpened,
    Genesis,
    Overflowed,
    Receipt,
    Receipts,
    Regridded,
    RolledBack,
    RoundClosed,
    RoundCommitted,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.identity import (
    BY_KEY,
    ClientBanned,
    ClientEnrolled,
    ClientNotice,
    ClientNotices,
    ClientReleased,
    ClientRevoked,
)
from refold.schemas.keys import key_id
from refold.schemas.reasons import REASONS
from refold.schemas.regrid import REGRIDDED
from refold.schemas.rollback import ROLLED_BACK
from refold.state.aggregation import MAX_TOTAL_WEIGHT


@dataclass(frozen=True, slots=True)
class Reopened:
    """The round that a rollback or a regridding opens, due in `rounds` right after the event itself."""

    event: RolledBack | Regridded


Heads = Genesis | RoundClosed | RolledBack | Regridded | Reopened | FederationEnded | ClientKeyed | ClientErased
FOLLOWING = (FederationOpened, RoundCommitted, RolledBack, Regridded, FederationEnded, ClientKeyed, ClientErased)
"""Events of `rounds` that each follow from one of `accepted`."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A member that a round applies, with its verdict and the verdict's index."""

    weight: int
    index: int
    event: UpdateAccepted


@dataclass(frozen=True, slots=True)
class Made:
    """A round as both logs tell it.

    Parameters
    ----------
    closed, members
        None and empty where `accepted` does not have it.
    kept
        Accepted updates that are members and not applied.
    overflowed
        Tensors that `rounds` says the lattice was too fine for; None where it says nothing.
    """

    committed: RoundCommitted
    index: int
    offset: int
    closed: RoundClosed | None
    members: tuple[Applied, ...]
    kept: tuple[Applied, ...]
    overflowed: tuple[int, ...] | None = None


@dataclass(slots=True)
class _Due:
    """What the next commit of `rounds` must say."""

    heads: list[tuple[int, Heads]] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    notices: list[ClientNotice] = field(default_factory=list)


class RoundAudit:
    """Folds both logs side by side: `accepted` up to what a commit of `rounds` covers, then that commit."""

    def __init__(self, topics: Topics, summary: Summary) -> None:
        self._topics = topics
        self._summary = summary
        self._due = _Due()
        self._open: dict[bytes, Applied] = {}
        self._members: dict[int, tuple[tuple[Applied, ...], tuple[Applied, ...]]] = {}
        self._closed = 0
        self._accepted: Entry | None = None
        self._is_lost = False
        self._tells = False
        self.lineage = Lineage()
        self.sealing = SealingLog()
        self.genesis: Genesis | None = None

    def fold_accepted(self, entry: Entry) -> Iterator[Finding]:
        """Take a commit of `accepted` in and yield what is wrong with its rounds."""
        self._accepted = entry
        for index, event in entry.indexed():
            match event:
                case Genesis():
                    self.genesis = self.genesis or event
                    self._due.heads.append((index, event))
                case UpdateAccepted():
                    self._due.receipts.append(Receipt(event.origin.client, event.origin.digest, "accepted"))
                    yield from self._based(index, event, entry)
                    if event.payload is not None:
                        self._open[event.origin.digest] = Applied(event.weight, index, event)
                case _ if isinstance(event, CHANGES):
                    self._due.notices += _notices(event)
                case UpdateRejected() if "duplicate" not in event.reasons:
                    if "equivocation" in event.reasons and self.genesis is not None and self.genesis.identity.required:
                        self._due.notices.append(ClientNotice(event.origin.client, "frozen", None))
                    outcome = REASONS.get(event.reasons[0], "content")
                    self._due.receipts.append(Receipt(event.origin.client, event.origin.digest, outcome))
                case RoundClosed():
                    self._due.heads.append((index, event))
                    yield from self._closing(index, event, entry)
                case RolledBack():
                    self._due.heads += [(index, event), (index, Reopened(event))]
                    self._due.notices += [ClientNotice(client, "banned", None) for client in event.culprits]
                    yield from self._rolling_back(index, event, entry)
                case Regridded():
                    self._due.heads += [(index, event), (index, Reopened(event))]
                    yield from self._regridding(index, event, entry)
                case FederationEnded():
                    self._due.heads.append((index, event))
                case ClientKeyed() | ClientErased():
                    self.sealing.fold(event)
                    self._due.heads.append((index, event))

    def _based(self, index: int, event: UpdateAccepted, entry: Entry) -> Iterator[Finding]:
        """Compare what an update says that it was trained from with what that round was."""
        recorded = self.lineage.parameters_digest(event.origin.base_round)
        if event.statement is not None and recorded not in (None, event.statement.base_digest):
            origin = event.origin
            what = f"an update is accepted that was trained from other parameters than those of round {origin.base_round}"
            place = (self._topics.accepted, 0, entry.offset, index)
            yield Finding(ROUNDS, what, "", *place, origin.client, origin.base_round + 1)

    def _closing(self, index: int, closed: RoundClosed, entry: Entry) -> Iterator[Finding]:
        for what in (*self._faults_of(closed), *self._members_of(closed)):
            yield Finding(ROUNDS, what, "", self._topics.accepted, 0, entry.offset, index, round=closed.round)
        self._closed = closed.round

    def _rolling_back(self, index: int, event: RolledBack, entry: Entry) -> Iterator[Finding]:
        for what in self._faults_of_rollback(event):
            yield Finding(ROUNDS, what, "", self._topics.accepted, 0, entry.offset, index, round=event.round)
        self._closed = event.round

    def _regridding(self, index: int, event: Regridded, entry: Entry) -> Iterator[Finding]:
        for what in regrid_faults(event, self._closed, self.lineage):
            yield Finding(ROUNDS, what, "", self._topics.accepted, 0, entry.offset, index, round=event.round)
        self._closed = event.round

    def _faults_of_rollback(self, event: RolledBack) -> Iterator[str]:
        if event.round != self._closed + 1 or event.abandoned != self._closed:
            yield f"a rollback from round {event.abandoned} opens round {event.round}, round {self._closed} being the newest"
        if event.parent >= event.abandoned:
            yield f"round {event.abandoned} is rolled back to round {event.parent}, which is no earlier one"
        if event.next_plan.round != event.round + 1:
            yield f"round {event.round} plans round {event.next_plan.round}"

    def _faults_of(self, closed: RoundClosed) -> Iterator[str]:
        if closed.round != self._closed + 1:
            yield f"round {closed.round} is closed after round {self._closed}"
        if closed.parent != self._closed:
            yield f"round {closed.round} has the parent {closed.parent} where round {self._closed} is the newest"
        if closed.next_plan.round != closed.round + 1:
            yield f"round {closed.round} plans round {closed.next_plan.round}"
        total = sum(member.weight for member in closed.members)
        if not 1 <= total <= MAX_TOTAL_WEIGHT:
            yield f"the weights of round {closed.round} sum to {total:,}, which is not 1 to {MAX_TOTAL_WEIGHT:,}"

    def _members_of(self, closed: RoundClosed) -> Iterator[str]:
        applied: list[Applied] = []
        kept: list[Applied] = []
        for member in closed.members:
            found = self._open.pop(member.digest, None)
            if found is None:
                yield f"member {member.digest.hex()[:12]} of {member.client!r} was not accepted, or is in an earlier round"
                continue
            if found.event.origin.client != member.client:
                yield f"member {member.digest.hex()[:12]} is {found.event.origin.client!r}'s and is called {member.client!r}'s"
            chosen = Applied(member.weight, found.index, found.event)
            (applied if member.weight else kept).append(chosen)
        self._members[closed.round] = (tuple(applied), tuple(kept))

    def fold_rounds(self, entry: Entry) -> Iterator[Finding | Made]:
        """Take a commit of `rounds` in, `accepted` having been taken in as far as it covers."""
        position = entry.commit.position
        if position.accepted_index <= self.lineage.position.accepted_index:
            what = f"covers `accepted` up to event {position.accepted_index} a second time"
            yield self._at(RECEIPTS, what, entry, entry.commit.first_index)
        lost = self._uncovered(entry)
        if lost is not None:
            yield lost
        due, self._due = self._due, _Due()
        self.lineage.fold(entry)
        if not self._is_lost:
            yield from self._heads(entry, due)
            yield from self._receipts(entry, due.receipts)
            yield from self._told(entry, due.notices)
        for index, event in entry.indexed():
            if isinstance(event, RoundCommitted):
                yield self._made(entry, index, event, due)

    def _uncovered(self, entry: Entry) -> Finding | None:
        """Compare the head that a commit covers with the head that is there."""
        position, held = entry.commit.position, self._accepted
        if self._is_lost:
            return None
        if held is None or held.commit.next_index < position.accepted_index:
            self._is_lost = True
            what = f"`rounds` covers `accepted` up to event {position.accepted_index - 1}, which `accepted` no longer has"
            index = held.commit.next_index if held else 0
            hint = "its tail was lost or replaced; restore it from a copy"
            return Finding(RECEIPTS, what, hint, self._topics.accepted, 0, index=index)
        if (held.commit.next_index, held.hash) != (position.accepted_index, position.accepted_hash):
            events = f"{held.commit.first_index} to {held.commit.next_index - 1}"
            what = f"the commit of events {events} is not the one that `rounds` covers"
            hint = "it was changed, or one of the two logs was replaced"
            return Finding(CHAIN, what, hint, self._topics.accepted, 0, held.offset, held.commit.first_index)
        return None

    def _heads(self, entry: Entry, due: _Due) -> Iterator[Finding]:
        found = [(i, e) for i, e in entry.indexed() if isinstance(e, FOLLOWING)]
        for (index, event), (asked_by, asked) in zip(found, due.heads, strict=False):
            for what in _differences(event, asked):
                round_ = event.round if isinstance(event, RoundCommitted) else None
                what = f"{type(event).__name__} does not follow from event {asked_by} of `accepted`: {what}"
                yield self._at(ROUNDS, what, entry, index, round_=round_)
        for index, event in found[len(due.heads) :]:
            yield self._at(ROUNDS, f"a {type(event).__name__} that `accepted` does not ask for", entry, index)
        for asked_by, asked in due.heads[len(found) :]:
            what = f"event {asked_by} of `accepted`, a {type(asked).__name__}, is covered and has no effect"
            yield self._at(ROUNDS, what, entry, entry.commit.first_index)

    def _receipts(self, entry: Entry, due: list[Receipt]) -> Iterator[Finding]:
        found = [(i, r) for i, event in entry.indexed() if isinstance(event, Receipts) for r in event.receipts]
        self._summary.receipts += len(found)
        owed = Counter(due)
        for index, receipt in found:
            if owed[receipt]:
                owed[receipt] -= 1
                continue
            what = f"a receipt says {receipt.outcome!r} of update {receipt.digest.hex()[:12]}, and no covered verdict does"
            yield self._at(RECEIPTS, what, entry, index, "its client believes what is not so", client=receipt.client)
        for receipt in owed.elements():
            what = f"the verdict {receipt.outcome!r} on update {receipt.digest.hex()[:12]} is covered and has no receipt"
            hint = "its client was never told"
            yield self._at(RECEIPTS, what, entry, entry.commit.first_index, hint, client=receipt.client)

    def _told(self, entry: Entry, due: list[ClientNotice]) -> Iterator[Finding]:
        """Compare what clients are told of themselves with what happened to them."""
        found = [(i, n) for i, event in entry.indexed() if isinstance(event, ClientNotices) for n in event.notices]
        self._tells = self._tells or bool(found)  # Older Refolds wrote no notices.
        owed = Counter(due)
        for index, notice in found:
            if not owed[notice]:
                what = f"a notice says that {notice.client!r} is {notice.what}, and no covered event does"
                yield self._at(RECEIPTS, what, entry, index, client=notice.client)
            owed[notice] -= 1
        for notice in (+owed).elements() if self._tells else ():
            what = f"{notice.client!r} is {notice.what}, which is covered and has no notice"
            yield self._at(RECEIPTS, what, entry, entry.commit.first_index, client=notice.client)

    def open_updates(self) -> list[Applied]:
        """Return the accepted training updates that no closed round holds."""
        return list(self._open.values())

    def _made(self, entry: Entry, index: int, event: RoundCommitted, due: _Due) -> Made:
        self._summary.rounds += 1
        self._summary.void += event.outcome == "void"
        closed = next((asked for _, asked in due.heads if isinstance(asked, RoundClosed) and asked.round == event.round), None)
        applied, kept = self._members.pop(event.round, ((), ()))
        said = [e.tensors for e in entry.events if isinstance(e, Overflowed) and e.round == event.round]
        return Made(event, index, entry.offset, closed, applied, kept, said[0] if said else None)

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
        return Finding(check, what, hint, self._topics.rounds, 0, entry.offset, index, client, round_)


def _notices(event: Changed) -> list[ClientNotice]:
    """Return what a client must be told of a change."""
    match event:
        case ClientEnrolled():
            notice = ClientNotice(event.client, "enrolled", key_id(event.public_key))
            if event.request is None or event.request.kind != BY_KEY:
                return [notice]
            return [notice, ClientNotice(event.client, "revoked", event.request.authority)]
        case ClientRevoked():
            return [ClientNotice(event.client, "revoked", key) for key in event.key_ids]
        case ClientBanned() | ClientReleased():
            what = "banned" if isinstance(event, ClientBanned) else "released"
            return [ClientNotice(event.client, what, None)]
    return []


def _differences(event: Any, asked: Any) -> Iterator[str]:
    """Yield what an event of `rounds` has otherwise than the event of `accepted` that it follows from."""
    names: tuple[str, ...]
    match event, asked:
        case FederationOpened(), Genesis():
            told = ("log_keys", "identity")
            names = ("federation", "schema", "parameters_digest", "state_digest", "optimizer", "first_plan", *told)
        case RoundCommitted(), RoundClosed():
            names = ("round", "parent", "members", "next_plan")
            if (event.outcome == "applied") != (event.step is not None) or event.outcome not in ("applied", "void"):
                yield f"it is {event.outcome!r} and has {'a' if event.step else 'no'} step"
        case RolledBack(), RolledBack():
            names = ("round", "parent", "abandoned", "cause", "reason", "next_plan", "calibration", "culprits", "command_id")
        case RoundCommitted(), Reopened():
            asked = asked.event
            names = ("round", "parent", "next_plan")
            due = REGRIDDED if isinstance(asked, Regridded) else ROLLED_BACK
            if event.outcome != due or event.step is not None or event.slots_step is not None or event.members:
                yield f"a {due} opens a round without members and steps"
        case Regridded(), Regridded():
            names = ("round", "parent", "overflowed", "exponents", "reason", "next_plan")
        case FederationEnded(), FederationEnded():
            names = ("round", "reason", "command_id")
        case ClientKeyed(), ClientKeyed():
            names = ("client", "public_key", "command_id")
        case ClientErased(), ClientErased():
            names = ("client", "key_ids", "reason", "command_id")
        case _:
            yield f"that is a {type(asked).__name__}"
            return
    for name in names:
        if getattr(event, name) != getattr(asked, name):
            yield f"its {name.replace('_', ' ')} differs"
