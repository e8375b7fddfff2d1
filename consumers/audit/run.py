"""The audit of a whole federation: both logs side by side, in one pass, then what lies beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from refold.bus.contract import Bus, Place
from refold.bus.ledger import Entry
from refold.bus.topics import Topics
from refold.consumers.audit.chain import ChainScan
from refold.consumers.audit.checkpoints import CheckpointAudit
from refold.consumers.audit.copies import audit_copy
from refold.consumers.audit.findings import CHAIN, Finding, Progress, Summary
from refold.consumers.audit.identity import CHANGES
from refold.consumers.audit.merged import MergedAudit
from refold.consumers.audit.orders import Done, audit_orders
from refold.consumers.audit.replay import ReplayAudit
from refold.consumers.audit.rounds import Made, RoundAudit
from refold.consumers.audit.snapshots import SnapshotAudit
from refold.consumers.audit.sources import SourceAudit
from refold.consumers.audit.verdicts import VerdictAudit
from refold.consumers.pruning import DELTAS
from refold.consumers.sealing import SealingKeys
from refold.schemas.checkpoints import SignedCheckpoint
from refold.schemas.errors import NotFoundError
from refold.schemas.events import ClientErased, ClientKeyed, DeltasPruned, FederationEnded, PruningChanged, RolledBack
from refold.schemas.policies import ModelReported, PolicyChanged

POLICIES = (PolicyChanged, ModelReported)


def silent(what: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that an audit found."""

    findings: tuple[Finding, ...]
    summary: Summary

    @property
    def is_sound(self) -> bool:
        """Whether nothing broken was found; notices do not count."""
        return self.summary.is_sound


class Audit:
    """Audits a federation as it stands, beside its running server; writes nothing.

    `run` yields each finding as it is made; afterwards `summary` holds the counts. Memory: one state, one step and one sum, and
    for each commit, accepted update and client some hundred bytes.

    Parameters
    ----------
    quick
        Read the logs, manifests and commands, but no payloads: no replay, no derivation, no signatures of updates.
    against
        Checkpoints that were kept outside the log, whose signatures hold by the keys that they were kept with.
    copies
        Buses with other copies of the log.
    keys
        What opens sealed updates; without it their rounds cannot be derived again.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        *,
        quick: bool = False,
        against: Sequence[SignedCheckpoint] = (),
        copies: Sequence[Bus] = (),
        keys: SealingKeys | None = None,
    ) -> None:
        if topics.accepted not in bus.topics():
            raise NotFoundError(f"no federation {topics.federation!r} on this bus", hint="make one with `refold init`")
        self._bus = bus
        self._topics = topics
        self._quick = quick
        self._copies = copies
        self._keys = keys or SealingKeys()
        self._replay: ReplayAudit | None = None
        self._done: list[Done] = []
        self.summary = Summary()
        self._checkpoints = CheckpointAudit(topics, self.summary, against)

    def run(self, progress: Progress = silent) -> Iterator[Finding]:
        """Yield what is wrong.

        Raises
        ------
        BusError
            The bus does not answer.
        """
        for finding in self._all(progress):
            self.summary.broken += finding.is_broken
            self.summary.notices += not finding.is_broken
            yield finding

    def report(self, progress: Progress = silent) -> Report:
        """Run the whole audit and return what it found."""
        return Report(tuple(self.run(progress)), self.summary)

    def _all(self, progress: Progress) -> Iterator[Finding]:
        # `rounds` is marked off first, so that `accepted` holds all that it covers, and the snapshots before both.
        snapshots = SnapshotAudit(self._bus, self._topics, self.summary)
        rounds = ChainScan(self._bus, self._topics.rounds)
        keep_from = self._oldest_updates()
        accepted = ChainScan(self._bus, self._topics.accepted)
        verdicts = VerdictAudit(self._topics.accepted, self.summary, keep_from, signatures=not self._quick)
        told = RoundAudit(self._topics, self.summary)
        try:
            yield from self._side_by_side(accepted, rounds, verdicts, told, snapshots, progress)
        finally:
            self._let_go(accepted, rounds)
        yield from verdicts.unsigned()
        for copy in self._copies:
            yield from audit_copy(self._bus, copy, self._topics)
        if told.genesis is None:
            return
        yield from audit_orders(self._bus, self._topics, told.genesis, self._done)
        yield from SourceAudit(self._bus, self._topics, verdicts, self.summary).findings(progress)
        yield from snapshots.findings(told.genesis.schema, told.lineage, progress, load=not self._quick)
        merged = MergedAudit(self._bus, self._topics, self.summary, snapshots.merged)
        yield from merged.findings(told.genesis.schema, told.lineage, progress, load=not self._quick)

    def _side_by_side(
        self,
        accepted: ChainScan,
        rounds: ChainScan,
        verdicts: VerdictAudit,
        told: RoundAudit,
        snapshots: SnapshotAudit,
        progress: Progress,
    ) -> Iterator[Finding]:
        entries = accepted.entries()
        for entry in rounds.entries():
            wanted = entry.commit.position.accepted_index
            while accepted.next_index < wanted and (found := next(entries, None)) is not None:
                yield from self._fold_accepted(found, verdicts, told)
            yield from self._checkpoints.fold_rounds(entry)
            for said in told.fold_rounds(entry):
                yield from self._replayed(said, told, snapshots) if isinstance(said, Made) else (said,)
            progress("logs", *_sum(accepted.progress, rounds.progress))
        for found in entries:
            self.summary.uncovered += found.commit.count
            yield from self._fold_accepted(found, verdicts, told)
            progress("logs", *_sum(accepted.progress, rounds.progress))
        yield from self._checkpoints.findings()
        yield from self._leftovers(told)
        yield from self._chains(accepted, rounds, told)

    def _fold_accepted(self, entry: Entry, verdicts: VerdictAudit, told: RoundAudit) -> Iterator[Finding]:
        yield from verdicts.fold(entry)
        yield from told.fold_accepted(entry)
        self._checkpoints.fold_accepted(entry)
        for index, event in entry.indexed():
            if isinstance(event, (*CHANGES, FederationEnded, ClientKeyed, ClientErased, PruningChanged, RolledBack, *POLICIES)):
                self._done.append((index, entry.offset, event))

    def _replayed(self, made: Made, told: RoundAudit, snapshots: SnapshotAudit) -> Iterator[Finding]:
        if self._quick or told.genesis is None:
            return
        if self._replay is None:
            yield from self._begin_replay(told, snapshots)
        assert self._replay is not None
        yield from self._replay.fold(made)

    def _begin_replay(self, told: RoundAudit, snapshots: SnapshotAudit) -> Iterator[Finding]:
        assert told.genesis is not None
        manifests = dict(snapshots.manifests)
        self._replay = ReplayAudit(
            self._bus,
            self._topics,
            told.genesis,
            told.lineage,
            manifests,
            self.summary,
            self._keys,
            self._announced(),
        )
        yield from self._replay.begin()

    def _leftovers(self, told: RoundAudit) -> Iterator[Finding]:
        """Read what no round asked for: the initial state of a federation without rounds, and updates of the open round."""
        if self._quick or told.genesis is None:
            return
        if self._replay is None:
            yield from self._begin_replay(told, SnapshotAudit(self._bus, self._topics, Summary()))
        assert self._replay is not None
        for member in told.open_updates():
            yield from self._replay.steps.readable(member)
        yield from self._replay.steps.unopened(told.sealing)

    def _chains(self, accepted: ChainScan, rounds: ChainScan, told: RoundAudit) -> Iterator[Finding]:
        for name, scan in (("accepted", accepted), ("rounds", rounds)):
            self.summary.logs[name] = scan.count
            yield from scan.findings
        if told.genesis is None:
            hint = "restore it from a copy" if accepted.count.foreign else "make the federation with `refold init`"
            yield Finding(CHAIN, "the log does not begin with a genesis", hint, self._topics.accepted, 0, 0, 0)

    def _announced(self) -> dict[int, int]:
        """Return for each partition of `deltas` up to which offset the log says that it is pruned."""
        found: dict[int, int] = {}
        places = [Place(self._topics.deltas, p) for p in range(self._bus.topics()[self._topics.deltas].partitions)]
        if not any(self._bus.begin_offset(place) for place in places):
            return found
        scan = ChainScan(self._bus, self._topics.accepted)
        try:
            for entry in scan.entries():
                for event in entry.events:
                    for part in event.places if isinstance(event, DeltasPruned) else ():
                        if part.topic == DELTAS:
                            found[part.partition] = max(part.next_offset, found.get(part.partition, 0))
        finally:
            scan.close()
        return found

    def _oldest_updates(self) -> dict[int, int]:
        partitions = self._bus.topics()[self._topics.updates].partitions
        return {p: self._bus.begin_offset(Place(self._topics.updates, p)) for p in range(partitions)}

    def _let_go(self, *scans: ChainScan) -> None:
        for scan in scans:
            scan.close()
        if self._replay is not None:
            self._replay.close()


def _sum(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]
