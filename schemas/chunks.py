"""The chunk: a run of blocks, each as a few frames, within a bound.

::

    0        version (1)
    1        form: 1 planes, 2 floats, 3 raw, 4 sparse
    2 … 3    zero
    4 … 7    number of the first block, little-endian
    8 … 11   count of blocks
    12 …     for each block: a byte whose set bits are its frames' places, and 4 bytes of length for each set bit
    …        zeros up to a multiple of 8
    …        the frames, end to end

Nothing is taken from a chunk before its header, table and lengths agree with each other and with the layout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from refold.schemas.errors import InvalidRecord
from refold.schemas.layout import Block, Layout
from refold.schemas.payload import CHUNK_BYTES

VERSION = 1
PLANES, FLOATS, RAW, SPARSE = 1, 2, 3, 4

_HEADER = struct.Struct("<BBHII")
_LENGTHS = tuple(struct.Struct(f"<{count}I") for count in range(9))
_ALIGN = 8


@dataclass(frozen=True, slots=True)
class Part:
    """One block inside a chunk: its frames, and the bit of `mask` that each stands for, lowest first."""

    block: Block
    mask: int
    frames: tuple[memoryview, ...]


def pack_chunks(
    parts: Iterable[tuple[int, list[bytes]]], form: int, *, max_chunk_bytes: int = CHUNK_BYTES, first: int = 0
) -> Iterator[bytes]:
    """Join blocks, each a mask and its frames, into chunks of at most `max_chunk_bytes`.

    A block that is larger on its own makes a chunk on its own; no block at all makes one chunk that says so.
    """
    table: list[bytes] = []
    frames: list[bytes] = []
    size = 0
    for mask, block_frames in parts:
        entry = bytes((mask,)) + _LENGTHS[len(block_frames)].pack(*map(len, block_frames))
        grows = len(entry) + sum(map(len, block_frames))
        if table and _HEADER.size + _ALIGN + size + grows > max_chunk_bytes:
            yield _pack(form, first, table, frames)
            first += len(table)
            table, frames, size = [], [], 0
        table.append(entry)
        frames += block_frames
        size += grows
    yield _pack(form, first, table, frames)


def _pack(form: int, first: int, table: list[bytes], frames: list[bytes]) -> bytes:
    head = _HEADER.pack(VERSION, form, 0, first, len(table)) + b"".join(table)
    return b"".join((head, bytes(-len(head) % _ALIGN), *frames))


def open_chunks(chunks: Iterable[bytes | memoryview], layout: Layout, form: int) -> Iterator[list[Part]]:
    """Yield the blocks of each chunk; together they are all of the layout's, each once and in order.

    Raises
    ------
    InvalidRecord
        ``lengths`` or ``layout``: a chunk contradicts itself or the layout, or blocks are missing at the end.
    """
    following = 0
    opened = 0
    for chunk in chunks:
        if opened and following == len(layout):
            raise InvalidRecord("layout", f"a chunk after the last of {len(layout)} blocks")
        parts = open_chunk(chunk, layout, form, following)
        following += len(parts)
        opened += 1
        yield parts
    if following != len(layout) or not opened:
        raise InvalidRecord("layout", f"{following} blocks of {len(layout)}")


def open_chunk(chunk: bytes | memoryview, layout: Layout, form: int, first: int) -> list[Part]:
    """Return the blocks of a chunk whose first block must be number `first`.

    Raises
    ------
    InvalidRecord
        ``lengths`` or ``layout``, as `open_chunks`.
    """
    view = memoryview(chunk).cast("B") if not isinstance(chunk, bytes) else memoryview(chunk)
    if not _HEADER.size <= len(view) <= CHUNK_BYTES:
        raise InvalidRecord("lengths", f"a chunk of {len(view):,} bytes")
    version, found, zero, begins, count = _HEADER.unpack_from(view)
    if (version, found, zero) != (VERSION, form, 0):
        raise InvalidRecord("layout", f"a chunk of version {version}, form {found}; expected {VERSION}, {form}")
    if begins != first or count > len(layout) - first or (count == 0 and len(layout)):
        raise InvalidRecord("layout", f"blocks {begins} … +{count} where {first} of {len(layout)} was due")
    return _split(view, layout, first, count)


def _split(view: memoryview, layout: Layout, first: int, count: int) -> list[Part]:
    entries: list[tuple[int, tuple[int, ...]]] = []
    position = _HEADER.size
    for _ in range(count):
        if position >= len(view):
            raise InvalidRecord("lengths", "the table of frames ends early")
        mask = view[position]
        lengths = _LENGTHS[mask.bit_count()]
        if position + 1 + lengths.size > len(view):
            raise InvalidRecord("lengths", "the table of frames ends early")
        entries.append((mask, lengths.unpack_from(view, position + 1)))
        position += 1 + lengths.size
    start = position + -position % _ALIGN
    if any(view[position:start]) or start + sum(sum(lengths) for _, lengths in entries) != len(view):
        raise InvalidRecord("lengths", "the frames' lengths are not those of the chunk")
    return list(_parts(view, start, entries, layout, first))


def _parts(
    view: memoryview, start: int, entries: list[tuple[int, tuple[int, ...]]], layout: Layout, first: int
) -> Iterator[Part]:
    for index, (mask, lengths) in enumerate(entries, first):
        frames: list[memoryview] = []
        for length in lengths:
            frames.append(view[start : start + length])
            start += length
        yield Part(layout[index], mask, tuple(frames))
