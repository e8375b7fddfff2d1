"""Invariant I5 beyond the logs' own word: checkpoints in `rounds`, and those that somebody kept outside.

The chain shows that a log was damaged. It cannot show that all of it was written anew, cut off at a commit, or shown to one
reader and not to another: for that the log is held against checkpoints of its own past. How exactly the first bad event is
known depends on how many are held: it lies behind the largest that still fits and before the smallest that does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from refold.bus.ledger import Entry
from refold.bus.topics import Topics
from refold.consumers.audit.findings import AGAINST, CHECKPOINTS, NOTICE, Finding, Summary
from refold.schemas.checkpoints import Checkpoint, SignedCheckpoint
from refold.schemas.commits import root_hash
from refold.schemas.events import Checkpointed, Genesis
from refold.schemas.merkle import Span, leaf_hash, verify_consistency


@dataclass(slots=True)
class _Kept:
    """A checkpoint from outside, and how much of each log it was found to fit."""

    signed: SignedCheckpoint
    fits_accepted: bool | None = None
    fits_rounds: bool | None = None

    @property
    def said(self) -> Checkpoint:
        return self.signed.checkpoint


class CheckpointAudit:
    """Folds both logs beside the others that do.

    Parameters
    ----------
    against
        Checkpoints that were kept outside the log.
    """

    def __init__(self, topics: Topics, summary: Summary, against: Sequence[SignedCheckpoint] = ()) -> None:
        self._topics = topics
        self._summary = summary
        self._tree = Span()
        self._log_keys: tuple[bytes, ...] = ()
        self._last: Checkpoint | None = None
        self._is_lost = False
        self._rounds_end = (0, root_hash(topics.rounds))
        self._kept = [_Kept(signed) for signed in sorted(against, key=lambda one: one.checkpoint.events)]
        self._events = {kept.said.events for kept in self._kept}

    def fold_accepted(self, entry: Entry) -> None:
        """Take a commit of `accepted` in."""
        if entry.commit.first_index == 0 and entry.events and isinstance(entry.events[0], Genesis):
            self._log_keys = entry.events[0].log_keys
        if len(entry.encoded) != entry.commit.count:
            self._is_lost = True  # Its events cannot be read; the chain says so.
        for data in () if self._is_lost else entry.encoded:
            self._tree.add(leaf_hash(data))
            if self._tree.end in self._events:
                self._hold_against(entry)

    def _hold_against(self, entry: Entry) -> None:
        root = self._tree.root()
        for kept in self._kept:
            if kept.said.events == self._tree.end:
                same_commit = (entry.commit.next_index, entry.hash) == (kept.said.events, kept.said.head)
                kept.fits_accepted = kept.said.root == root and same_commit

    def fold_rounds(self, entry: Entry) -> Iterator[Finding]:
        """Take a commit of `rounds` in, `accepted` having been taken in as far as it covers."""
        self._hold_rounds_against(entry.commit.first_index, entry.commit.previous)
        self._rounds_end = entry.commit.next_index, entry.hash
        found = [(index, event) for index, event in entry.indexed() if isinstance(event, Checkpointed)]
        for index, event in found:
            self._summary.checkpoints += 1
            for what in self._faults(entry, event):
                yield self._at(f"a checkpoint {what}", entry, index)
            self._last = event.signed.checkpoint
        wanted = [entry.commit.next_index - 1] if self._log_keys else []
        if [index for index, _ in found] != wanted:
            what = (
                f"a commit has {len(found)} checkpoints" if len(found) != len(wanted) else "a checkpoint is not the last event"
            )
            yield self._at(f"{what} where genesis asks for {len(wanted)}, as its last event", entry, entry.commit.first_index)

    def _hold_rounds_against(self, index: int, head: bytes) -> None:
        for kept in self._kept:
            if kept.said.rounds_index == index:
                kept.fits_rounds = kept.said.rounds_head == head

    def _faults(self, entry: Entry, event: Checkpointed) -> Iterator[str]:
        said, position = event.signed.checkpoint, entry.commit.position
        if said.federation != self._topics.federation:
            yield f"is of federation {said.federation!r}"
        if not event.signed.is_signed_by(self._log_keys):
            yield "is not signed by a log key that genesis names"
        if (said.events, said.head) != (position.accepted_index, position.accepted_hash):
            yield "is not of the head of `accepted` that its commit covers"
        if (said.rounds_index, said.rounds_head) != (entry.commit.first_index, entry.commit.previous):
            yield "is not of the head of `rounds` that its commit extends"
        if not self._is_lost and self._tree.end == said.events and self._tree.root() != said.root:
            yield f"of {said.events} events has another root than these events have"
        yield from self._breaks(event)

    def _breaks(self, event: Checkpointed) -> Iterator[str]:
        """Yield how a checkpoint does not follow from the one before it."""
        said, last = event.signed.checkpoint, self._last
        before = last.events if last else 0
        if event.previous_events != before:
            yield f"says that it follows one of {event.previous_events} events, and the one before it has {before}"
        elif said.events <= before:
            yield f"of {said.events} events follows one of {before}"
        elif last is None:
            if event.consistency:
                yield "proves that it extends one, and is the first"
        elif not verify_consistency(before, said.events, last.root, said.root, event.consistency):
            yield f"of {said.events} events is not proven to extend the one of {before}"

    def findings(self) -> Iterator[Finding]:
        """Yield how the logs, read to their ends, stand against what was kept outside."""
        self._hold_rounds_against(*self._rounds_end)
        if not self._log_keys:
            what = "genesis names no log key: nobody signs this log"
            hint = "federations made since have one; keep copies of the log elsewhere (`refold export`)"
            yield Finding(CHECKPOINTS, what, hint, self._topics.accepted, severity=NOTICE)
        ours = list(self._believed())
        self._summary.against = len(self._kept)
        self._summary.fitting = sum(bool(kept.fits_accepted and kept.fits_rounds) for kept in ours)
        yield from self._strangers(ours)
        yield from self._contradictions(ours)
        yield from self._parted(ours)
        yield from self._parted_rounds(ours)

    def _believed(self) -> Iterator[_Kept]:
        """Yield the checkpoints that this federation's server signed; only those can accuse it."""
        for kept in self._kept:
            if kept.said.federation == self._topics.federation and kept.signed.is_signed_by(self._log_keys):
                yield kept

    def _strangers(self, ours: list[_Kept]) -> Iterator[Finding]:
        """Say that what was kept is signed by a key that this genesis does not name."""
        if len(ours) < len(self._kept):
            what = f"{len(self._kept) - len(ours)} checkpoints are signed by a key that genesis does not name"
            hint = "the log was made anew under other keys, or they are of another federation of this name"
            yield Finding(AGAINST, what, hint, self._topics.accepted, 0, index=0)

    def _contradictions(self, ours: list[_Kept]) -> Iterator[Finding]:
        for one, other in pairwise(ours):
            if not one.said.agrees(other.said):
                what = f"two signed checkpoints, of {one.said.events} and {other.said.events} events, cannot both be true"
                hint = "whoever holds the log key showed two logs; together the two prove it to anyone"
                yield Finding(AGAINST, what, hint, self._topics.accepted, 0)

    def _parted(self, ours: list[_Kept]) -> Iterator[Finding]:
        """Say where `accepted` parts from the log that was signed, as exactly as what is held can tell."""
        good = max((kept.said.events for kept in ours if kept.fits_accepted), default=0)
        bad = next((kept for kept in ours if not kept.fits_accepted and kept.said.events > good), None)
        if bad is None or self._is_lost:
            return
        if bad.fits_accepted is None:
            what = f"the log ends after {self._tree.end} events, and a checkpoint of {bad.said.events} was signed"
            hint = f"events {self._tree.end} to {bad.said.events - 1} are missing; restore them from a copy"
            yield Finding(AGAINST, what, hint, self._topics.accepted, 0, index=self._tree.end)
            return
        what = f"the first {bad.said.events} events are not those that the server signed; the first {good} are"
        hint = f"the first bad event is {_between(good, bad.said.events)}; `--against` another copy of the log names it exactly"
        yield Finding(AGAINST, what, hint, self._topics.accepted, 0, index=good)

    def _parted_rounds(self, ours: list[_Kept]) -> Iterator[Finding]:
        good = max((kept.said.rounds_index for kept in ours if kept.fits_rounds), default=0)
        bad = next((kept.said for kept in ours if not kept.fits_rounds and kept.said.rounds_index > good), None)
        if bad is None:
            return
        end = self._rounds_end[0]
        if bad.rounds_index > end:
            what = f"the log ends after {end} events, and a signed checkpoint saw {bad.rounds_index}"
            yield Finding(AGAINST, what, "its tail was lost or cut off", self._topics.rounds, 0, index=end)
            return
        what = f"the first {bad.rounds_index} events are not those that a signed checkpoint saw; the first {good} are"
        hint = f"the first bad event is {_between(good, bad.rounds_index)}"
        yield Finding(AGAINST, what, hint, self._topics.rounds, 0, index=good)

    def _at(self, what: str, entry: Entry, index: int) -> Finding:
        return Finding(CHECKPOINTS, what, "who wrote it?", self._topics.rounds, 0, entry.offset, index)


def _between(first: int, end: int) -> str:
    return f"{first}" if end - first == 1 else f"one of {first} to {end - 1}"
