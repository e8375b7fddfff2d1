"""Whether an update may be judged at all: what depends on the log, decided at detection's place in it."""

from __future__ import annotations

from collections.abc import Iterable

from refold.bus.contract import partition_for
from refold.consumers.pending import Pending
from refold.consumers.roster import Roster
from refold.consumers.standing import NOT_FIRST, UNSEEN, Source, Standing
from refold.producers.lineage import Lineage
from refold.schemas.keys import UPDATE_TAG, verify
from refold.schemas.updates import DECLINE, PASS, TRAIN, ClientUpdate, UpdateBody

REVERSIBLE = frozenset({"abandoned-branch", "former-lattice", "stale"})
"""Reasons that go by what the newest round stands on: a rollback can undo them while the update waits."""


def authentic(roster: Roster, update: ClientUpdate, digest: bytes, source: Source, partitions: int) -> str:
    """Return why nobody can be held to an update, or "".

    A key counts at a place of `updates`: one that was replaced still speaks for what lay before the request that replaced it.
    And only in its client's own partition, of so many: what lies in another is a copy that anyone may have made, apart from its
    chunks, and its client waits for what becomes of the original.
    """
    body = update.body
    if body.federation != roster.genesis.federation:
        return "wrong-federation"
    misplaced = "misplaced" if source[0] != partition_for(body.client.encode(), partitions) else ""
    if not roster.required:
        return misplaced
    standing = roster.clients.get(body.client)
    if standing is None or not standing.keys.ever:
        return "not-enrolled"
    fault = key_fault(standing, body.key_id, source)
    retired = standing.keys.retired.get(body.key_id)
    public = standing.keys.speaking(body.key_id, source) or (retired.public if retired else None)
    if public is None:
        return fault
    if not verify(public, UPDATE_TAG, digest, update.signature):
        return "signature"
    return fault or misplaced


def key_fault(standing: Standing, key: bytes, source: Source) -> str:
    """Return why a key does not speak for its client at a place of `updates`, or ""."""
    if standing.keys.speaking(key, source) is not None:
        return ""
    return "revoked-key" if key in standing.keys.retired else "unknown-key"


def refusal(
    roster: Roster,
    lineage: Lineage,
    waiting: Iterable[Pending],
    body: UpdateBody,
    digest: bytes,
    source: Source,
    *,
    everyone: bool = False,
) -> str:
    """Return the reason for which an authentic update is refused before any statistic, or "".

    Parameters
    ----------
    waiting
        Other updates of the same client without a verdict, which were there first.
    everyone
        The round is short of updates and takes them from clients that it did not select.
    """
    standing = roster.clients.get(body.client) or Standing()
    if digest in standing.digests:
        return "duplicate"  # After the end, too: a receipt for the repeat would contradict that of the update itself.
    if roster.ended:
        return _over_limit(roster, waiting, body) or "federation-ended"
    others = [item for item in waiting if item.body is not None and item.reason not in NOT_FIRST | UNSEEN]
    if any(other.digest == digest for other in others):
        return "duplicate"  # Whatever its session became meanwhile: the one that waits may still be accepted.
    return (
        standing.refusal(body, digest, source)
        or _against_waiting(others, body)
        or _over_limit(roster, waiting, body)
        or ("session-ahead" if body.session_index > lineage.next_index else "")
        or _second_for_its_round(standing, others, body)
        or roster.sealing.fault(body.client, body.sealing)
        or _timing(roster, lineage, body, everyone)
    )


def _against_waiting(others: Iterable[Pending], body: UpdateBody) -> str:
    """As `Standing.refusal`, for what will be remembered once it has its verdict: it must not matter which comes first."""
    for other in others:
        assert other.body is not None
        if other.body.session == body.session and other.body.sequence == body.sequence:
            return "equivocation"
    return ""


def _over_limit(roster: Roster, waiting: Iterable[Pending], body: UpdateBody) -> str:
    """Refuse more new updates in a round than a client may send. Repeats, which anyone can make, take nothing of that away."""
    new = sum(item.body is not None and item.reason not in UNSEEN | {"duplicate"} for item in waiting)
    return "over-limit" if roster.tally.updates[body.client] + new >= roster.limits.updates_per_round else ""


def _second_for_its_round(standing: Standing, others: Iterable[Pending], body: UpdateBody) -> str:
    """Refuse a second update of a client for its round, and a second one for the cohort that is open, whatever its base."""
    candidates = [other.body for other in others if other.body is not None and not other.reason]
    if (body.round, body.kind) in standing.rounds or any(other.kind == body.kind for other in candidates):
        return "one-per-round"
    return ""


def _timing(roster: Roster, lineage: Lineage, body: UpdateBody, everyone: bool) -> str:
    known = lineage.parameters_digest(body.base_round)
    if body.base_round > roster.closed or known is None:
        return "future-base"
    if known != body.base_digest:
        return "wrong-base"
    if body.schema_digest != lineage.schema_of(body.base_round).digest:
        return "schema"
    staleness = roster.branches.staleness(body.base_round)
    if staleness is None:
        return "abandoned-branch"
    if roster.branches.is_on_former_lattice(body.base_round):
        return "former-lattice"
    if roster.genesis.defence.mode == "none":
        return ""
    if staleness > roster.plan.max_staleness:
        return "stale"
    if staleness == 0 and not everyone and not roster.plan.selects(body.client):
        return "not-selected"
    return ""


def final_reason(body: UpdateBody) -> str:
    """Return the reason that a sound update of this kind ends with by its nature: a client that declines has no blame."""
    return "declined" if body.kind in (DECLINE, PASS) else ""


def is_training(body: UpdateBody) -> bool:
    """Whether the update carries a delta."""
    return body.kind == TRAIN
