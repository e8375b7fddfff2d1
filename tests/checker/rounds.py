"""Rounds as they were closed, and receipts against verdicts (I3)."""

from __future__ import annotations

from collections import Counter

from refold.schemas.events import (
    FederationEnded,
    Genesis,
    Receipts,
    Regridded,
    RolledBack,
    RoundClosed,
    RoundCommitted,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.regrid import REGRIDDED
from refold.schemas.rollback import ROLLED_BACK
from tests.checker.chain import Step, events_of
from tests.checker.findings import Findings, Log


def check_rounds(findings: Findings, log: Log) -> None:
    """Rounds are closed in order, of accepted updates in one round each, and made as they were closed."""
    waiting: set[bytes] = set()
    closed: dict[int, RoundClosed | RolledBack | Regridded] = {}
    for event in events_of(log.accepted):
        if isinstance(event, UpdateAccepted) and event.payload is not None:
            waiting.add(event.origin.digest)
        elif isinstance(event, RoundClosed):
            findings.demand(event.round == len(closed) + 1, f"round {event.round} closed after {len(closed)}")
            members = {member.digest for member in event.members}
            findings.demand(members <= waiting, f"round {event.round} has members that were not accepted, or not for it alone")
            findings.demand(event.parent == len(closed), f"round {event.round} stands on {event.parent} and not on the newest")
            waiting -= members
            closed[event.round] = event
        elif isinstance(event, RolledBack):
            findings.demand(event.round == len(closed) + 1, f"a rollback opens round {event.round} after {len(closed)}")
            findings.demand(
                event.parent < event.abandoned == len(closed), f"{event.abandoned} is rolled back to {event.parent}"
            )
            closed[event.round] = event
        elif isinstance(event, Regridded):
            findings.demand(event.round == len(closed) + 1, f"a regridding opens round {event.round} after {len(closed)}")
            void = closed.get(event.overflowed)
            is_so = void is not None and event.overflowed == len(closed) and event.parent == void.parent
            findings.demand(is_so, f"{event.overflowed} is regridded on {event.parent}")
            closed[event.round] = event
    made = [event for event in events_of(log.rounds) if isinstance(event, RoundCommitted)]
    findings.rounds = len(made)
    findings.rollbacks = sum(event.outcome == ROLLED_BACK for event in made)
    findings.voids = sum(event.outcome == "void" for event in made)
    findings.regrids = sum(event.outcome == REGRIDDED for event in made)
    findings.demand([event.round for event in made] == list(range(1, len(made) + 1)), "rounds are not made in order, once each")
    for event in made:
        cause = closed.get(event.round)
        members = cause.members if isinstance(cause, RoundClosed) else ()
        is_so = cause is not None and (event.parent, event.members) == (cause.parent, members)
        is_back = isinstance(cause, RolledBack) == (event.outcome == ROLLED_BACK)
        is_back = is_back and isinstance(cause, Regridded) == (event.outcome == REGRIDDED)
        findings.demand(is_so and is_back, f"round {event.round} was not closed so")
    told = [event for event in events_of(log.rounds) if isinstance(event, RolledBack | Regridded)]
    due = [event for event in closed.values() if isinstance(event, RolledBack | Regridded) and event.round <= len(made)]
    findings.demand(told == due, "`rounds` tells of other rollbacks or regriddings than `accepted`")


def check_receipts(findings: Findings, log: Log) -> None:
    """I3: who was told *accepted* is in the log, before the receipt; `rounds` covers an `accepted` that is there."""
    heads = {step.commit.next_index: step.hash for step in log.accepted}
    verdicts = {
        event.origin.digest: index
        for step in log.accepted
        for index, event in enumerate(step.events, step.commit.first_index)
        if isinstance(event, UpdateAccepted)
    }
    told: Counter[bytes] = Counter()
    for step in log.rounds:
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
    covered = log.rounds[-1].commit.position.accepted_index if log.rounds else 0
    missing = [digest for digest, index in verdicts.items() if index < covered and digest not in told]
    findings.demand(not missing, f"{len(missing)} accepted updates have no receipt")


def waits_for_rounds(accepted: list[Step], index: int) -> bool:
    """Whether there is anything behind an index that `rounds` must cover."""
    kinds = (Genesis, RoundClosed, RolledBack, Regridded, FederationEnded, UpdateAccepted, UpdateRejected)
    return any(
        number >= index
        and isinstance(event, kinds)
        and not (isinstance(event, UpdateRejected) and "duplicate" in event.reasons)
        for step in accepted
        for number, event in enumerate(step.events, step.commit.first_index)
    )
