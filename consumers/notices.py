"""What `rounds` tells clients of themselves: notices of keys and bans, and how far their updates were looked at."""

from __future__ import annotations

from collections.abc import Iterator

from refold.bus.ledger import Entry
from refold.schemas.commits import PartitionPosition
from refold.schemas.events import RolledBack, Unattributed, UpdateRejected
from refold.schemas.identity import (
    BY_KEY,
    ClientBanned,
    ClientEnrolled,
    ClientNotice,
    ClientReleased,
    ClientRevoked,
    UpdatesRefused,
)
from refold.schemas.keys import key_id

MOST_RUNS = 64
"""Runs of judged updates above a position that are told; more would make every commit of a large cohort large."""


def notices_of(entry: Entry, *, required: bool) -> Iterator[ClientNotice]:
    """Yield what a commit of `accepted` does to clients.

    Parameters
    ----------
    required
        Clients are identified, so that one who says two things under one number is frozen.
    """
    for event in entry.events:
        match event:
            case ClientEnrolled():
                yield ClientNotice(event.client, "enrolled", key_id(event.public_key))
                if event.request is not None and event.request.kind == BY_KEY:
                    yield ClientNotice(event.client, "revoked", event.request.authority)
            case ClientRevoked():
                for key in event.key_ids:
                    yield ClientNotice(event.client, "revoked", key)
            case ClientBanned():
                yield ClientNotice(event.client, "banned", None)
            case RolledBack():
                yield from (ClientNotice(client, "banned", None) for client in event.culprits)
            case ClientReleased():
                yield ClientNotice(event.client, "released", None)
            case UpdateRejected() if required and "equivocation" in event.reasons:
                yield ClientNotice(event.origin.client, "frozen", None)


def refuses_without_receipt(entry: Entry) -> bool:
    """Whether a commit passes over records whose senders can learn of it by the position alone."""
    return any(isinstance(event, Unattributed | UpdatesRefused) for event in entry.events)


def told_positions(entry: Entry) -> tuple[PartitionPosition, ...]:
    """Return how far a commit of `accepted` has looked at updates, in short."""
    return tuple(
        PartitionPosition(part.partition, part.next_offset, part.judged_above[:MOST_RUNS])
        for part in entry.commit.position.updates
    )
