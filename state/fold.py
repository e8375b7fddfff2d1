"""The fold: ``s += d · 2^j``, modulo the integers' width, and nothing else.

Blocks do not overlap and integer addition does not care about order, so any thread count gives the same state, and the same
step with the other sign gives the state before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from refold.schemas.chunks import PLANES, RAW, Part, open_chunks
from refold.schemas.codec import fold_planes, raw_integers
from refold.schemas.layout import BLOCK, WIDE_BLOCK, Block, Integers, Layout
from refold.schemas.model import TensorSchema
from refold.state.lattice import limits
from refold.state.model_state import ModelState

T = TypeVar("T")
_scratch = threading.local()


def apply_step(state: ModelState, blocks: Iterable[tuple[Block, Integers]], exponents: Sequence[int], *, sign: int = 1) -> None:
    """Add a step's blocks to the parameters in place; with sign −1 take them away.

    Where `blocks` raises, the blocks before are already in the state.
    """
    for block, change in blocks:
        _add(state.parameters[block.tensor][block.elements], change << exponents[block.tensor], sign)


def fold_chunks(
    arrays: Sequence[Integers],
    layout: Layout,
    chunks: Iterable[bytes | memoryview],
    exponents: Sequence[int],
    *,
    sign: int = 1,
    threads: int = 1,
) -> None:
    """Decode a step's chunks and add them to flat arrays in place.

    Holds a chunk and a block for each thread. A failure leaves the arrays half changed: throw them away.

    Raises
    ------
    InvalidRecord
        As `decode_integers`.
    """

    def fold_parts(parts: list[Part]) -> None:
        for part in parts:
            if not part.mask:
                continue
            block = part.block
            change = fold_planes(part, _scratch_of(block))
            if exponents[block.tensor]:
                np.left_shift(change, exponents[block.tensor], out=change)
            _add(arrays[block.tensor][block.elements], change, sign)

    _each(fold_parts, open_chunks(chunks, layout, PLANES), threads)


def load_chunks(arrays: Sequence[Integers], layout: Layout, chunks: Iterable[bytes | memoryview], *, threads: int = 1) -> None:
    """Copy a snapshot's raw chunks into flat arrays.

    Raises
    ------
    InvalidRecord
        As `decode_raw`.
    """

    def load_parts(parts: list[Part]) -> None:
        for part in parts:
            arrays[part.block.tensor][part.block.elements] = raw_integers(part)

    _each(load_parts, open_chunks(chunks, layout, RAW), threads)


def would_overflow(tensor: TensorSchema, integers: Integers, change: Integers, exponent: int) -> bool:
    """Whether adding ``change · 2^exponent`` would leave what the tensor may hold (see `limits`)."""
    if not integers.size:
        return False
    low, high = limits(tensor)
    least, most = int(integers.min()), int(integers.max())
    if low <= least + (int(change.min()) << exponent) and most + (int(change.max()) << exponent) <= high:
        return False
    if integers.dtype == np.int64:
        sums = integers + change  # Wraps only where the exact sum is out of int64, which the extremes below would show.
        exact = abs(least) < 1 << 62 and abs(most) < 1 << 62 and int(np.abs(change).max()) < 1 << 62
        return not (exact and low <= int(sums.min()) and int(sums.max()) <= high)
    after = integers.astype(np.int64) + (change.astype(np.int64) << exponent)
    return not low <= int(after.min()) <= int(after.max()) <= high


def _add(target: Integers, change: Integers, sign: int) -> None:
    if sign > 0:
        np.add(target, change, out=target)
    else:
        np.subtract(target, change, out=target)


def _scratch_of(block: Block) -> Integers:
    """Return this thread's own room for one block, as long as the block."""
    found: dict[int, Integers] | None = getattr(_scratch, "room", None)
    if found is None:
        found = {32: np.empty(BLOCK, np.int32), 64: np.empty(WIDE_BLOCK, np.int64)}
        _scratch.room = found
    return found[block.width][: block.count]


def _each(work: Callable[[T], None], items: Iterable[T], threads: int) -> None:
    """Do the work for every item, on this thread and `threads` − 1 others; the first failure is raised.

    This thread alone takes items, which may come from a reader that is not to be shared, and works itself while the others do.
    """
    if threads == 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads - 1) as pool:
        busy: list[Future[None]] = []
        for item in items:
            for done in [future for future in busy if future.done()]:
                busy.remove(done)
                done.result()
            if len(busy) < threads - 1:
                busy.append(pool.submit(work, item))
            else:
                work(item)
        for future in busy:
            future.result()
