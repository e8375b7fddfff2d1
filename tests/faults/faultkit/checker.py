"""A checker that knows the log and the invariants, and none of the code that wrote it.

It follows the chains by itself, counts verdicts against everything that ever lay in `updates`, and folds the model with its own
arithmetic. Of Refold it uses the record types, the decoding of a client's delta, and reading a topic.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3
import numpy as np

from faultkit.archive import Kept, all_events, read_topic
from refold.bus.contract import Bus
from refold.bus.topics import is_chunk
from refold.schemas.canonical import decode
from refold.schemas.codec import decode_raw
from refold.schemas.commits import Commit, EventList
from refold.schemas.errors import InvalidRecord
from refold.schemas.events import (
    ClientEnrolled,
    FederationEnded,
    Genesis,
    Receipts,
    RoundClosed,
    RoundCommitted,
    Unattributed,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.layout import Layout
from refold.schemas.updates import ClientUpdate
from refold.state.delta import decode_update

Source = tuple[int, int]


@dataclass
class Findings:
    """What the checker found.

    Parameters
    ----------
    stale
        Commits of `accepted` that extend nothing.
    states
        Parameters of each round, folded by the checker's own arithmetic.
    settled
        Everything sent has its verdict, every verdict is covered by `rounds`.
    reasons
        How often each reason was given.
    refused
        Digests of updates that were refused, repeats of others left out.
    """

    violations: list[str] = field(default_factory=list)
    stale: int = 0
    updates: int = 0
    accepted: int = 0
    rounds: int = 0
    settled: bool = False
    reasons: Counter[str] = field(default_factory=Counter)
    refused: set[bytes] = field(default_factory=set)
    states: dict[int, list[Any]] = field(default_factory=dict)

    def demand(self, holds: bool, what: str) -> None:
        """Note a violation unless this holds."""
        if not holds:
            self.violations.append(what)


@dataclass(frozen=True, slots=True)
class Step:
    """A commit on the chain, its hash and its events."""

    commit: Commit
    hash: bytes
    events: tuple[Any, ...]


def follow(bus: Bus, topic: str, *, check_previous: bool = True) -> tuple[list[Step], int]:
    """Return the commits that form the chain, and how many do not extend it.

    Parameters
    ----------
    check_previous
        False plants a bug: every commit counts, whatever it follows.
    """
    head = blake3.blake3(topic.encode(), derive_key_context="refold 2026 log root").digest()
    parts: dict[bytes, bytes] = {}
    steps: list[Step] = []
    stale = 0
    for record in read_topic(bus, topic):
        data = record.value or b""
        try:
            found = decode(data, Commit, EventList)
        except InvalidRecord:
            stale += 1
            continue
        if isinstance(found, EventList):
            parts[blake3.blake3(data).digest()] = data
            continue
        if check_previous and found.previous != head:
            stale += 1
            continue
        head = blake3.blake3(data, derive_key_context="refold 2026 commit").digest()
        steps.append(Step(found, head, _events(found, parts)))
    return steps, stale


def _events(commit: Commit, parts: dict[bytes, bytes]) -> tuple[Any, ...]:
    packed = list(commit.events)
    if commit.chunks is not None:
        packed = [event for digest in commit.chunks.chunks for event in decode(parts[digest], EventList).events]
    assert len(packed) == commit.count
    return tuple(decode(event) for event in packed)


def check(bus: Bus, federation: str, archive: Path | None = None, *, check_previous: bool = True) -> Findings:
    """Check a federation's whole log.

    Parameters
    ----------
    archive
        Where updates went that were deleted since; without it only what still lies in the topic can be counted.
    """
    findings = Findings()
    # `rounds` first: what it covers must then be in `accepted`.
    rounds, _ = follow(bus, f"{federation}.rounds")
    accepted, findings.stale = follow(bus, f"{federation}.accepted", check_previous=check_previous)
    sent = all_events(bus, f"{federation}.updates", archive)
    findings.updates = len(sent)
    _check_dense(findings, "accepted", accepted)
    _check_dense(findings, "rounds", rounds)
    judged = _check_verdicts(findings, accepted, sent)
    _check_positions(findings, accepted, sent)
    _check_accepted_once(findings, accepted)
    _check_rounds(findings, accepted, rounds)
    _check_receipts(findings, accepted, rounds)
    covered = not accepted or not rounds or not _after(accepted, rounds[-1].commit.position.accepted_index)
    findings.settled = covered and judged == len(sent) and bool(rounds)
    if check_previous and not findings.violations:
        _fold(findings, bus, federation, accepted, rounds)
    return findings


def _check_dense(findings: Findings, name: str, steps: list[Step]) -> None:
    index = 0
    for step in steps:
        findings.demand(step.commit.first_index == index, f"{name}: event {step.commit.first_index} where {index} is due")
        index = step.commit.first_index + step.commit.count


def _check_verdicts(findings: Findings, accepted: list[Step], sent: list[Kept]) -> int:
    """I1: exactly one verdict for every update. Returns how many have theirs."""
    verdicts: Counter[Source] = Counter()
    digests = {(kept.partition, kept.offset): _digest(kept.value) for kept in sent}
    copies: dict[tuple[int, bytes | None], list[Source]] = {}
    for source, digest in digests.items():
        copies.setdefault((source[0], digest), []).append(source)
    anonymous: Counter[int] = Counter()
    for event in _all(accepted):
        if isinstance(event, UpdateAccepted):
            verdicts[event.origin.partition, event.origin.offset] += 1
            _check_origin(findings, event.origin, digests)
        elif isinstance(event, UpdateRejected):
            findings.reasons.update(event.reasons)
            origin = event.origin
            findings.refused |= {origin.digest} if "duplicate" not in event.reasons else set()
            of_this = copies.get((origin.partition, origin.digest), ())
            row = [source for source in of_this if origin.offset <= source[1] <= event.last_offset]
            findings.demand(len(row) == event.count, f"a row of {event.count} refusals names {len(row)} updates: {origin}")
            verdicts.update(row)
        elif isinstance(event, Unattributed):
            findings.reasons[event.reason] += event.count
            anonymous[event.partition] += event.count
    for source, count in verdicts.items():
        findings.demand(count == 1, f"{count} verdicts on the update at {source}")
        findings.demand(source in digests, f"a verdict on nothing at {source}")
    nobody = Counter(source[0] for source in digests if source not in verdicts)
    for partition, count in anonymous.items():
        findings.demand(
            count <= nobody[partition], f"{count} unattributed in partition {partition}, {nobody[partition]} are there"
        )
    return sum(verdicts.values()) + anonymous.total()


def _check_origin(findings: Findings, origin: Any, digests: dict[Source, bytes | None]) -> None:
    found = digests.get((origin.partition, origin.offset))
    findings.demand(found == origin.digest, f"the verdict at {origin.partition}/{origin.offset} is on other bytes")


def _digest(manifest: bytes) -> bytes | None:
    try:
        return decode(manifest, ClientUpdate).digest
    except InvalidRecord:
        return None


def _check_positions(findings: Findings, accepted: list[Step], sent: list[Kept]) -> None:
    """I8: no commit's position is ahead of its verdicts, and none goes back."""
    judged: Counter[int] = Counter()
    before: Counter[int] = Counter()
    offsets: dict[int, list[int]] = {}
    for kept in sent:
        offsets.setdefault(kept.partition, []).append(kept.offset)
    for step in accepted:
        for event in step.events:
            if isinstance(event, UpdateAccepted):
                judged[event.origin.partition] += 1
            elif isinstance(event, UpdateRejected):
                judged[event.origin.partition] += event.count
            elif isinstance(event, Unattributed):
                judged[event.partition] += event.count
        for part in step.commit.position.updates:
            known = offsets.get(part.partition, [])
            runs = [(0, part.next_offset - 1), *part.judged_above]
            covered = sum(bisect_right(known, last) - bisect_left(known, first) for first, last in runs)
            findings.demand(
                covered == judged[part.partition],
                f"commit {step.commit.first_index} covers {covered} updates of partition {part.partition}, "
                f"{judged[part.partition]} have a verdict",
            )
            findings.demand(part.next_offset >= before[part.partition], f"position of {part.partition} went back")
            before[part.partition] = part.next_offset


def _check_accepted_once(findings: Findings, accepted: list[Step]) -> None:
    """I2: at most one accepted update per client, round and kind; nothing after the end."""
    once: Counter[tuple[str, int, str]] = Counter()
    commands: Counter[bytes] = Counter()
    ended = False
    for event in _all(accepted):
        if isinstance(event, UpdateAccepted):
            once[event.origin.client, event.origin.base_round + 1, event.origin.kind] += 1
            findings.accepted += 1
            findings.demand(not ended, f"accepted after the end: {event.origin.client}")
        elif isinstance(event, ClientEnrolled):
            commands[event.command_id] += 1
        elif isinstance(event, FederationEnded):
            findings.demand(not ended, "the federation ended twice")
            ended = True
    for what, count in once.items():
        findings.demand(count == 1, f"{what} was accepted {count} times")
    findings.demand(all(count == 1 for count in commands.values()), "a command was taken twice")


def _check_rounds(findings: Findings, accepted: list[Step], rounds: list[Step]) -> None:
    """Rounds are closed in order, of accepted updates in one round each, and made as they were closed."""
    waiting: set[bytes] = set()
    closed: dict[int, RoundClosed] = {}
    for event in _all(accepted):
        if isinstance(event, UpdateAccepted) and event.payload is not None:
            waiting.add(event.origin.digest)
        elif isinstance(event, RoundClosed):
            findings.demand(event.round == len(closed) + 1, f"round {event.round} closed after {len(closed)}")
            members = {member.digest for member in event.members}
            findings.demand(members <= waiting, f"round {event.round} has members that were not accepted, or not for it alone")
            waiting -= members
            closed[event.round] = event
    made = [event for event in _all(rounds) if isinstance(event, RoundCommitted)]
    findings.rounds = len(made)
    findings.demand([event.round for event in made] == list(range(1, len(made) + 1)), "rounds are not made in order, once each")
    for event in made:
        findings.demand(
            event.round in closed and event.members == closed[event.round].members, f"round {event.round} was not closed so"
        )


def _check_receipts(findings: Findings, accepted: list[Step], rounds: list[Step]) -> None:
    """I3: who was told *accepted* is in the log, before the receipt; `rounds` covers an `accepted` that is there."""
    heads = {step.commit.next_index: step.hash for step in accepted}
    verdicts = {
        event.origin.digest: index
        for step in accepted
        for index, event in enumerate(step.events, step.commit.first_index)
        if isinstance(event, UpdateAccepted)
    }
    told: Counter[bytes] = Counter()
    for step in rounds:
        position = step.commit.position
        known = heads.get(position.accepted_index)
        findings.demand(
            known == position.accepted_hash, f"`rounds` covers an `accepted` that is not there: {position.accepted_index}"
        )
        for event in step.events:
            for receipt in event.receipts if isinstance(event, Receipts) else ():
                if receipt.outcome == "accepted":
                    told[receipt.digest] += 1
                    index = verdicts.get(receipt.digest, position.accepted_index)
                    findings.demand(index < position.accepted_index, f"{receipt.client} was told accepted, and is not")
    findings.demand(all(count == 1 for count in told.values()), "a receipt was given twice")
    covered = rounds[-1].commit.position.accepted_index if rounds else 0
    missing = [digest for digest, index in verdicts.items() if index < covered and digest not in told]
    findings.demand(not missing, f"{len(missing)} accepted updates have no receipt")


def _after(accepted: list[Step], index: int) -> bool:
    """Whether there is anything behind an index that `rounds` must cover."""
    kinds = (Genesis, RoundClosed, FederationEnded, UpdateAccepted, UpdateRejected)
    return any(
        number >= index
        and isinstance(event, kinds)
        and not (isinstance(event, UpdateRejected) and "duplicate" in event.reasons)
        for step in accepted
        for number, event in enumerate(step.events, step.commit.first_index)
    )


def _all(steps: list[Step]) -> list[Any]:
    return [event for step in steps for event in step.events]


def _fold(findings: Findings, bus: Bus, federation: str, accepted: list[Step], rounds: list[Step]) -> None:
    """I4: fold the model of every round from `accepted` and `deltas` alone, with integers of this function's own."""
    chunks = {
        blake3.blake3(record.value).digest(): record.value
        for record in read_topic(bus, f"{federation}.deltas")
        if record.value is not None and is_chunk(record.headers)
    }
    made = {event.round: event for event in _all(rounds) if isinstance(event, RoundCommitted)}
    updates: dict[bytes, UpdateAccepted] = {}
    state: list[Any] = []
    schema: Any = None
    for event in _all(accepted):
        if isinstance(event, Genesis):
            schema = event.schema
            state = _initial(event, chunks)
            findings.states[0] = [array.copy() for array in state]
        elif isinstance(event, UpdateAccepted):
            updates[event.origin.digest] = event
        elif isinstance(event, RoundClosed) and event.round in made:
            state = _next(findings, schema, state, event, updates, made[event.round], chunks)
            findings.states[event.round] = state


def _bytes_of(payload: Any, chunks: dict[bytes, bytes]) -> list[bytes]:
    return [payload.inline] if payload.inline is not None else [chunks[digest] for digest in payload.chunks]


def _initial(genesis: Genesis, chunks: dict[bytes, bytes]) -> list[Any]:
    layout = Layout.of(genesis.schema)
    arrays = [np.zeros(tensor.size, np.int64) for tensor in genesis.schema.tensors]
    for block, integers in decode_raw(_bytes_of(genesis.initial, chunks), layout):
        arrays[block.tensor][block.elements] = integers
    return arrays


def _next(
    findings: Findings,
    schema: Any,
    state: list[Any],
    closed: RoundClosed,
    updates: dict[bytes, UpdateAccepted],
    made: RoundCommitted,
    chunks: dict[bytes, bytes],
) -> list[Any]:
    members = [(member.weight, updates[member.digest]) for member in closed.members if member.weight]
    total = sum(weight for weight, _ in members)
    least = [min(column) for column in zip(*(event.exponents for _, event in members), strict=True)]
    sums = [np.zeros(tensor.size, np.int64) for tensor in schema.tensors]
    largest = [array.copy() for array in state]
    for weight, event in members:
        assert event.payload is not None
        for block, integers in decode_update(event.codec, event.exponents, _bytes_of(event.payload, chunks), schema):
            shift = event.exponents[block.tensor] - least[block.tensor]
            wide = integers.astype(np.int64)
            sums[block.tensor][block.elements] += wide * (weight << shift)
            there = largest[block.tensor][block.elements]
            np.maximum(there, wide, out=there)
    after = []
    for index, tensor in enumerate(schema.tensors):
        if not tensor.is_float:
            after.append(largest[index])
            continue
        j = made.step_exponents[index]
        mean = sums[index].astype(np.float64) / float(total)
        after.append(state[index] + (np.rint(mean * 2.0 ** (least[index] - j)).astype(np.int64) << j))
    return after
