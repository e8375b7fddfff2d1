"""Regriddings: each follows from a void round that asked for it, and coarsens the tensors that were too large, no others."""

from __future__ import annotations

from collections.abc import Iterator

from refold.producers.lineage import Lineage
from refold.schemas.events import Regridded
from refold.state.epochs import coarser


def regrid_faults(event: Regridded, closed: int, lineage: Lineage) -> Iterator[str]:
    """Yield what is wrong with a regridding.

    Parameters
    ----------
    closed
        The newest round before it.
    lineage
        What `rounds` said by then.
    """
    if event.round != closed + 1 or event.overflowed != closed:
        yield f"a regridding after round {event.overflowed} opens round {event.round}, round {closed} being the newest"
    if event.next_plan.round != event.round + 1:
        yield f"round {event.round} plans round {event.next_plan.round}"
    asked, made = lineage.overflowed, lineage.rounds.get(event.overflowed)
    if made is None or asked is None or asked.round != event.overflowed:
        yield f"round {event.round} is on a coarser lattice, which round {event.overflowed} did not ask for"
        return
    if event.parent != made.parent:
        yield f"round {event.round} is built on round {event.parent}, the round that overflowed on {made.parent}"
    if lineage.opened is not None and event.exponents != coarser(lineage.schema_of(event.overflowed), asked.tensors):
        yield f"the lattice of round {event.round} is not the one that round {event.overflowed} asked for"
