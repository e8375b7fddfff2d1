"""From a ruling to the events that record it. Pure: what had to be written is written already."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import blake3

from refold.consumers.bounding import Bounds
from refold.consumers.detectors import Opinion
from refold.consumers.features import Features
from refold.consumers.pending import Pending
from refold.consumers.planning import capped, grid_exponents, update_weight
from refold.consumers.roster import Roster
from refold.consumers.selection import selected
from refold.schemas.events import (
    Defence,
    Member,
    RoundClosed,
    Statement,
    Unattributed,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.identity import UpdatesRefused
from refold.schemas.payload import Payload
from refold.schemas.statements import statement_of
from refold.schemas.updates import UpdateBody
from refold.state.aggregation import scaled_weights
from refold.state.order import MEAN, TRIMMED

Source = tuple[int, int]

BAD_PPM = 200_000
"""Share of the updates that rules of choice and trimming allow for, in millionths, where the federation does not say."""

MEMBER_BYTES = 48
"""What a member takes beside its name."""

MEMBERS_BYTES = 500_000
"""Room for a round's members in the records that name them all, some 9,000 of them; beside them lie the plan and the step."""


@dataclass(slots=True)
class Ruling:
    """What detection decided in one turn.

    Parameters
    ----------
    refused
        Updates with a reason that needs no cohort.
    evaluations
        Evaluations to accept.
    bounds
        Which of these are named together, and whose bytes are not kept.
    cohort, opinions
        Where `closed_by` is not "": the round's candidates and what the ensemble says of each.
    """

    refused: list[Pending] = field(default_factory=list)
    evaluations: list[Pending] = field(default_factory=list)
    cohort: list[Pending] = field(default_factory=list)
    opinions: list[Opinion] = field(default_factory=list)
    closed_by: str = ""
    bounds: Bounds = field(default_factory=Bounds)

    @property
    def judged(self) -> list[Pending]:
        """Every update that gets its verdict."""
        return [*self.refused, *self.evaluations, *self.cohort]

    def accepted(self) -> list[tuple[Pending, Opinion]]:
        """Candidates that the ensemble lets in."""
        return [pair for pair in zip(self.cohort, self.opinions, strict=True) if not pair[1].reasons]

    def rejected(self) -> list[tuple[Pending, Opinion]]:
        """Candidates that it does not."""
        return [pair for pair in zip(self.cohort, self.opinions, strict=True) if pair[1].reasons]


@dataclass(slots=True)
class Written:
    """Where evidence lies: payloads in `deltas`, and features, by source position."""

    deltas: Mapping[Source, Payload] = field(default_factory=dict)
    features: Mapping[Source, Payload] = field(default_factory=dict)


def events_of(ruling: Ruling, written: Written, roster: Roster, living: Collection[str]) -> list[object]:
    """Return the events of a ruling, in the order in which the log has them."""
    events: list[object] = [*_refusals(ruling.refused, ruling.bounds)]
    events += [_accept_evaluation(item) for item in ruling.evaluations]
    if not ruling.closed_by:
        return events
    events += [_reject(item, opinion, written) for item, opinion in ruling.rejected()]
    accepted = ruling.accepted()
    events += [_accept(item, opinion, written, roster) for item, opinion in accepted]
    return [*events, _close(ruling, roster, living)] if accepted else events


def fitting(candidates: Sequence[Pending]) -> list[Pending]:
    """Return as many candidates as a round can name, those that came first, in the order given."""
    sizes = {item.source: len(item.client.encode()) + MEMBER_BYTES for item in candidates}
    first = sorted(candidates, key=lambda item: (item.checked_offset, item.source))
    room = accumulate(sizes[item.source] for item in first)
    kept = {item.source for item, used in zip(first, room, strict=True) if used <= MEMBERS_BYTES}
    return [item for item in candidates if item.source in kept]


def _refusals(items: Iterable[Pending], bounds: Bounds) -> list[object]:
    """Return one event for each row of equal refusals, whatever lies between them; strangers that are kept make rows alone."""
    events: list[object] = []
    rows: dict[tuple[object, ...], int] = {}
    for item in items:
        together = item.source in bounds.together
        event = _refused(item, together=together)
        row = (together, item.partition, item.client, item.reason, b"" if together else item.digest)
        at = len(events) - 1 if item.body is None and not together else rows.get(row, -1)
        joined = _joined(events[at], event) if at >= 0 else None
        if joined is not None:
            events[at] = joined
            continue
        rows[row] = len(events)
        events.append(event)
    return events


def _refused(item: Pending, *, together: bool) -> object:
    if item.body is None:
        return _unattributed(item)
    return _unseen(item) if together else _refuse(item)


def _refuse(item: Pending) -> UpdateRejected:
    return UpdateRejected(item.origin(), item.offset, 1, (item.reason,), item.detail, None, ())


def _unseen(item: Pending) -> UpdatesRefused:
    return UpdatesRefused(item.partition, item.offset, item.offset, 1, item.digest, item.client, item.reason)


def _unattributed(item: Pending) -> Unattributed:
    return Unattributed(item.partition, item.offset, item.offset, 1, item.digest, item.reason, item.detail)


def _joined(last: object, event: object) -> object | None:
    """Return both as one event where they are a row; None where they are not."""
    if isinstance(last, UpdateRejected) and isinstance(event, UpdateRejected):
        same = (last.origin.digest, last.reasons, last.origin.partition) == (
            event.origin.digest,
            event.reasons,
            event.origin.partition,
        )
        if same and event.origin.offset > last.last_offset:
            return replace(last, last_offset=event.origin.offset, count=last.count + 1)
    if isinstance(last, Unattributed) and isinstance(event, Unattributed):
        same_row = (last.partition, last.reason) == (event.partition, event.reason)
        if same_row and event.first_offset > last.last_offset:
            digest = blake3.blake3(last.digest + event.digest).digest()
            return replace(last, last_offset=event.last_offset, count=last.count + 1, digest=digest)
    if isinstance(last, UpdatesRefused) and isinstance(event, UpdatesRefused):
        same_row = (last.partition, last.client, last.reason) == (event.partition, event.client, event.reason)
        if same_row and event.first_offset > last.last_offset:
            digest = blake3.blake3(last.digest + event.digest).digest()
            return replace(last, last_offset=event.last_offset, count=last.count + 1, digest=digest)
    return None


def _accept_evaluation(item: Pending) -> UpdateAccepted:
    assert item.body is not None
    body = item.body
    return UpdateAccepted(
        item.origin(),
        0,
        body.num_examples,
        body.metrics,
        body.codec,
        body.exponents,
        None,
        None,
        (),
        body.sealing,
        _statement(item, body),
    )


def _accept(item: Pending, opinion: Opinion, written: Written, roster: Roster) -> UpdateAccepted:
    assert item.body is not None
    body = item.body
    weight = update_weight(body.num_examples, _staleness(item, roster), roster.genesis.policy)
    return UpdateAccepted(
        item.origin(),
        weight,
        body.num_examples,
        body.metrics,
        body.codec,
        body.exponents,
        written.deltas[item.source],
        written.features[item.source],
        opinion.scores,
        body.sealing,
        _statement(item, body),
    )


def _statement(item: Pending, body: UpdateBody) -> Statement | None:
    return statement_of(body, item.signature) if item.signature else None


def _reject(item: Pending, opinion: Opinion, written: Written) -> UpdateRejected:
    detail = "; ".join(score.evidence for score in opinion.scores if score.value > score.threshold)
    return UpdateRejected(
        item.origin(), item.offset, 1, opinion.reasons, detail[:4000], written.features[item.source], opinion.scores
    )


def _close(ruling: Ruling, roster: Roster, living: Collection[str]) -> RoundClosed:
    policy, plan = roster.genesis.policy, roster.plan
    accepted = [item for item, _ in ruling.accepted()]
    scores = [opinion.score for _, opinion in ruling.accepted()]
    claimed = [update_weight(_examples(item), _staleness(item, roster), policy) for item in accepted]
    features = [item.features() for item in accepted]
    defence = roster.genesis.defence
    weights, rule = weighing(defence, features, capped(claimed) if defence.mode == "all" else claimed, scores)
    exponents = grid_exponents(roster.schema, features, divisor=policy.sigma_divisor, before=plan.exponents)
    applied = [item.client for item, weight in zip(accepted, weights, strict=True) if weight]
    return RoundClosed(
        plan.round,
        roster.closed,
        tuple(Member(item.digest, item.client, weight) for item, weight in zip(accepted, weights, strict=True)),
        rule,
        roster.genesis.optimizer,
        roster.genesis.optimizer_settings,
        ruling.closed_by,
        roster.branches.plan_after(policy, exponents, living, applied, roster.active if roster.required else ()),
    )


def weighing(
    defence: Defence, features: Sequence[Features], weights: Sequence[int], scores: Sequence[float] = ()
) -> tuple[tuple[int, ...], str]:
    """Return the members' weights and the rule by which aggregation combines them, as the log records both."""
    chosen = dict(defence.settings)
    bad_ppm = int(chosen.get("bad_ppm", BAD_PPM))
    found = scaled_weights(selected(str(chosen.get("selection", "")), features, weights, bad_ppm, scores))
    rule, taking_part = str(chosen.get("rule", MEAN)), sum(weight > 0 for weight in found)
    if rule == TRIMMED:
        rule = f"{TRIMMED}:{min(taking_part * bad_ppm // 1_000_000, (taking_part - 1) // 2)}"
    return found, rule


def _examples(item: Pending) -> int:
    return item.body.num_examples if item.body else 0


def _staleness(item: Pending, roster: Roster) -> int:
    """Return how far a candidate's base lies behind; one of an abandoned branch was refused before."""
    return (roster.branches.staleness(item.body.base_round) if item.body else None) or 0
