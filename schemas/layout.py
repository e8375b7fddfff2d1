"""Where a model is cut into blocks: the unit of coding, digests and threads.

Blocks are numbered through the model: tensors in schema order, each cut from its start. A tensor without elements has none. The
cut depends on the schema alone, never on chunk sizes or threads, so digests agree everywhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.schemas.model import ModelSchema

Integers = npt.NDArray[np.signedinteger[Any]]
"""A flat array of int32 (a float tensor's lattice) or int64 (an integer tensor)."""

BLOCK = 1 << 17
"""Elements of a block of a 32-bit tensor: 512 KiB, which fits a core's cache."""

WIDE_BLOCK = 1 << 16
"""Elements of a block of a 64-bit tensor: 512 KiB too, so that any block fits one chunk however badly it compresses."""


@dataclass(frozen=True, slots=True)
class Block:
    """A run of elements of one flattened tensor.

    Parameters
    ----------
    index
        Its number in the model.
    tensor
        Position of its tensor in the schema.
    start, count
        The elements ``start … start + count - 1``.
    width
        Bits of an element in memory: 32 or 64.
    """

    index: int
    tensor: int
    start: int
    count: int
    width: int

    @property
    def elements(self) -> slice:
        """The block's place in its flattened tensor."""
        return slice(self.start, self.start + self.count)

    @property
    def size_bytes(self) -> int:
        """Bytes of its raw little-endian integers."""
        return self.count * self.width // 8


class Layout:
    """The blocks of a list of flattened tensors.

    Parameters
    ----------
    sizes
        Elements of each tensor.
    widths
        Bits of each tensor's elements: 32 for float tensors (lattice integers, or bits), 64 for integer tensors.
    """

    def __init__(self, sizes: Sequence[int], widths: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self.widths = tuple(widths)
        if len(self.sizes) != len(self.widths) or any(width not in (32, 64) for width in self.widths):
            raise ValueError("each tensor needs a width of 32 or 64")
        counts = [-(-size // block_length(width)) for size, width in zip(self.sizes, self.widths, strict=True)]
        self._firsts = tuple(accumulate(counts, initial=0))

    @classmethod
    def of(cls, schema: ModelSchema) -> Layout:
        """Return the layout of a model's parameters."""
        return _cached(tuple(t.size for t in schema.tensors), tuple(t.width for t in schema.tensors))

    @classmethod
    def of_slots(cls, schema: ModelSchema, names: Sequence[str]) -> Layout:
        """Return the layout of an optimizer's slots: for each name all tensors, of which the integer ones are empty."""
        sizes = tuple(t.size if t.is_float else 0 for t in schema.tensors)
        return _cached(sizes * len(names), (32,) * len(sizes) * len(names))

    def __len__(self) -> int:
        """Return the number of blocks."""
        return self._firsts[-1]

    def __iter__(self) -> Iterator[Block]:
        for tensor in range(len(self.sizes)):
            yield from self.of_tensor(tensor)

    def of_tensor(self, tensor: int) -> Iterator[Block]:
        """Yield the blocks of one tensor."""
        for index in range(self._firsts[tensor], self._firsts[tensor + 1]):
            yield self._block(index, tensor)

    def __getitem__(self, index: int) -> Block:
        """Return a block by its number."""
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        return self._block(index, bisect_right(self._firsts, index) - 1)

    def _block(self, index: int, tensor: int) -> Block:
        length = block_length(self.widths[tensor])
        start = (index - self._firsts[tensor]) * length
        return Block(index, tensor, start, min(length, self.sizes[tensor] - start), self.widths[tensor])

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors as raw little-endian integers."""
        return sum(size * width // 8 for size, width in zip(self.sizes, self.widths, strict=True))


def block_length(width: int) -> int:
    """Return the most elements of a block whose elements have this many bits."""
    return BLOCK if width == 32 else WIDE_BLOCK


@lru_cache(maxsize=32)
def _cached(sizes: tuple[int, ...], widths: tuple[int, ...]) -> Layout:
    return Layout(sizes, widths)
