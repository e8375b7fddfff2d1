"""Epochs: the rounds that share one lattice, and how a state comes onto a coarser one.

Going to a coarser lattice loses bits, so an epoch's first round can be reached from its parent and never the other way. The
rounding is of integers alone, to the nearest, ties to even: every machine finds the same, and replay decides nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from refold.schemas.errors import IntegrityError
from refold.schemas.layout import Integers
from refold.schemas.model import ModelSchema
from refold.state.lattice import HEADROOM_BITS, MIN_EXPONENT
from refold.state.model_state import ModelState

Lattice = tuple[int, ...]
"""The exponent E of each tensor; empty for the one that the federation was founded with."""

SLICE = 1 << 16


@dataclass(frozen=True, slots=True)
class Epoch:
    """A lattice, and the round that it begins with."""

    first: int = 0
    lattice: Lattice = ()


FOUNDING = Epoch()


@dataclass(slots=True)
class Epochs:
    """A fold over rounds: which epoch each belongs to. Rounds of the first one take no room."""

    _later: dict[int, Epoch] = field(default_factory=dict)

    def add(self, round_: int, parent: int, lattice: Lattice = ()) -> None:
        """Take a round in; one that begins an epoch says on which lattice."""
        epoch = Epoch(round_, lattice) if lattice else self.of(parent)
        if epoch is not FOUNDING:
            self._later[round_] = epoch

    def of(self, round_: int) -> Epoch:
        """Return a round's epoch."""
        return self._later.get(round_, FOUNDING)


def coarser(schema: ModelSchema, tensors: Collection[int]) -> Lattice | None:
    """Return the lattice on which these tensors may grow as far again as a new one may; None where there is none.

    Parameters
    ----------
    schema
        On the lattice that is too fine.
    tensors
        Positions of float tensors.
    """
    found = tuple(tensor.exponent - (HEADROOM_BITS if index in tensors else 0) for index, tensor in enumerate(schema.tensors))
    fits = all(found[index] >= MIN_EXPONENT and schema.tensors[index].is_float for index in tensors)
    return found if tensors and fits else None


def regrid(state: ModelState, lattice: Lattice) -> None:
    """Bring a state's parameters onto a coarser lattice, in place. Slots have a lattice of their own and stay.

    Raises
    ------
    IntegrityError
        The lattice is finer than the state's, or of another model.
    """
    tensors = state.schema.tensors
    bits = [tensor.exponent - after for tensor, after in zip(tensors, lattice, strict=False)]
    allowed = [count == 0 or (count > 0 and tensor.is_float) for tensor, count in zip(tensors, bits, strict=False)]
    if len(lattice) != len(tensors) or not all(allowed):
        raise IntegrityError("a state cannot come onto a finer lattice, or one of another model", round=state.round)
    for integers, count in zip(state.parameters, bits, strict=True):
        if count:
            round_off(integers, count)
    state.schema = state.schema.on(lattice)


def round_off(integers: Integers, bits: int) -> None:
    """Divide by ``2^bits`` in place, to the nearest, ties to even."""
    for start in range(0, integers.size, SLICE):
        part = integers[start : start + SLICE]
        wide = part.astype(np.int64)
        if bits > 62:
            part[:] = 0
            continue
        half = (1 << (bits - 1)) - 1
        part[:] = (wide + half + ((wide >> bits) & 1)) >> bits
