"""A coarser lattice: what asks for it, and the event that begins an epoch on it.

A round whose step would leave the lattice is void. `rounds` then says which tensors were too large (`Overflowed`), detection
answers with `Regridded`, and aggregation makes the round that it opens: the state of before, its integers rounded to the
coarser cells. A lattice holds for all rounds that are built on that one; a rollback goes back to the lattice of its parent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from refold.schemas.canonical import Small, Text, Uint, Within, record
from refold.schemas.model import MAX_TENSORS
from refold.schemas.plans import RoundPlan

REGRIDDED = "regrid"
"""Outcome of the round that a regridding opens."""


@record(55)
@dataclass(frozen=True, slots=True)
class Overflowed:
    """A void round's step would have led beyond the lattice of these tensors. Follows the round in its commit of `rounds`.

    Parameters
    ----------
    tensors
        Their positions in the schema, in order.
    """

    round: Uint
    tensors: Annotated[tuple[Uint, ...], Within(1, MAX_TENSORS)]


@record(56)
@dataclass(frozen=True, slots=True)
class Regridded:
    """A round is opened whose state is its parent's on a coarser lattice: it begins an epoch.

    Parameters
    ----------
    round
        The number after the newest: numbers are never used again.
    parent
        The round that the void one was to be built on.
    overflowed
        The void round, the newest before.
    exponents
        The exponent E of each tensor from here on, 0 for those that are not on the lattice; none is above the parent's.
    next_plan
        Of the round that is open now.
    """

    round: Uint
    parent: Uint
    overflowed: Uint
    exponents: Annotated[tuple[Small, ...], Within(1, MAX_TENSORS)]
    reason: Text
    next_plan: RoundPlan
