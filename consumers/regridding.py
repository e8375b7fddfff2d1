"""When a lattice is too fine: the regridding that a void round asks for. Pure; detection writes what is returned."""

from __future__ import annotations

from refold.consumers.roster import Roster
from refold.producers.lineage import Lineage
from refold.schemas.events import Regridded
from refold.state.epochs import coarser


def regridded(roster: Roster, lineage: Lineage) -> Regridded | None:
    """Return the event that is due, or None: the newest round is no void one that asks for it, or nothing coarser is left.

    Idempotent: once it is in the log, the round that asks is no longer the newest.
    """
    asked = lineage.overflowed
    if asked is None or roster.ended or not asked.round == lineage.head == roster.closed:
        return None
    schema = roster.schema
    lattice = coarser(schema, asked.tensors)
    if lattice is None:
        return None
    names = ", ".join(repr(schema.tensors[index].name) for index in asked.tensors[:8])
    reason = f"round {asked.round} led beyond the lattice of {names}"
    parent = lineage.rounds[asked.round].parent
    return roster.branches.regridded(roster.genesis.policy, parent, schema, lattice, reason, clients=roster.able)
