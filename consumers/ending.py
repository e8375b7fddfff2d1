"""When the federation is over by its policy. Pure; detection writes what is returned."""

from __future__ import annotations

from refold.consumers.regridding import regridded
from refold.consumers.roster import Roster
from refold.producers.lineage import Lineage
from refold.schemas.events import FederationEnded


def ended(roster: Roster, lineage: Lineage) -> FederationEnded | None:
    """Return the event that is due, or None: rounds are left, or the last one is not made, or void until a coarser lattice.

    The last round's plan asks nobody for anything, so that no client trains in vain between that round and this event.
    """
    is_made = lineage.head == roster.closed
    if roster.ended or not is_made or not roster.branches.is_over(roster.genesis.policy):
        return None
    if regridded(roster, lineage) is not None:
        return None
    return FederationEnded(roster.closed, "all rounds are done")
