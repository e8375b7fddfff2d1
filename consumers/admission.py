"""Whether an update may be judged at all: what depends on the log, decided at detection's place in it."""

from __future__ import annotations

from collections.abc import Iterable

from refold.consumers.pending import Pending
from refold.consumers.roster import Roster
from refold.producers.lineage import Lineage
from refold.schemas.keys import UPDATE_TAG, verify
from refold.schemas.updates import DECLINE, TRAIN, ClientUpdate, UpdateBody


def authentic(roster: Roster, update: ClientUpdate, digest: bytes) -> str:
    """Return why nobody can be held to an update, or ""."""
    body = update.body
    if body.federation != roster.genesis.federation:
        return "wrong-federation"
    standing = roster.clients.get(body.client)
    if standing is None:
        return "not-enrolled"
    public = standing.keys.get(body.key_id)
    if public is None:
        return "unknown-key"
    return "" if verify(public, UPDATE_TAG, digest, update.signature) else "signature"


def refusal(
    roster: Roster, lineage: Lineage, waiting: Iterable[Pending], body: UpdateBody, digest: bytes, source: tuple[int, int]
) -> str:
    """Return the reason for which an authentic update is refused before any statistic, or "".

    Parameters
    ----------
    waiting
        Other updates of the same client without a verdict, which were there first.
    """
    if roster.ended:
        return "federation-ended"
    standing = roster.clients[body.client]
    return (
        standing.refusal(body, digest, source)
        or _against_waiting(waiting, body, digest)
        or ("session-ahead" if body.session_index > lineage.next_index else "")
        or _timing(roster, lineage, body)
    )


def _against_waiting(waiting: Iterable[Pending], body: UpdateBody, digest: bytes) -> str:
    for other in waiting:
        if other.digest == digest:
            return "duplicate"
        if other.body is None or other.reason:
            continue
        if other.body.session == body.session and other.body.sequence == body.sequence:
            return "equivocation"
        if (other.body.round, other.body.kind) == (body.round, body.kind):
            return "one-per-round"
    return ""


def _timing(roster: Roster, lineage: Lineage, body: UpdateBody) -> str:
    staleness = roster.closed - body.base_round
    known = lineage.parameters_digest(body.base_round)
    if staleness < 0 or known is None:
        return "future-base"
    if known != body.base_digest:
        return "wrong-base"
    if roster.genesis.defence.mode == "none":
        return ""
    if staleness > roster.plan.max_staleness:
        return "stale"
    if staleness == 0 and not roster.plan.selects(body.client):
        return "not-selected"
    return ""


def final_reason(body: UpdateBody) -> str:
    """Return the reason that a sound update of this kind ends with by its nature: a client that declines has no blame."""
    return "declined" if body.kind == DECLINE else ""


def is_training(body: UpdateBody) -> bool:
    """Whether the update carries a delta."""
    return body.kind == TRAIN
