"""Merged steps: several rounds' steps as one.

A step changes integers by addition modulo 2^32 (2^64 for counters), so the sum of steps is a step: it leads from the first
round's parent to the last round, and taken away leads back, to the very same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from refold.schemas.codec import encode_integers
from refold.schemas.layout import Integers, Layout
from refold.schemas.model import ModelSchema
from refold.schemas.payload import CHUNK_BYTES
from refold.state.fold import fold_chunks
from refold.state.paths import Piece, SlotExponents

MIN_ROUNDS = 2

RECENT_ROUNDS = 32
"""Merged steps of every length are kept of so many newest rounds: for who was away for a while."""

LASTING_ROUNDS = 32
"""Of older rounds those of this length and of each fourfold are kept. Measured on digits (benchmarks/recovery.py): all lengths
together take as much again as the single steps, these a tenth of that."""


@dataclass(frozen=True, slots=True)
class Part:
    """A step that goes into a merged one.

    Parameters
    ----------
    exponents
        j of each tensor.
    parameters, slots
        Open its chunks; `slots` is None where the round has no slots.
    """

    exponents: tuple[int, ...]
    parameters: Callable[[], Iterable[bytes]]
    slots: Callable[[], Iterable[bytes]] | None


@dataclass(frozen=True, slots=True)
class MergedStep:
    """The sum of steps, in integers.

    Parameters
    ----------
    exponents
        j of each tensor: the least of the parts'.
    parameters, slots
        Flat, for each tensor, and for each tensor of each slot.
    """

    schema: ModelSchema
    exponents: tuple[int, ...]
    parameters: list[Integers]
    slots: list[Integers]
    slot_names: tuple[str, ...]

    def encode(self, *, max_chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Yield the chunks of the parameters' change."""
        return encode_integers(self.parameters, Layout.of(self.schema), max_chunk_bytes=max_chunk_bytes)

    def encode_slots(self, *, max_chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Yield the chunks of the slots' change."""
        return encode_integers(self.slots, Layout.of_slots(self.schema, self.slot_names), max_chunk_bytes=max_chunk_bytes)

    def equals(self, other: MergedStep) -> bool:
        """Whether two are the same change, whatever the exponents that they are written with."""
        if self.slot_names != other.slot_names:
            return False
        left = (array << j for array, j in zip(self.parameters, self.exponents, strict=True))
        right = (array << j for array, j in zip(other.parameters, other.exponents, strict=True))
        same = all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))
        return same and all(np.array_equal(a, b) for a, b in zip(self.slots, other.slots, strict=True))


def merge(schema: ModelSchema, parts: Sequence[Part], slot_exponents: SlotExponents, *, threads: int = 1) -> MergedStep:
    """Return the sum of steps, in any order. Holds one model of integers, its slots, and a chunk at a time.

    Parameters
    ----------
    parts
        None where every round is void: then the change is zero.
    slot_exponents
        The lattice of the slots after the last round.

    Raises
    ------
    InvalidRecord
        As `fold_chunks`.
    IntegrityError
        Whatever opening the parts raises.
    """
    layout, names = Layout.of(schema), tuple(slot_exponents)
    slot_layout = Layout.of_slots(schema, names)
    exponents = tuple(map(min, zip(*(part.exponents for part in parts), strict=True))) if parts else (0,) * len(layout.sizes)
    merged = MergedStep(schema, exponents, _zeros(layout), _zeros(slot_layout), names)
    for part in parts:
        shifts = tuple(j - least for j, least in zip(part.exponents, exponents, strict=True))
        fold_chunks(merged.parameters, layout, part.parameters(), shifts, threads=threads)
        if part.slots is not None:
            fold_chunks(merged.slots, slot_layout, part.slots(), (0,) * len(slot_layout.sizes), threads=threads)
    return merged


def due(head: int, after: int = 0) -> Iterator[Piece]:
    """Yield which merged steps there can be up to round `head`, of 2, 4, 8, … rounds, by their last round, short ones first.

    A merged step of n rounds ends at a multiple of n, so there are no more than rounds, and any distance takes no more than
    two of each length.

    Parameters
    ----------
    after
        Only those that end after this round.
    """
    for last in range(after + 1, head + 1):
        count = MIN_ROUNDS
        while last % count == 0:
            yield last - count, last
            count *= 2


def is_kept(piece: Piece, head: int) -> bool:
    """Whether a merged step is kept now that `head` is the newest round. None goes before the one twice as long is due."""
    count = piece[1] - piece[0]
    lasts = count >= LASTING_ROUNDS and (count // LASTING_ROUNDS).bit_length() % 2 == 1
    return lasts or head - piece[1] < max(RECENT_ROUNDS, 2 * count)


def spanning(piece: Piece, merged: Iterable[Piece]) -> list[Piece]:
    """Return merged and single steps that follow one another and together are this span, the longest first at each place."""
    ends: dict[int, int] = {}
    for first, last in merged:
        if (first, last) != piece and last <= piece[1]:
            ends[first] = max(last, ends.get(first, 0))
    at, found = piece[0], []
    while at < piece[1]:
        found.append((at, ends.get(at, at + 1)))
        at = found[-1][1]
    return found


def is_line(piece: Piece, parent_of: Callable[[int], int | None]) -> bool:
    """Whether each round of a span was built on the one before it."""
    first, last = piece
    return all(parent_of(round_) == round_ - 1 for round_ in range(first + 1, last + 1))


def halves(piece: Piece, merged: Container[Piece]) -> tuple[Piece, Piece] | None:
    """Return the two merged steps that together are this one, where both are there."""
    first, last = piece
    middle = (first + last) // 2
    pair = (first, middle), (middle, last)
    return pair if pair[0] in merged and pair[1] in merged else None


def _zeros(layout: Layout) -> list[Integers]:
    return [
        np.zeros(size, np.int32 if width == 32 else np.int64) for size, width in zip(layout.sizes, layout.widths, strict=True)
    ]
