"""Chunks of arrays: planes, floats, raw, sparse; and changes that reach into their frames."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

import numpy as np
import zstandard

from refold.schemas.chunks import FLOATS, PLANES, RAW, SPARSE
from refold.schemas.codec import (
    decode_floats,
    decode_integers,
    decode_raw,
    encode_floats,
    encode_integers,
    encode_raw,
    pack_frame,
)
from refold.schemas.topk import decode_sparse
from tests.fuzz import samples
from tests.fuzz.decoder import TAKEN, Decoder, Defect, Input

_READ = {PLANES: decode_integers, FLOATS: decode_floats, RAW: decode_raw, SPARSE: decode_sparse}
_NAMES = {PLANES: "planes", FLOATS: "floats", RAW: "raw", SPARSE: "sparse"}
_HEAD = struct.Struct("<BBHII")
_MOST_PLAIN = 1 << 20


def decoders() -> Iterator[Decoder]:
    """Yield one for each form of chunk."""
    for form, name in _NAMES.items():
        reaches = {TAKEN, "layout", "lengths"} | ({"compression"} if form != RAW else set())
        yield Decoder(
            f"chunks-{name}",
            seeds=lambda form=form: samples.chunks(form),
            judge=lambda value, form=form: judge(form, value),
            changes=(reframe, retable),
            reaches=frozenset(reaches | ({"not-finite"} if form == FLOATS else set())),
        )


def judge(form: int, value: Input) -> str:
    """Decode chunks block by block, and see that what they gave can be written and read again."""
    layout = samples.layout()
    found: list[Any] = [[] for _ in layout.sizes]
    for block, integers in _READ[form](value, layout):
        if integers.shape != (block.count,) or (form == FLOATS and not np.isfinite(integers).all()):
            raise Defect(f"block {block.index} came as {integers.dtype} {integers.shape}")
        found[block.tensor].append(integers)
    arrays = [np.concatenate(parts) if parts else np.empty(0, np.int32) for parts in found]
    if form != SPARSE:
        _check_again(form, arrays)
    return TAKEN


def _check_again(form: int, arrays: list[Any]) -> None:
    layout = samples.layout()
    write: Any = {PLANES: encode_integers, FLOATS: encode_floats, RAW: encode_raw}[form]
    again = _READ[form](list(write(arrays, layout)), layout)
    if any(integers.tobytes() != arrays[block.tensor][block.elements].tobytes() for block, integers in again):
        raise Defect("what was decoded comes back as something else")


def opened(chunk: bytes) -> tuple[bytes, list[tuple[int, list[bytes]]]] | None:
    """Return a chunk's head and its blocks' masks and frames, or None where it has not even these."""
    if len(chunk) < _HEAD.size:
        return None
    count = _HEAD.unpack_from(chunk)[4]
    at, table = _HEAD.size, []
    for _ in range(min(count, 4096)):
        if at >= len(chunk) or at + 1 + 4 * chunk[at].bit_count() > len(chunk):
            return None
        number = chunk[at].bit_count()
        table.append((chunk[at], struct.unpack_from(f"<{number}I", chunk, at + 1)))
        at += 1 + 4 * number
    at += -at % 8
    blocks = []
    for mask, lengths in table:
        frames = []
        for length in lengths:
            frames.append(chunk[at : at + length])
            at += length
        blocks.append((mask, frames))
    return chunk[: _HEAD.size], blocks


def closed(head: bytes, blocks: Iterable[tuple[int, list[bytes]]]) -> bytes:
    """Return the chunk again, its table right."""
    blocks = list(blocks)
    table = b"".join(bytes((mask,)) + b"".join(len(frame).to_bytes(4, "little") for frame in frames) for mask, frames in blocks)
    front = head + table
    return b"".join((front, bytes(-len(front) % 8), *(frame for _, frames in blocks for frame in frames)))


def reframe(value: Input, chance: Random) -> Input:
    """Change what a frame holds, or how it is compressed, and make the table right."""
    at = chance.randrange(len(value))
    found = opened(value[at])
    if found is None or not any(frames for _, frames in found[1]):
        return value
    head, blocks = found
    _, frames = chance.choice([block for block in blocks if block[1]])
    which = chance.randrange(len(frames))
    frames[which] = _other_frame(frames[which], chance)
    return (*value[:at], closed(head, blocks), *value[at + 1 :])


def retable(value: Input, chance: Random) -> Input:
    """Change a mask, or leave out, repeat or exchange frames and blocks, and make the rest right."""
    at = chance.randrange(len(value))
    found = opened(value[at])
    if found is None or not found[1]:
        return value
    head, blocks = found
    which = chance.randrange(len(blocks))
    mask, frames = blocks[which]
    match chance.randrange(4):
        case 0 if frames:
            bit = chance.choice([bit for bit in range(8) if mask >> bit & 1])
            free = [bit for bit in range(8) if not mask >> bit & 1] or [bit]
            blocks[which] = (mask & ~(1 << bit) | 1 << chance.choice(free), frames)
        case 1 if frames:
            bit = chance.choice([bit for bit in range(8) if mask >> bit & 1])
            blocks[which] = (mask & ~(1 << bit), frames[:-1])
        case 2 if mask != 255:
            bit = chance.choice([bit for bit in range(8) if not mask >> bit & 1])
            blocks[which] = (mask | 1 << bit, [*frames, chance.choice(frames) if frames else pack_frame(bytes(7))])
        case _:
            to = chance.randrange(len(blocks))
            blocks[which], blocks[to] = blocks[to], blocks[which]
    return (*value[:at], closed(head, blocks), *value[at + 1 :])


def plain_of(frame: bytes) -> bytes | None:
    """Return what a frame holds, within a bound; None if it is none."""
    try:
        return zstandard.ZstdDecompressor().stream_reader(frame).read(_MOST_PLAIN)
    except zstandard.ZstdError:
        return None


def _other_frame(frame: bytes, chance: Random) -> bytes:
    plain = bytearray(plain_of(frame) or frame)
    if plain and chance.random() < 0.5:
        for _ in range(chance.randrange(1, 4)):
            # The heavy values: exponents of floats that are not finite, the lattice's ends, gaps beyond the block.
            place = chance.randrange(len(plain)) & ~3
            plain[place : place + 4] = chance.choice(
                (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff" * 4, b"\x80" * 4, bytes(4))
            )
    return _compressed(bytes(plain), chance)


def _compressed(plain: bytes, chance: Random) -> bytes:
    said: dict[str, Any] = {"write_content_size": True, "write_checksum": True, "write_dict_id": False}
    match chance.randrange(10):
        case 0:
            said["write_checksum"] = False
        case 1:
            said["write_content_size"] = False
        case 2:
            return pack_frame(plain) + pack_frame(plain)
        case 3:
            return pack_frame(plain) + b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
        case 4:
            return b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip" + pack_frame(plain)
        case 5:
            return lying(pack_frame(plain), chance.choice((0, 1, 1 << 20, 1 << 30, 1 << 62, 2**64 - 1)))
        case 6:
            frame = bytearray(pack_frame(plain))
            frame[4] |= chance.randrange(1, 4)  # a dictionary's number follows, says the head
            return bytes(frame)
        case 7:
            return pack_frame(plain)[:-4] + chance.randbytes(4)
        case 8:
            return pack_frame(plain + chance.randbytes(chance.randrange(1, 9)))
    return zstandard.ZstdCompressor(level=chance.choice((1, 3, 19)), **said).compress(plain)


def lying(frame: bytes, named: int) -> bytes:
    """Return a frame that says it holds `named` bytes, in eight bytes, whatever it holds.

    Source: RFC 8878, 3.1.1.1: descriptor, window (absent here), dictionary, content size.
    """
    flag, single = frame[4] >> 6, frame[4] >> 5 & 1
    width = {0: 1 if single else 0, 1: 2, 2: 4, 3: 8}[flag]
    behind = 5 + (0 if single else 1) + width
    return frame[:4] + bytes((frame[4] & 0x1F | 3 << 6 | 1 << 5,)) + named.to_bytes(8, "little") + frame[behind:]
