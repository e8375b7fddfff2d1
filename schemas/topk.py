"""The largest entries of a delta alone: where they are and what they are.

A block of a float tensor is two lists of one length, for its entries in order. A *gap* says how many elements lie between an
entry and the one before it (the first: before the block's first element), 0 for neighbours; a *value* is an integer other than
0. Gaps lie below 2^17, so they are written in plain base 256 as up to three planes of unsigned bytes, lowest first; a gap above
65,535 costs one more plane, not an escape. Values are balanced digit planes as the grid has them (`refold.schemas.codec`).

::

    mask bit  0 1 2        planes of the gaps' bytes, lowest first
              3 4 5 6      planes of the values' digits, lowest first
              7            zero

Every plane is one zstd frame of as many bytes as there are entries; a plane of zeros is left out; a block without entries has
the mask 0 and no frame. So a block has one form: the decoder refuses a value of 0, a plane of zeros, lists of unlike length and
an entry outside the block. Blocks of integer tensors are whole, as the grid has them: their rules need every value.

Sources: Aji and Heafield, Sparse communication for distributed gradient descent, 2017; Lin et al., Deep gradient compression,
2018. What is left out is not lost: see `refold.producers.residual`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.schemas.chunks import SPARSE, Part, open_chunks, pack_chunks
from refold.schemas.codec import decode_planes, encode_block, frame_size, join_planes, pack_frame, unpack_frame
from refold.schemas.errors import InvalidRecord
from refold.schemas.layout import Block, Integers, Layout
from refold.schemas.payload import CHUNK_BYTES
from refold.schemas.plans import WHOLE_PPM

Places = npt.NDArray[np.signedinteger[Any]]

GAP_PLANES = 3
_VALUE_PLANES = 4
_GAPS = (1 << GAP_PLANES) - 1
_UNUSED = GAP_PLANES + _VALUE_PLANES
_ENTRY_BYTES = GAP_PLANES + _VALUE_PLANES
_FRAMES_BYTES = 1024
"""More than a block's entry in the table and the heads and tails of seven frames."""


@dataclass(frozen=True, slots=True)
class Entries:
    """What is sent of one flattened float tensor.

    Parameters
    ----------
    places
        Indices, ascending.
    values
        int32, as many; none of them 0.
    """

    places: Places
    values: npt.NDArray[np.int32]


def most_entries(parameters: int, density_ppm: int) -> int:
    """Return how many of these parameters an update may carry: the share, rounded up, and one at least."""
    return min(parameters, max(1, -(-parameters * density_ppm // WHOLE_PPM)))


def most_bytes(layout: Layout, entries: int) -> int:
    """Return a bound of the payload that so many entries make, however badly they compress."""
    whole = sum(size * 8 for size, width in zip(layout.sizes, layout.widths, strict=True) if width == 64)
    plain = entries * _ENTRY_BYTES + whole
    return plain + plain // 32 + _FRAMES_BYTES * (len(layout) + 1)


def encode_sparse(
    tensors: Sequence[Entries | Integers], layout: Layout, *, max_chunk_bytes: int = CHUNK_BYTES
) -> Iterator[bytes]:
    """Yield the chunks of `Entries` for each tensor whose width is 32, and whole int64 arrays for the others."""
    parts = (_encode_part(tensors[block.tensor], block) for block in layout)
    return pack_chunks(parts, SPARSE, max_chunk_bytes=max_chunk_bytes)


def decode_sparse(chunks: Iterable[bytes | memoryview], layout: Layout) -> Iterator[tuple[Block, Integers]]:
    """Yield every block of the layout in order with an array of its own, zeros where nothing was sent.

    Holds one chunk and one block at a time.

    Raises
    ------
    InvalidRecord
        ``lengths``, ``layout`` or ``compression``.
    """
    for parts in open_chunks(chunks, layout, SPARSE):
        for part in parts:
            yield part.block, _decode_part(part)


def _encode_part(tensor: Entries | Integers, block: Block) -> tuple[int, list[bytes]]:
    if not isinstance(tensor, Entries):
        return encode_block(tensor[block.elements])
    first, following = np.searchsorted(tensor.places, (block.start, block.start + block.count))
    places = tensor.places[first:following]
    if not len(places):
        return 0, []
    gaps = (np.diff(places, prepend=block.start - 1) - 1).astype("<u4")
    gap_mask, gap_frames = _encode_gaps(gaps)
    value_mask, value_frames = encode_block(tensor.values[first:following])
    return gap_mask | value_mask << GAP_PLANES, gap_frames + value_frames


def _encode_gaps(gaps: npt.NDArray[np.uint32]) -> tuple[int, list[bytes]]:
    mask, frames = 0, []
    for place, plane in enumerate(gaps.view(np.uint8).reshape(-1, 4).T[:GAP_PLANES]):
        if plane.any():
            mask |= 1 << place
            frames.append(pack_frame(plane.tobytes()))
    return mask, frames


def _decode_part(part: Part) -> Integers:
    block = part.block
    if block.width != 32:
        return decode_planes(part)
    found = np.zeros(block.count, np.int32)
    if not part.mask:
        return found
    gap_mask, value_mask = part.mask & _GAPS, part.mask >> GAP_PLANES
    if part.mask >> _UNUSED or not value_mask:
        raise InvalidRecord("layout", f"planes {part.mask:#x} in a block of entries")
    count = frame_size(part.frames[-1])
    if not 1 <= count <= block.count:
        raise InvalidRecord("lengths", f"block {block.index} has {count:,} entries for {block.count:,} elements")
    at = gap_mask.bit_count()
    places = _decode_gaps(gap_mask, part.frames[:at], block, count)
    found[places] = _decode_values(value_mask, part.frames[at:], block, count)
    return found


def _decode_gaps(mask: int, frames: Sequence[memoryview], block: Block, count: int) -> Places:
    """Return the places of a block's entries within it: ascending, none twice, since a gap is never negative."""
    digits = np.zeros((count, 4), np.uint8)
    following = iter(frames)
    for place in range(GAP_PLANES):
        if mask >> place & 1:
            digits[:, place] = _unpack_plane(next(following), block, count)
    # Below 2^17 entries of less than 2^24 each: 64 bits hold the sum.
    places: Places = np.cumsum(digits.view("<u4").ravel(), dtype=np.int64)
    places += np.arange(count)
    if places[-1] >= block.count:
        raise InvalidRecord("layout", f"block {block.index} has an entry at {places[-1]:,} of {block.count:,}")
    return places


def _decode_values(mask: int, frames: tuple[memoryview, ...], block: Block, count: int) -> Integers:
    places = [place for place in range(_VALUE_PLANES) if mask >> place & 1]
    planes = [_unpack_plane(frame, block, count).view(np.int8) for frame in frames]
    values = join_planes(planes, places, np.empty(count, np.int32))
    if not values.all():
        raise InvalidRecord("layout", f"block {block.index} has an entry that is 0")
    return values


def _unpack_plane(frame: memoryview, block: Block, count: int) -> npt.NDArray[np.uint8]:
    plane = np.frombuffer(unpack_frame(frame, count), np.uint8)
    if not plane.any():
        raise InvalidRecord("layout", f"block {block.index} has a plane of zeros")
    return plane
