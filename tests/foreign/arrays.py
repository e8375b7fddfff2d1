"""Sections 8, 9, 11 and 12 of docs/WIRE.md: blocks, chunks, planes, lattices, steps, deltas, digests of states."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgpack
import numpy as np
import zstandard

from foreign.records import MAX_CHUNK_BYTES, RefusedError, Value, derived

PLANES, FLOATS, RAW, SPARSE = 1, 2, 3, 4
MAX_WINDOW_BYTES = 1_048_576
BLOCK_ELEMENTS = {32: 131_072, 64: 65_536}

Array = Any
"""A flat NumPy array; the tests do not check types of what is foreign."""


class Block(NamedTuple):
    """Elements of one flat tensor."""

    tensor: int
    elements: slice
    count: int
    width: int


def is_float(tensor: Value) -> bool:
    return tensor["dtype"] == "float32"


def size(tensor: Value) -> int:
    return math.prod(tensor["shape"])


def blocks_of(schema: Value) -> list[Block]:
    found = []
    for index, tensor in enumerate(schema["tensors"]):
        width = 32 if is_float(tensor) else 64
        for start in range(0, size(tensor), BLOCK_ELEMENTS[width]):
            count = min(BLOCK_ELEMENTS[width], size(tensor) - start)
            found.append(Block(index, slice(start, start + count), count, width))
    return found


def raw_bytes(schema: Value) -> int:
    return sum(size(tensor) * (4 if is_float(tensor) else 8) for tensor in schema["tensors"])


def empty_arrays(schema: Value) -> list[Array]:
    return [np.zeros(size(tensor), np.int32 if is_float(tensor) else np.int64) for tensor in schema["tensors"]]


# Chunks.


def pack(framed: Iterable[tuple[int, list[bytes]]], form: int, most_bytes: int = MAX_CHUNK_BYTES) -> list[bytes]:
    """Pack each block's mask and frames into chunks."""
    chunks: list[bytes] = []
    first, entries, frames = 0, [], []
    for mask, own in framed:
        entry = bytes([mask]) + b"".join(struct.pack("<I", len(frame)) for frame in own)
        if entries and len(_chunk(form, first, [*entries, entry], [*frames, *own])) > most_bytes:
            chunks.append(_chunk(form, first, entries, frames))
            first, entries, frames = first + len(entries), [], []
        entries.append(entry)
        frames += own
    return [*chunks, _chunk(form, first, entries, frames)]


def _chunk(form: int, first: int, entries: list[bytes], frames: list[bytes]) -> bytes:
    head = struct.pack("<BBHII", 1, form, 0, first, len(entries)) + b"".join(entries)
    return head + bytes(-len(head) % 8) + b"".join(frames)


def unpack(chunks: Iterable[bytes], blocks: Sequence[Block], form: int) -> Iterator[tuple[Block, int, list[bytes]]]:
    """Yield every block with its mask and frames."""
    following = 0
    for chunk in chunks:
        if chunk[:4] != bytes([1, form, 0, 0]) or struct.unpack_from("<I", chunk, 4)[0] != following:
            raise RefusedError("layout")
        count = struct.unpack_from("<I", chunk, 8)[0]
        at, table = 12, []
        for _ in range(count):
            bits = chunk[at].bit_count()
            table.append((chunk[at], struct.unpack_from(f"<{bits}I", chunk, at + 1)))
            at += 1 + 4 * bits
        at += -at % 8
        if at + sum(sum(lengths) for _, lengths in table) != len(chunk):
            raise RefusedError("lengths")
        for block, (mask, lengths) in zip(blocks[following : following + count], table, strict=True):
            frames = []
            for length in lengths:
                frames.append(chunk[at : at + length])
                at += length
            yield block, mask, frames
        following += count
    if following != len(blocks):
        raise RefusedError("layout")


def _compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_content_size=True, write_checksum=True).compress(data)


def _decompressed(frame: bytes, due_bytes: int) -> bytes:
    header = zstandard.get_frame_parameters(frame)
    if header.dict_id or not header.has_checksum or header.window_size > MAX_WINDOW_BYTES:
        raise RefusedError("compression")
    if header.content_size != due_bytes:
        raise RefusedError("lengths")
    return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)


# Planes, floats, raw integers.


def to_planes(values: Array) -> tuple[int, list[bytes]]:
    """Return mask and frames of a block of int32 or int64."""
    unsigned = values.view(f"u{values.itemsize}")
    middle = unsigned.dtype.type(int.from_bytes(b"\x80" * values.itemsize, "little"))
    digits = ((unsigned + middle) ^ middle).astype(f"<u{values.itemsize}").view(np.uint8).reshape(-1, values.itemsize)
    planes = [(place, digits[:, place].tobytes()) for place in range(values.itemsize) if digits[:, place].any()]
    return sum(1 << place for place, _ in planes), [_compressed(plane) for _, plane in planes]


def from_planes(block: Block, mask: int, frames: list[bytes]) -> Array:
    if mask >> (block.width // 8):
        raise RefusedError("layout")
    total = np.zeros(block.count, f"i{block.width // 8}")
    places = [place for place in range(8) if mask >> place & 1]
    for place, frame in zip(places, frames, strict=True):
        digits = np.frombuffer(_decompressed(frame, block.count), np.int8).astype(total.dtype)
        total += digits << (8 * place)
    return total


def from_entries(block: Block, mask: int, frames: list[bytes]) -> Array:
    """Return a block of a sparse payload, zeros where it has no entry."""
    if block.width == 64:
        return from_planes(block, mask, frames)
    found = np.zeros(block.count, np.int32)
    if not mask:
        return found
    count = zstandard.get_frame_parameters(frames[-1]).content_size
    if mask >> 7 or not mask >> 3 or not 1 <= count <= block.count:
        raise RefusedError("layout")
    gaps, values = np.zeros(count, np.int64), np.zeros(count, np.int32)
    for bit, frame in zip((bit for bit in range(7) if mask >> bit & 1), frames, strict=True):
        plane = _decompressed(frame, count)
        if bit < 3:
            gaps += np.frombuffer(plane, np.uint8).astype(np.int64) << (8 * bit)
        else:
            values += np.frombuffer(plane, np.int8).astype(np.int32) << (8 * (bit - 3))
    places = np.cumsum(gaps + 1) - 1
    if places[-1] >= block.count or not values.all():
        raise RefusedError("layout")
    found[places] = values
    return found


def to_entries(values: Array) -> tuple[int, list[bytes]]:
    """Return mask and frames of a block of int32 of which most are 0."""
    places = np.flatnonzero(values)
    if not places.size:
        return 0, []
    gaps = np.diff(places, prepend=-1) - 1
    planes = [(bit, (gaps >> (8 * bit)).astype(np.uint8)) for bit in range(3)]
    held = [(bit, plane.tobytes()) for bit, plane in planes if plane.any()]
    mask, frames = to_planes(values[places])
    return sum(1 << bit for bit, _ in held) | mask << 3, [*(_compressed(plane) for _, plane in held), *frames]


def sparse(chunks: Iterable[bytes], schema: Value) -> list[Array]:
    """Return the arrays of a sparse payload."""
    found = empty_arrays(schema)
    for block, mask, frames in unpack(chunks, blocks_of(schema), SPARSE):
        found[block.tensor][block.elements] = from_entries(block, mask, frames)
    return found


def integers(chunks: Iterable[bytes], schema: Value) -> list[Array]:
    """Return the arrays of a payload in planes."""
    found = empty_arrays(schema)
    for block, mask, frames in unpack(chunks, blocks_of(schema), PLANES):
        found[block.tensor][block.elements] = from_planes(block, mask, frames)
    return found


def floats(chunks: Iterable[bytes], schema: Value) -> list[Array]:
    """Return the arrays of a payload of floats: float32, and int64 for integer tensors."""
    found = [np.zeros(size(tensor), "f4" if is_float(tensor) else "i8") for tensor in schema["tensors"]]
    for block, mask, frames in unpack(chunks, blocks_of(schema), FLOATS):
        if block.width == 32:
            found[block.tensor][block.elements] = np.frombuffer(_decompressed(frames[0], 4 * block.count), "<f4")
        else:
            found[block.tensor][block.elements] = from_planes(block, mask, frames)
    return found


def raw(chunks: Iterable[bytes], schema: Value) -> list[Array]:
    """Return the arrays of a snapshot."""
    found = empty_arrays(schema)
    for block, mask, frames in unpack(chunks, blocks_of(schema), RAW):
        if mask != 1 or len(frames[0]) != block.count * block.width // 8:
            raise RefusedError("lengths")
        found[block.tensor][block.elements] = np.frombuffer(frames[0], f"<i{block.width // 8}")
    return found


def encoded(arrays: Sequence[Array], schema: Value, form: int, most_bytes: int = MAX_CHUNK_BYTES) -> list[bytes]:
    """Return the chunks of arrays; those of 32 bits are float32 where the form is floats."""

    def framed() -> Iterator[tuple[int, list[bytes]]]:
        for block in blocks_of(schema):
            part = arrays[block.tensor][block.elements]
            if form == FLOATS and block.width == 32:
                yield 1, [_compressed(part.astype("<f4").tobytes())]
            else:
                yield to_entries(part) if form == SPARSE and block.width == 32 else to_planes(part)

    return pack(framed(), form, most_bytes)


# Lattice, steps, deltas.


def value_of(held: Array, tensor: Value) -> Array:
    """Return a flat tensor as training sees it."""
    if is_float(tensor):
        return held.astype(np.float32) * np.float32(2.0 ** -tensor["exponent"])
    return held.astype(tensor["dtype"])


def add_step(held: list[Array], step: list[Array], exponents: Sequence[int]) -> None:
    for array, change, exponent in zip(held, step, exponents, strict=True):
        array += change << exponent


def coarsen(held: list[Array], before: Value, after: Value) -> None:
    """Bring integers onto a coarser lattice: to the nearest, ties to even. Float64 holds each exactly."""
    for array, old, new in zip(held, before["tensors"], after["tensors"], strict=True):
        if old["exponent"] != new["exponent"]:
            array[:] = np.rint(array / 2.0 ** (old["exponent"] - new["exponent"])).astype(array.dtype)


def grid(local: Array, held: Array, tensor: Value, k: int) -> Array:
    """Return a float tensor's change as integers in units of 2^k lattice steps."""
    change = local.astype(np.float64) - value_of(held, tensor)
    q = np.rint(change * 2.0 ** (tensor["exponent"] - k))
    if not np.all(np.isfinite(q)):
        raise RefusedError("not-finite")
    if not np.all(np.abs(q) < 2.0 ** (28 - k)):
        raise RefusedError("out-of-range")
    return q.astype(np.int32)


def cell(local: Array, held: Array, tensor: Value, planned: int, divisor: int, *, entries: bool = False) -> int:
    """Return the k that the page advises; the spread is that of the `entries` alone where they are what is sent."""
    change = (local.astype(np.float64) - value_of(held, tensor)) * 2.0 ** tensor["exponent"]
    change = change[change != 0] if entries else change
    sigma = math.sqrt(float(np.mean(change**2))) if change.size else 0.0
    low, high = max(0, planned - 2), min(28, planned + 8)
    return min(high, max(low, round(math.log2(sigma / divisor)))) if sigma > 0 else low


def largest(local: dict[str, Array], held: Sequence[Array], schema: Value, density_ppm: int) -> dict[str, Array]:
    """Return a model that differs from the base in the entries alone that an update with ``topk`` may carry."""
    pairs = [(t, array) for t, array in zip(schema["tensors"], held, strict=True) if is_float(t)]
    bases = {tensor["name"]: value_of(array, tensor) for tensor, array in pairs}
    sizes = np.concatenate([np.abs(local[name].astype("f8") - base) for name, base in bases.items()])
    most = min(sizes.size, max(1, -(-sizes.size * density_ppm // 1_000_000)))
    chosen = np.zeros(sizes.size, bool)
    chosen[np.argpartition(-sizes, most - 1)[:most]] = True
    parts = np.split(chosen, np.cumsum([base.size for base in bases.values()])[:-1])
    return local | {name: np.where(part, local[name], bases[name]) for part, name in zip(parts, bases, strict=True)}


# Digests of states.


def tensor_digest(name: str, dtype: str, shape: Sequence[int], exponent: int, held: Array) -> bytes:
    about = msgpack.packb([name, dtype, list(shape), exponent])
    width = 8 * held.itemsize
    starts = range(0, held.size, BLOCK_ELEMENTS[width])
    parts = (held[start : start + BLOCK_ELEMENTS[width]].astype(f"<i{width // 8}").tobytes() for start in starts)
    leaves = b"".join(derived("state leaf", part) for part in parts)
    return derived("state tensor", struct.pack("<I", len(about)) + about + leaves)


def parameters_digest(schema: Value, held: Sequence[Array]) -> bytes:
    pairs = zip(schema["tensors"], held, strict=True)
    digests = [tensor_digest(t["name"], t["dtype"], t["shape"], t["exponent"], array) for t, array in pairs]
    return derived("state parameters", b"".join(digests))


def state_digest(schema: Value, held: Sequence[Array], slots: Sequence[tuple[str, Sequence[int], Sequence[Array]]]) -> bytes:
    """Return the digest of parameters and slots; a slot is its name, exponents and arrays, one for each tensor."""
    digests = [
        tensor_digest(f"{name}/{tensor['name']}", "int32", tensor["shape"], exponent, array)
        for name, exponents, arrays in slots
        for tensor, exponent, array in zip(schema["tensors"], exponents, arrays, strict=True)
        if is_float(tensor)
    ]
    return derived("state", parameters_digest(schema, held) + derived("state slots", b"".join(digests)))
