"""What must hold of a run's history: the topics' bytes, what was ever in `updates`, and what clients were shown."""

from __future__ import annotations

from typing import Any

import blake3
import numpy as np

from refold.bus.topics import is_chunk
from refold.producers.history import History
from refold.schemas.canonical import decode
from refold.schemas.checks import Alert
from refold.schemas.codec import decode_raw
from refold.schemas.erasure import DeltasPruned
from refold.schemas.errors import InvalidRecord
from refold.schemas.events import Genesis, Regridded, RolledBack, RoundClosed, RoundCommitted, SnapshotTaken, UpdateAccepted
from refold.schemas.layout import Layout
from refold.schemas.regrid import REGRIDDED
from refold.schemas.rollback import ROLLED_BACK
from refold.state.delta import TOPK
from tests.checker import Findings, Log, check_log, follow
from tests.checker.chain import events_of
from tests.simulation.world import World


def judge(world: World) -> Findings:
    """Check a run that is over, and return what was found; violations of all kinds are in the findings."""
    topics = world.topics
    rounds, _ = follow(topics.rounds, world.records(topics.rounds))
    accepted, stale = follow(topics.accepted, world.records(topics.accepted))
    log = Log(accepted, rounds, world.sent, world.deltas_seen, world.steps_seen, stale)
    findings = check_log(log)
    _count(world, log)
    findings.violations = [*world.violations, *findings.violations]
    if not findings.violations:
        findings.demand(findings.settled, "I11: something sent has no verdict, or a verdict no receipt")
        progress = _progress(log)
        findings.demand(progress == world.scenario.rounds, f"I11: {progress} rounds of {world.scenario.rounds} on the branch")
        _check_shown(findings, log, world)
        _check_pruned(findings, log, world)
        findings.demand(not world.broken_steps(), "I4: a damaged step was not mended")
        _check_authentic(findings, log, world)
        _check_asked_again(findings, world)
        _check_snapshots(findings, log, world)
        _check_rebuilds(findings, log, world)
    return findings


def _progress(log: Log) -> int:
    """Return how many rounds were trained on the branch that the newest one lies on."""
    made = {event.round: event for event in events_of(log.rounds) if isinstance(event, RoundCommitted)}
    at, trained = len(made), 0
    while at:
        trained += made[at].outcome not in (ROLLED_BACK, REGRIDDED)
        at = made[at].parent
    return trained


def _count(world: World, log: Log) -> None:
    """Count what a run reached, as far as the log tells it."""
    hashes = {step.hash for step in (*log.accepted, *log.rounds)}
    for data in world.late_commits:
        taken = blake3.blake3(data, derive_key_context="refold 2026 commit").digest() in hashes
        world.rare[f"late commit was {'taken' if taken else 'skipped'}"] += 1
    world.rare["commit in pieces"] += sum(step.commit.chunks is not None for step in (*log.accepted, *log.rounds))
    base = {
        event.origin.digest: event.origin.base_round for event in events_of(log.accepted) if isinstance(event, UpdateAccepted)
    }
    closed = [event for event in events_of(log.accepted) if isinstance(event, RoundClosed)]
    late = [member for event in closed for member in event.members if base.get(member.digest, event.round) + 1 < event.round]
    world.rare["stale update accepted"] += len(late)
    world.rare["sparse update accepted"] += sum(
        event.codec == TOPK for event in events_of(log.accepted) if isinstance(event, UpdateAccepted)
    )
    backs = [event for event in events_of(log.accepted) if isinstance(event, RolledBack)]
    world.rare["rolled back"] += len(backs)
    alerts = [decode(record.value, Alert) for record in world.records(world.topics.alerts) if record.value]
    world.rare["step derived again"] += sum(alert.kind == "mended" for alert in alerts)
    seen = {event.round for event in backs}
    world.rare["rolled back across a rollback"] += sum(any(b.parent < r < b.round for r in seen) for b in backs)


def _check_pruned(findings: Findings, log: Log, world: World) -> None:
    """What was pruned is of rounds that may go; payloads of all others are there."""
    pruned = [event for event in events_of(log.accepted) if isinstance(event, DeltasPruned)]
    world.rare["pruned"] += len(pruned)
    before, there = max((event.before_round for event in pruned), default=0), _chunks(world, world.topics.deltas)
    payloads = {e.origin.digest: e.payload for e in events_of(log.accepted) if isinstance(e, UpdateAccepted)}
    made = [event for event in events_of(log.accepted) if isinstance(event, RoundClosed | RolledBack | Regridded)]
    findings.demand(before <= len(made) + 1 - world.scenario.keep_rounds, f"pruned too much: below round {before}")
    for event in made:
        members = event.members if isinstance(event, RoundClosed) and event.round >= before else ()
        kept = [payloads[member.digest] for member in members]
        needed = {digest for payload in kept if payload and payload.inline is None for digest in payload.chunks}
        findings.demand(needed <= there.keys(), f"round {event.round}'s payloads were pruned, and they may not go")


def _chunks(world: World, topic: str) -> dict[bytes, bytes]:
    values = [record.value for record in world.records(topic) if record.value is not None and is_chunk(record.headers)]
    return {blake3.blake3(value).digest(): value for value in values}


def _check_shown(findings: Findings, log: Log, world: World) -> None:
    """I3: what a client was shown as accepted is in the log for ever."""
    accepted = {event.origin.digest for event in events_of(log.accepted) if isinstance(event, UpdateAccepted)}
    for client, digest, outcome in world.notes.shown:
        is_in = digest in accepted
        findings.demand(is_in == (outcome == "accepted"), f"I3: {client} was shown {outcome!r} for {digest.hex()[:16]}")


def _check_authentic(findings: Findings, log: Log, world: World) -> None:
    """I1: what an enrolled client sent is judged as its own, not counted as nobody's."""
    named: set[bytes] = {e.origin.digest for e in events_of(log.accepted) if hasattr(e, "origin")}
    for digest in world.sent_digests() & world.notes.sent:
        findings.demand(digest in named, f"I1: the update {digest.hex()[:16]} came, and has no verdict of its own")


def _check_asked_again(findings: Findings, world: World) -> None:
    """I11: finished work is not asked for again, unless it was refused."""
    for client, round_, kind, digests in world.notes.again:
        findings.demand(not digests.isdisjoint(findings.refused), f"I11: {client} was asked again to {kind} for round {round_}")


def _check_snapshots(findings: Findings, log: Log, world: World) -> None:
    """I4: a snapshot is of a round that was committed where the snapshot says that it looked, and has its bytes."""
    genesis = next(event for event in events_of(log.accepted) if isinstance(event, Genesis))
    heads = {step.commit.next_index: step.hash for step in log.rounds}
    made = {
        event.round: index
        for step in log.rounds
        for index, event in enumerate(step.events, step.commit.first_index)
        if isinstance(event, RoundCommitted)
    }
    made[0] = 0
    chunks = _chunks(world, world.topics.snapshot_chunks)
    for record in world.records(world.topics.snapshots):
        taken = _manifest(record.key, record.value)
        if taken is None:
            continue
        what = f"I4: the snapshot of round {taken.round}"
        findings.demand(heads.get(taken.rounds_index) == taken.rounds_hash, f"{what} stands on no head of `rounds`")
        findings.demand(made.get(taken.round, taken.rounds_index) < taken.rounds_index, f"{what} was taken before the round")
        state = findings.states.get(taken.round)
        payload = taken.parameters
        found = [payload.inline] if payload.inline is not None else [chunks.get(digest) for digest in payload.chunks]
        if state is not None and None not in found:
            findings.demand(_same(genesis, state, found), f"{what} has other bytes than the fold")


def _manifest(key: bytes | None, value: bytes | None) -> SnapshotTaken | None:
    try:
        taken = decode(value, SnapshotTaken) if value else None
    except InvalidRecord:
        return None
    return taken if taken is not None and str(taken.round).encode() == key else None


def _same(genesis: Genesis, state: list[Any], chunks: list[Any]) -> bool:
    pieces = decode_raw(chunks, Layout.of(genesis.schema))
    return all(np.array_equal(state[block.tensor][block.elements], integers) for block, integers in pieces)


def _check_rebuilds(findings: Findings, log: Log, world: World) -> None:
    """I4: rounds are rebuilt to the fold's bytes, from a snapshot and from the beginning."""
    genesis = next(event for event in events_of(log.accepted) if isinstance(event, Genesis))
    history = History(world.bus, world.topics, genesis=genesis)
    try:
        history.refresh()
        for round_ in {max(findings.states), len(findings.states) // 2}:
            for start in (None, 0):
                state = history.rebuild(round_, start=start)
                same = all(np.array_equal(a, b) for a, b in zip(state.parameters, findings.states[round_], strict=True))
                findings.demand(same, f"I4: round {round_} rebuilt from {start} has other bytes")
    finally:
        history.close()
