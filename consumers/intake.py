"""From `checked` to pending updates: holes filled, attempts counted, everything admitted or refused once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import blake3

from refold.bus.clock import Clock
from refold.bus.contract import Bus, Place, Record
from refold.bus.ranges import records_in
from refold.bus.topics import Topics, is_chunk
from refold.consumers.admission import REVERSIBLE, authentic, final_reason, key_fault, refusal
from refold.consumers.attempts import MAX_ATTEMPTS, Attempts, Source
from refold.consumers.consistency import checked, first_chunk_of, inspect
from refold.consumers.coverage import Coverage
from refold.consumers.evidence import record_at
from refold.consumers.inspection import Inspector
from refold.consumers.pending import Pending
from refold.consumers.roster import Roster
from refold.consumers.standing import Standing
from refold.consumers.window import ChunkWindow
from refold.producers.lineage import LineageReader
from refold.schemas.canonical import decode
from refold.schemas.checks import NO_OFFSET, Attempted, Checked
from refold.schemas.commits import PartitionPosition, Position
from refold.schemas.errors import InvalidRecord
from refold.schemas.identity import KeyRequest
from refold.schemas.updates import ClientUpdate, UpdateBody

MOST_AT_ONCE_BYTES = 8 << 20
"""Manifests that a deadline's look takes in at once: decoded, each may have some ten times its size."""


class Intake:
    """Everything that waits for a verdict, in the order in which it became known.

    Parameters
    ----------
    settle
        Decides the `requests` that wait; called before anything is looked at that lies behind a request of the same client.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        inspector: Inspector,
        roster: Roster,
        rounds: LineageReader,
        clock: Clock,
        *,
        settle: Callable[[], object] = lambda: None,
    ) -> None:
        self._bus = bus
        self._topics = topics
        self._inspector = inspector
        self._roster = roster
        self._rounds = rounds
        self._clock = clock
        self._settle = settle
        self._window: ChunkWindow | None = None
        self._attempts = Attempts()
        self._open_from: dict[int, int] = {}
        self.waiting: dict[Source, Pending] = {}
        self._of_client: dict[str, list[Pending]] = {}
        self._asking: set[str] = set()
        self.holes = 0
        self._everyone_in = -1
        self._ends: dict[int, int] = {}
        self._ends_for = -1
        self.coverage = {
            partition: Coverage(PartitionPosition(partition, 0, ()))
            for partition in range(bus.topics()[topics.updates].partitions)
        }
        self.follow(roster.position)

    def take(self, record: Record) -> None:
        """Take in one record of `checked`; what is not one is passed over: only the groups write there."""
        try:
            fact: Checked | Attempted = decode(record.value or b"", Checked, Attempted)
        except InvalidRecord:
            return
        coverage = self.coverage.get(fact.partition)
        if coverage is None:
            return
        if isinstance(fact, Attempted):
            self._attempted(fact, coverage, record.offset)
            return
        hole = coverage.hole_before(fact.previous)
        if hole is not None:
            self.holes += 1
            self.inspect_range(fact.partition, *hole, checked_offset=record.offset)
        # Only a reader that saw the partition from its beginning knows which uploads are open; detection's own look does not.
        self._open_from[fact.partition] = fact.open_from
        self._learn(fact, coverage, record.offset)

    def inspect_range(self, partition: int, first: int, last: int, *, checked_offset: int, most_bytes: float = math.inf) -> int:
        """Do consistency's work for a range of offsets of `updates` of which nothing is known.

        Ends early once the manifests come to `most_bytes`, and returns to how many they came.
        """
        self._window = self._window or ChunkWindow(self._bus, self._topics.updates, self._clock)
        for lattice in self._roster.branches.lattices:
            self._inspector.learn(lattice)
        coverage, size = self.coverage[partition], 0
        for record in records_in(self._bus, Place(self._topics.updates, partition), first, last):
            if is_chunk(record.headers):
                self._window.add(record)
                continue
            if coverage.is_judged(record.offset) or record.offset in coverage.pending:
                continue
            first_chunk = first_chunk_of(self._inspector, self._window, record)
            finding = inspect(self._inspector, self._window, record, self._roster.sealing.fault)
            fact = checked(record, finding, NO_OFFSET, first_chunk, first_chunk, "detection")
            self._learn(fact, coverage, checked_offset)
            size += len(record.value or b"")
            if size >= most_bytes:
                return size
        coverage.pass_over(last)
        return size

    def inspect_to_ends(self, checked_offset: int, *, most_bytes: int = MOST_AT_ONCE_BYTES) -> bool:
        """Make every update known that is in the topic now, so that no deadline closes over one that came in time.

        Returns whether all are. A flood is taken in bit by bit, each judged before the next, up to where the topic ended when
        this was first asked for the round.
        """
        if self._ends_for != self._roster.plan.round:
            self._ends_for = self._roster.plan.round
            self._ends = {p: self._bus.end_offset(Place(self._topics.updates, p)) for p in self.coverage}
        for partition, coverage in self.coverage.items():
            first, last = coverage.seen_to + 1, self._ends[partition] - 1
            if first <= last:
                most_bytes -= self.inspect_range(partition, first, last, checked_offset=checked_offset, most_bytes=most_bytes)
                if most_bytes <= 0:
                    return False
        self._ends_for = -1
        return True

    def _attempted(self, fact: Attempted, coverage: Coverage, checked_offset: int) -> None:
        source = (fact.partition, fact.offset)
        if coverage.is_judged(fact.offset) or source in self.waiting:
            return
        self._attempts.note(fact, checked_offset)
        if self._attempts.crashes(source, fact.member) >= MAX_ATTEMPTS:
            self._poison(fact, coverage, self._attempts.first_offset(source, checked_offset))

    def _poison(self, fact: Attempted, coverage: Coverage, checked_offset: int) -> None:
        """Give up decoding an update: every earlier attempt at it ended in a crash."""
        record = record_at(self._bus, self._topics.updates, fact.partition, fact.offset)
        value = (record.value if record else None) or b""
        detail = f"{MAX_ATTEMPTS} attempts to decode it ended in a crash"
        digest = blake3.blake3(value).digest()
        known = Checked(
            fact.partition, fact.offset, NO_OFFSET, fact.offset, fact.offset, digest, value, "poison", detail, None, fact.member
        )
        hole = coverage.hole_before(fact.offset - 1)
        if hole is not None and hole[0] <= hole[1]:
            self.inspect_range(fact.partition, *hole, checked_offset=checked_offset)
        self._learn(known, coverage, checked_offset)

    def _learn(self, fact: Checked, coverage: Coverage, checked_offset: int) -> None:
        source = (fact.partition, fact.offset)
        said = self._decoded(fact)
        if said is not None and said.body.client in self._asking and not coverage.is_judged(fact.offset):
            self._settle()
        if not coverage.note(fact.offset):
            return
        begun = self._attempts.end(source)
        item = self._admitted(fact, said, checked_offset if begun is None else min(begun, checked_offset))
        self.waiting[source] = item
        if item.request is not None:
            self._asking.add(item.request.body.client)
        if item.body is not None:
            self._of_client.setdefault(item.client, []).append(item)

    def _admitted(self, fact: Checked, said: ClientUpdate | KeyRequest | None, checked_offset: int) -> Pending:
        if said is None:
            return self._unattributed(fact, checked_offset, fact.fault or "form", fact.detail)
        if isinstance(said, KeyRequest):
            item = self._unattributed(fact, checked_offset, "", f"asks for a key of {said.body.client!r}")
            item.request = said
            return item
        return self._judge_admission(fact, said, checked_offset)

    def _judge_admission(self, fact: Checked, update: ClientUpdate, checked_offset: int) -> Pending:
        digest = update.digest
        source = (fact.partition, fact.offset)
        fault = authentic(self._roster, update, digest, source, len(self.coverage))
        if fault:
            return self._unattributed(fact, checked_offset, fault, f"claims to be {update.body.client!r}")
        body = update.body
        if body.session_index > self._rounds.lineage.next_index or body.base_round > self._rounds.lineage.head:
            self._rounds.read_to_end()
        others = self._of_client.get(body.client, ())
        fault = fact.fault or final_reason(body)
        fault_detail = body.note if fault and not fact.fault else fact.detail
        refused = self._refusal(others, body, digest, source)
        return Pending(
            fact.partition,
            fact.offset,
            checked_offset,
            fact.first_chunk,
            body,
            digest,
            fact.manifest,
            refused or fault,
            body.note if refused else fault_detail,
            fact.features,
            signature=update.signature,
            fault=fault,
            fault_detail=fault_detail,
        )

    def _decoded(self, fact: Checked) -> ClientUpdate | KeyRequest | None:
        if not fact.manifest:
            return None
        try:
            return decode(fact.manifest, ClientUpdate, KeyRequest)
        except InvalidRecord:
            return None

    def _unattributed(self, fact: Checked, checked_offset: int, reason: str, detail: str) -> Pending:
        return Pending(
            fact.partition, fact.offset, checked_offset, fact.first_chunk, None, fact.record_digest, b"", reason, detail
        )

    def follow(self, position: Position) -> None:
        """Follow what a taken commit covers: what it judged waits no more."""
        for part in position.updates:
            if part.partition in self.coverage:
                self.coverage[part.partition].take(part)
        self.waiting = {s: item for s, item in self.waiting.items() if not self.coverage[s[0]].is_judged(s[1])}
        self._of_client.clear()
        for item in self.waiting.values():
            if item.body is not None:
                self._of_client.setdefault(item.client, []).append(item)
        self._attempts.drop(lambda source: self.coverage[source[0]].is_judged(source[1]))

    def requests(self) -> list[Pending]:
        """Return the first request of each client that waits to be decided: those of one depend on one another."""
        first: dict[str, Pending] = {}
        for item in self.waiting.values():
            if item.request is not None and not item.reason:
                first.setdefault(item.request.body.client, item)
        self._asking = set(first)
        return list(first.values())

    def position_after(self, judged: list[Pending], *, checked: int, commands: int) -> Position:
        """Return the position of a commit that judges these.

        Parameters
        ----------
        checked, commands
            Next offsets of these topics that were not read yet.
        """
        sources = {item.source for item in judged}
        parts = tuple(
            coverage.after({offset for place, offset in sources if place == partition})
            for partition, coverage in sorted(self.coverage.items())
        )
        needed = [item.checked_offset for source, item in self.waiting.items() if source not in sources]
        needed += self._attempts.needed()
        return Position(updates=parts, checked=min([checked, *needed]), commands=commands)

    def readmit(self) -> None:
        """Ask again what depends on the log, after it moved: a round closed, a key was revoked or the federation ended."""
        for item in self.waiting.values():
            if item.body is None:
                continue
            fault = self._key_fault(item.body, item.source)
            if fault:
                item.disown(fault)
            elif not item.reason:
                item.reason = self._refusal((), item.body, item.digest, item.source)
            elif item.reason in REVERSIBLE:
                self._admit_again(item, item.body)

    def _admit_again(self, item: Pending, body: UpdateBody) -> None:
        """Ask anew of what was refused for where the newest round stood; another of its client may have come in meanwhile."""
        others = [other for other in self._of_client.get(item.client, ()) if other is not item]
        item.reason = self._refusal(others, body, item.digest, item.source) or item.fault
        if item.reason == item.fault:
            item.detail = item.fault_detail

    def _key_fault(self, body: UpdateBody, source: Source) -> str:
        """Return why an update's key speaks for its client no longer, or ""."""
        standing = self._roster.clients.get(body.client) or Standing()
        return key_fault(standing, body.key_id, source) if self._roster.required else ""

    def take_from_everyone(self) -> None:
        """Take updates of the open round from clients that it did not select, too: those selected do not suffice."""
        self._everyone_in = self._roster.plan.round

    def _refusal(self, others: Iterable[Pending], body: UpdateBody, digest: bytes, source: Source) -> str:
        everyone = self._everyone_in == self._roster.plan.round
        return refusal(self._roster, self._rounds.lineage, others, body, digest, source, everyone=everyone)

    def deletable_below(self, partition: int) -> int:
        """Return the offset of `updates` below which nothing is needed any more."""
        coverage = self.coverage[partition]
        needed = [item.first_chunk for item in self.waiting.values() if item.partition == partition]
        settled = coverage.after(set()).next_offset
        return min([settled, self._open_from.get(partition, 0), *needed])

    def close(self) -> None:
        """Let go of the window."""
        if self._window:
            self._window.close()
