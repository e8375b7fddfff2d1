"""Verdicts against what lay in `updates` (I1), accepted once (I2), positions against verdicts (I8), density (I5)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from typing import Any

from refold.schemas.canonical import decode
from refold.schemas.errors import InvalidRecord
from refold.schemas.events import (
    FederationEnded,
    Genesis,
    Regridded,
    RolledBack,
    RoundClosed,
    Unattributed,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.identity import (
    ClientBanned,
    ClientEnrolled,
    ClientReleased,
    ClientRevoked,
    KeyRequest,
    TokenAdmitted,
    UpdatesRefused,
)
from refold.schemas.updates import ClientUpdate
from tests.checker.chain import Kept, Source, Step, events_of
from tests.checker.findings import Findings, Log

COMMANDED = (ClientEnrolled, TokenAdmitted, ClientRevoked, ClientReleased, ClientBanned, FederationEnded, RolledBack)
VERDICTS = (UpdateAccepted, UpdateRejected, UpdatesRefused, Unattributed)
KNOWN = (Genesis, RoundClosed, *VERDICTS, *COMMANDED)


def check_dense(findings: Findings, name: str, steps: list[Step]) -> None:
    """Events are numbered without a gap."""
    index = 0
    for step in steps:
        findings.demand(step.commit.first_index == index, f"{name}: event {step.commit.first_index} where {index} is due")
        index = step.commit.first_index + step.commit.count


def check_verdicts(findings: Findings, log: Log) -> int:
    """I1: exactly one verdict for every update. Returns how many have theirs."""
    verdicts: Counter[Source] = Counter()
    updates = {(kept.partition, kept.offset): _update(kept) for kept in log.sent}
    digests = {source: update.digest if update else None for source, update in updates.items()}
    copies: dict[tuple[int, bytes | None], list[Source]] = {}
    for source, digest in digests.items():
        copies.setdefault((source[0], digest), []).append(source)
    requests = {(kept.partition, kept.offset): _request(kept) for kept in log.sent}
    anonymous: Counter[int] = Counter()
    together: list[UpdatesRefused] = []
    for event in events_of(log.accepted):
        if isinstance(event, UpdateAccepted):
            source = (event.origin.partition, event.origin.offset)
            verdicts[source] += 1
            _check_origin(findings, event.origin, digests)
            _check_payload(findings, event, updates.get(source))
        elif isinstance(event, UpdateRejected):
            findings.reasons.update(event.reasons)
            origin = event.origin
            findings.refused |= {origin.digest} if "duplicate" not in event.reasons else set()
            of_this = copies.get((origin.partition, origin.digest), ())
            row = [source for source in of_this if origin.offset <= source[1] <= event.last_offset]
            row = [source for source in row if _is_signed_alike(updates, source, (origin.partition, origin.offset))]
            findings.demand(len(row) == event.count, f"a row of {event.count} refusals names {len(row)} updates: {origin}")
            verdicts.update(row)
        elif isinstance(event, Unattributed):
            findings.reasons[event.reason] += event.count
            anonymous[event.partition] += event.count
        elif isinstance(event, UpdatesRefused):
            findings.reasons[event.reason] += event.count
            together.append(event)
        elif isinstance(event, ClientEnrolled) and event.request is not None:
            source = (event.request.partition, event.request.offset)
            verdicts[source] += 1
            _check_request(findings, event, requests.get(source))
        elif not isinstance(event, KNOWN):
            findings.unknown[type(event).__name__] += 1
    for source, count in verdicts.items():
        findings.demand(count == 1, f"{count} verdicts on the update at {source}")
        findings.demand(source in digests, f"a verdict on nothing at {source}")
    _spread(findings, together, updates, verdicts)
    nobody = Counter(source[0] for source in digests if source not in verdicts)
    for partition, count in anonymous.items():
        findings.demand(
            count <= nobody[partition], f"{count} unattributed in partition {partition}, {nobody[partition]} are there"
        )
    return sum(verdicts.values()) + anonymous.total()


def _is_signed_alike(updates: dict[Source, ClientUpdate | None], source: Source, first: Source) -> bool:
    """Whether two updates of one digest have one signature: a bit that flipped in a copy's makes it nobody's."""
    update, other = updates.get(source), updates.get(first)
    return update is None or other is None or update.signature == other.signature


def _spread(
    findings: Findings, together: list[UpdatesRefused], updates: dict[Source, ClientUpdate | None], verdicts: Counter[Source]
) -> None:
    """Find the updates that rows of refusals mean: of the row's client, between its ends, and without another verdict.

    Rows overlap; each takes the ones that lie first, and the rows that end first take theirs first.
    """
    free: dict[tuple[int, str], list[Source]] = {}
    for source, update in sorted(updates.items()):
        if update is not None and source not in verdicts:
            free.setdefault((source[0], update.body.client), []).append(source)
    for event in sorted(together, key=lambda event: event.last_offset):
        there = free.get((event.partition, event.client), [])
        inside = [source for source in there if event.first_offset <= source[1] <= event.last_offset]
        ends = {(event.partition, event.first_offset), (event.partition, event.last_offset)}
        taken = sorted(ends, reverse=True)[: event.count]
        taken += [source for source in inside if source not in ends][: event.count - len(taken)]
        what = f"a row of {event.count} refusals of {event.client} names {len(inside)} updates"
        findings.demand(len(taken) == event.count and ends <= set(inside), what)
        verdicts.update(taken)
        free[event.partition, event.client] = [source for source in there if source not in set(taken)]


def _request(kept: Kept) -> KeyRequest | None:
    try:
        return decode(kept.value, KeyRequest)
    except InvalidRecord:
        return None


def _check_request(findings: Findings, event: ClientEnrolled, request: KeyRequest | None) -> None:
    """A key that was enrolled by request is the one that lay there."""
    said = (request.body.client, request.body.public_key) if request is not None else None
    findings.demand(said == (event.client, event.public_key), f"{event.client} was enrolled by a request that is not there")


def _update(kept: Kept) -> ClientUpdate | None:
    try:
        return decode(kept.value, ClientUpdate)
    except InvalidRecord:
        return None


def _check_origin(findings: Findings, origin: Any, digests: dict[Source, bytes | None]) -> None:
    found = digests.get((origin.partition, origin.offset))
    findings.demand(found == origin.digest, f"the verdict at {origin.partition}/{origin.offset} is on other bytes")


def _check_payload(findings: Findings, event: UpdateAccepted, update: ClientUpdate | None) -> None:
    """What was accepted is what was signed: the same chunks in the same order."""
    if update is None or update.body.payload is None:
        return
    signed, kept = update.body.payload, event.payload
    findings.demand(
        kept is not None and (kept.root, kept.chunks) == (signed.root, signed.chunks),
        f"the payload accepted of {event.origin.client} is not the one that it signed",
    )


def check_positions(findings: Findings, log: Log) -> None:
    """I8: no commit's position is ahead of its verdicts, and none goes back."""
    judged: Counter[int] = Counter()
    before: Counter[int] = Counter()
    offsets: dict[int, list[int]] = {}
    for kept in log.sent:
        offsets.setdefault(kept.partition, []).append(kept.offset)
    for step in log.accepted:
        for event in step.events:
            if isinstance(event, UpdateAccepted):
                judged[event.origin.partition] += 1
            elif isinstance(event, UpdateRejected):
                judged[event.origin.partition] += event.count
            elif isinstance(event, Unattributed | UpdatesRefused):
                judged[event.partition] += event.count
            elif isinstance(event, ClientEnrolled) and event.request is not None:
                judged[event.request.partition] += 1
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


def check_branches(findings: Findings, log: Log) -> None:
    """What is accepted was trained from a round that the newest one stands on; what is refused for it was not."""
    parents: dict[int, int] = {}
    for event in events_of(log.accepted):
        if isinstance(event, RoundClosed | RolledBack | Regridded):
            parents[event.round] = event.parent
        elif isinstance(event, UpdateAccepted):
            base = event.origin.base_round
            findings.demand(_stands_on(parents, base), f"accepted from round {base}, which the newest does not stand on")
        elif isinstance(event, UpdateRejected) and "abandoned-branch" in event.reasons:
            base = event.origin.base_round
            findings.demand(not _stands_on(parents, base), f"refused as left, though the newest stands on round {base}")


def _stands_on(parents: dict[int, int], base: int) -> bool:
    at = len(parents)
    while at > base:
        at = parents[at]
    return at == base


def check_accepted_once(findings: Findings, log: Log) -> None:
    """I2: at most one accepted update per client, round and kind; nothing after the end."""
    once: Counter[tuple[str, int, str]] = Counter()
    commands: Counter[bytes] = Counter()
    ended = False
    for event in events_of(log.accepted):
        if isinstance(event, UpdateAccepted):
            once[event.origin.client, event.origin.base_round + 1, event.origin.kind] += 1
            findings.accepted += 1
            findings.demand(not ended, f"accepted after the end: {event.origin.client}")
        if isinstance(event, COMMANDED) and event.command_id is not None:
            commands[event.command_id] += 1
        if isinstance(event, FederationEnded):
            findings.demand(not ended, "the federation ended twice")
            ended = True
    for what, count in once.items():
        findings.demand(count == 1, f"{what} was accepted {count} times")
    findings.demand(all(count == 1 for count in commands.values()), "a command was taken twice")
