"""The weighted mean of a cohort in integers: ``S = Σ w_c · (q_c << (k_c − k_min))``.

Every term is an integer and every sum is exact, so the result does not depend on who came first. Updates are taken one at a
time, block by block; beside one block only the sum is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from refold.schemas.errors import InvalidRecord, UsageError
from refold.schemas.layout import Block, Integers, Layout
from refold.schemas.model import ModelSchema
from refold.state.delta import RANGE_BITS

MAX_TOTAL_WEIGHT = 1 << 24
INT64_MAX = (1 << 63) - 1


def least_exponents(exponents: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Return for each tensor the smallest exponent that any update uses."""
    return tuple(min(column) for column in zip(*exponents, strict=True))


def scaled_weights(weights: Sequence[int]) -> tuple[int, ...]:
    """Return weights whose sum is at most `MAX_TOTAL_WEIGHT`; each that was above 0 stays above 0.

    Halves all of them, rounding up, until they fit, so that the result depends on the weights alone.
    """
    if len(weights) > MAX_TOTAL_WEIGHT // 2:
        raise UsageError(f"{len(weights):,} updates in one round exceed {MAX_TOTAL_WEIGHT // 2:,}")
    found = tuple(weights)
    while sum(found) > MAX_TOTAL_WEIGHT:
        found = tuple((weight + 1) // 2 for weight in found)
    return found


@dataclass
class Aggregate:
    """What a cohort asks for, exactly.

    Parameters
    ----------
    weight
        Σ w_c, above 0.
    exponents
        k_min of each tensor.
    sums
        Block by block of the layout: for float tensors S, int32 or int64; for integer tensors (int64) the largest value, the
        sum of the changes, or the value of the last update. `take` empties it.
    """

    schema: ModelSchema
    weight: int
    exponents: tuple[int, ...]
    sums: list[Integers | None]

    def take(self, block: Block) -> Integers:
        """Return a block's sum and let go of it."""
        found = self.sums[block.index]
        if found is None:
            raise UsageError(f"block {block.index} was taken before")
        self.sums[block.index] = None
        return found

    def peek(self, block: Block) -> Integers:
        """Return a block's sum and keep it."""
        found = self.sums[block.index]
        if found is None:
            raise UsageError(f"block {block.index} was taken before")
        return found


@dataclass
class Counters:
    """What a cohort makes of integer tensors, whatever rule its floats follow: the largest, the sum of changes, the last value.

    Parameters
    ----------
    sums
        By block index, int64; sums of changes modulo 2^64 until `result` says what they come to.
    """

    schema: ModelSchema
    sums: dict[int, Integers] = field(default_factory=dict)
    _last: dict[int, int] = field(default_factory=dict)
    _bounds: dict[int, int] = field(default_factory=dict)
    _turns: dict[int, Integers] = field(default_factory=dict)

    def add(self, block: Block, integers: Integers, index: int) -> None:
        """Combine one update's block with what came before; `index` is where its verdict lies in the log.

        Blocks that no round changes are passed over.
        """
        if self.schema.tensors[block.tensor].is_fixed:
            return
        held, rule = self.sums.get(block.index), self.schema.tensors[block.tensor].rule
        if held is None:
            self.sums[block.index] = integers.astype(np.int64)
            self._last[block.index] = index
            self._bounds[block.index] = _magnitude(integers)
        elif rule == "max":
            np.maximum(held, integers, out=held)
        elif rule == "sum":
            self._add(held, integers, block.index)
        elif index > self._last[block.index]:
            held[:] = integers
            self._last[block.index] = index

    def _add(self, held: Integers, integers: Integers, block: int) -> None:
        """Add modulo 2^64, and count how often each element went around: the sum is exact, in any order."""
        self._bounds[block] += _magnitude(integers)
        if self._bounds[block] <= INT64_MAX:
            np.add(held, integers, out=held)
            return
        before = held.copy()
        np.add(held, integers, out=held)
        turns = self._turns.setdefault(block, np.zeros(len(held), np.int32))
        turns += (integers > 0) & (held < before)
        turns -= (integers < 0) & (held > before)

    def result(self) -> dict[int, Integers]:
        """Return what became of each block; a sum beyond int64 stays at its end."""
        for block, turns in self._turns.items():
            self.sums[block][turns > 0] = INT64_MAX
            self.sums[block][turns < 0] = -INT64_MAX - 1
        return self.sums


@dataclass
class WeightedMean:
    """Sums a cohort's updates as they come.

    A failure inside `add` leaves the sum half changed: throw it away.

    Parameters
    ----------
    exponents
        k_min of each tensor over the whole cohort (`least_exponents`).
    """

    schema: ModelSchema
    exponents: tuple[int, ...]
    weight: int = 0
    _sums: list[Integers | None] = field(init=False)
    _bounds: list[int] = field(init=False)
    _counters: Counters = field(init=False)

    def __post_init__(self) -> None:
        blocks = len(Layout.of(self.schema))
        self._sums = [None] * blocks
        self._bounds = [0] * blocks
        self._counters = Counters(self.schema)

    def add(self, blocks: Iterable[tuple[Block, Integers]], exponents: Sequence[int], *, weight: int, index: int) -> None:
        """Add one update.

        Parameters
        ----------
        blocks
            Its blocks in order, as `decode_update` gives them. Their arrays may be overwritten.
        exponents
            Its k of each tensor, none below `self.exponents`.
        weight
            Above 0; a member with weight 0 is not added.
        index
            Where its verdict lies in the log: the highest decides tensors with the rule ``last``.

        Raises
        ------
        InvalidRecord
            As `blocks`; also ``out-of-range``.
        UsageError
            The weights' sum exceeds `MAX_TOTAL_WEIGHT`, or an exponent lies below the cohort's.
        """
        if weight < 1 or self.weight + weight > MAX_TOTAL_WEIGHT:
            raise UsageError(f"weight {weight} on top of {self.weight}", hint="scale them with scaled_weights")
        shifts = [k - least for k, least in zip(exponents, self.exponents, strict=True)]
        if min(shifts) < 0:
            raise UsageError("an exponent lies below the cohort's least")
        self.weight += weight
        for block, integers in blocks:
            tensor = self.schema.tensors[block.tensor]
            if tensor.is_float:
                self._add_weighted(block, integers, weight, shifts[block.tensor], exponents[block.tensor])
            else:
                self._counters.add(block, integers, index)

    def result(self) -> Aggregate:
        """Return the sum and forget it.

        Raises
        ------
        UsageError
            Nothing was added.
        """
        if not self.weight:
            raise UsageError("no update was added")
        sums, self._sums = self._sums, []
        for index, combined in self._counters.result().items():
            sums[index] = combined
        return Aggregate(self.schema, self.weight, self.exponents, sums)

    def _add_weighted(self, block: Block, integers: Integers, weight: int, shift: int, k: int) -> None:
        largest = max(-int(integers.min()), int(integers.max()))
        if largest >= 1 << (RANGE_BITS - k):
            raise InvalidRecord("out-of-range", f"block {block.index} asks for {largest} · 2^{k} lattice steps")
        factor = weight << shift
        self._bounds[block.index] += largest * factor
        held = self._sums[block.index]
        # The extremes prove whether 32 bits still hold the sum: half the memory, and twice as fast.
        dtype = np.dtype(np.int32 if self._bounds[block.index] < 1 << 31 and factor < 1 << 31 else np.int64)
        if held is None:
            self._sums[block.index] = np.multiply(integers, factor, dtype=dtype)
            return
        if held.dtype != dtype and dtype == np.int64:
            held = held.astype(np.int64)
            self._sums[block.index] = held
        if not largest:
            return
        np.add(held, _scaled(integers, factor, held.dtype), out=held)


def _magnitude(integers: Integers) -> int:
    return max(-int(integers.min(initial=0)), int(integers.max(initial=0)))


def _scaled(integers: Integers, factor: int, dtype: npt.DTypeLike) -> Integers:
    if integers.dtype == dtype and integers.flags.writeable:
        return np.multiply(integers, factor, out=integers)
    wide: Integers = integers.astype(dtype)
    return np.multiply(wide, factor, out=wide)
