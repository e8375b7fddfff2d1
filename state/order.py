"""The median and the trimmed mean of a cohort, element by element, in integers.

What each member asks for is shifted to the cohort's least exponents, where it is an int32, and written to a scratch file; then
one slice of parameters after another is read from all members and sorted. So memory holds one slice of each member, not their
models, and the result does not depend on who came first. Weights say who takes part, not how much: a count of examples is a
claim, and a rule that is robust must not believe it.

Source: Yin, Chen, Ramchandran and Bartlett, Byzantine-robust distributed learning: towards optimal statistical rates, 2018.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import numpy as np

from refold.schemas.errors import InvalidRecord, StorageFullError, UsageError
from refold.schemas.layout import Block, Integers, Layout
from refold.schemas.model import ModelSchema
from refold.state.aggregation import Aggregate, Counters
from refold.state.delta import RANGE_BITS

MEAN, MEDIAN, TRIMMED = "weighted_mean", "median", "trimmed_mean"
SLICE_BYTES = 16 << 20
"""Of all members' values together that are held and sorted at once."""


def trim_of(rule: str) -> int | None:
    """Return how many members a recorded rule leaves out at each end; None for the median and the weighted mean.

    Raises
    ------
    InvalidRecord
        There is no such rule.
    """
    if rule in (MEAN, MEDIAN):
        return None
    name, _, count = rule.partition(":")
    if name != TRIMMED or not count.isascii() or not count.isdigit() or len(count) > 9:
        raise InvalidRecord("form", f"no rule of aggregation is called {rule!r}")
    return int(count)


@contextmanager
def _room() -> Iterator[None]:
    """Say what it comes to where the scratch file cannot be made or grow."""
    try:
        yield
    except OSError as error:
        raise StorageFullError(
            f"what a round's members ask for cannot be laid down: {error.strerror}",
            path=tempfile.tempdir or os.environ.get("TMPDIR"),
            hint="make room there, or let TMPDIR name a folder with room for four bytes a parameter and member",
        ) from error


class OrderStatistic:
    """Takes a cohort's updates as they come, and then finds the median or trimmed mean. Use as a context manager.

    Parameters
    ----------
    exponents
        k_min of each tensor over the whole cohort.
    rule
        ``median``, or ``trimmed_mean:K`` without the K lowest and K highest of each element.

    Raises
    ------
    StorageFullError
        There is no room for the scratch file; `add` and `result` raise the same. Begin again once there is.
    """

    def __init__(self, schema: ModelSchema, exponents: tuple[int, ...], rule: str) -> None:
        self._schema = schema
        self._exponents = exponents
        self._trim = trim_of(rule)
        self._layout = Layout.of(schema)
        self._counters = Counters(schema)
        # Buffered: without, a disk that is nearly full takes a part of what is written, and says nothing.
        with _room():
            self._scratch = tempfile.TemporaryFile(prefix="refold-order-")  # noqa: SIM115 -- closed by `__exit__`
        self._members = 0
        starts, start = {}, 0
        for block in self._layout:
            starts[block.index] = start
            start += 4 * block.count if schema.tensors[block.tensor].is_float else 0
        self._starts, self._size = starts, start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):  # On a full disk, what is in the buffer fails once more; nobody reads it.
            self._scratch.close()

    def add(self, blocks: Iterable[tuple[Block, Integers]], exponents: Sequence[int], *, index: int) -> None:
        """Add one update, as `WeightedMean.add` does.

        Raises
        ------
        InvalidRecord
            As `blocks`; also ``out-of-range``.
        """
        for block, integers in blocks:
            tensor = self._schema.tensors[block.tensor]
            if not tensor.is_float:
                self._counters.add(block, integers, index)
                continue
            k = exponents[block.tensor]
            largest = max(-int(integers.min()), int(integers.max()))
            if largest >= 1 << (RANGE_BITS - k):
                raise InvalidRecord("out-of-range", f"block {block.index} asks for {largest} · 2^{k} lattice steps")
            shifted = integers.astype(np.int32) << np.int32(k - self._exponents[block.tensor])
            with _room():
                self._scratch.seek(self._members * self._size + self._starts[block.index])
                self._scratch.write(shifted.data)
        self._members += 1

    def result(self) -> Aggregate:
        """Return what the rule makes of the members: a sum and the weight that it is to be divided by.

        Raises
        ------
        UsageError
            Nothing was added, or the rule leaves nobody.
        """
        kept = self._members - 2 * (self._trim or 0)
        if not self._members or kept < 1:
            raise UsageError(f"{self._members} updates are too few for the rule")
        with _room():
            self._scratch.flush()
        weight = kept if self._trim is not None else 1
        sums: list[Integers | None] = []
        counters = self._counters.result()
        for block in self._layout:
            is_float = self._schema.tensors[block.tensor].is_float
            sums.append(self._ordered(block) if is_float else counters.get(block.index))
        return Aggregate(self._schema, weight, self._exponents, sums)

    def _ordered(self, block: Block) -> Integers:
        found = np.empty(block.count, np.int64)
        length = max(1, SLICE_BYTES // (4 * self._members))
        for start in range(0, block.count, length):
            count = min(length, block.count - start)
            rows = np.empty((self._members, count), np.int32)
            for member, row in enumerate(rows):
                self._scratch.seek(member * self._size + self._starts[block.index] + 4 * start)
                self._scratch.readinto(row.data)
            found[start : start + count] = self._middle(rows)
        return found

    def _middle(self, rows: Integers) -> Integers:
        rows.sort(axis=0)
        if self._trim is not None:
            return np.asarray(rows[self._trim : len(rows) - self._trim].sum(axis=0, dtype=np.int64))
        low, high = rows[(len(rows) - 1) // 2].astype(np.int64), rows[len(rows) // 2].astype(np.int64)
        # rint((low + high) / 2), ties to even, without leaving the integers.
        half = (low + high) >> 1
        return np.asarray(half + (((low + high) & 1) & (half & 1)))
