"""Kafka's record batches, plain and compressed, with checksums that fit."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from random import Random

import zstandard
from crc32c import crc32c

from refold.bus._kafka_batches import (
    HEADER,
    MAX_BATCH_BYTES,
    UNREADABLE,
    Sender,
    encode_batch,
    encode_record,
    read_records,
    split_batches,
)
from refold.bus.contract import Place
from refold.schemas.errors import BusError
from tests.fuzz.decoder import TAKEN, Decoder, Defect, Input
from tests.fuzz.mutating import mutated

PLACE = Place("fuzz.updates", 0)
GZIP, ZSTD = 1, 4
ROWS = (
    (0, b"key", b"value", (("ce_type", b"refold.Chunk"), ("hint", b"1,2"))),
    (5, None, b"", ()),
    (9, b"k" * 40, None, (("h", b"v" * 30),)),
)


def decoders() -> Iterator[Decoder]:
    """Yield the one decoder."""
    yield Decoder(
        "kafka-batches",
        seeds,
        judge,
        errors=(BusError,),
        changes=(_recompressed,),
        mend=mend,
        reaches=frozenset({TAKEN, "unreadable", "BusError", "cut off"}),
    )


@cache
def seeds() -> tuple[Input, ...]:
    """Return answers of a broker: one batch, several, and compressed ones."""
    plain = batch(0)
    packed = [compressed(plain, codec) for codec in (GZIP, ZSTD)]
    return ((plain,), (plain + batch(3) + plain,), *((one,) for one in packed), (packed[1] + plain,))


def batch(base_offset: int) -> bytes:
    """Return a batch of the sample's rows."""
    parts = [part for i, row in enumerate(ROWS) for part in encode_record(i, *row)]
    made = encode_batch(parts, len(ROWS), (1_000, 1_009), Sender(7, 1), 0)
    struct.pack_into(">q", made, 0, base_offset)
    return bytes(made)


def compressed(plain: bytes, codec: int) -> bytes:
    """Return a batch with its records compressed."""
    body = plain[HEADER.size :]
    packed = gzip.compress(body, mtime=0) if codec == GZIP else zstandard.ZstdCompressor().compress(body)
    made = bytearray(plain[: HEADER.size] + packed)
    struct.pack_into(">h", made, 21, codec)
    return _sealed(made)


def judge(value: Input) -> str:
    """Read an answer, and see that offsets only grow and that what cannot be read is shown."""
    data, last, label, behind = value[0], None, TAKEN, 0
    for one in split_batches(memoryview(data), PLACE):
        behind += len(one.view)
        if len(one.view) > len(data):
            raise Defect("a batch is longer than the answer")
        last = None
        for record in read_records(one, PLACE, one.base_offset):
            if last is not None and record.offset <= last:
                raise Defect("an offset comes twice")
            if record.header(UNREADABLE) is None and record.size_bytes > MAX_BATCH_BYTES:
                raise Defect("a record is larger than any batch may be")
            label = "unreadable" if record.header(UNREADABLE) is not None else label
            last = record.offset
    return label if behind == len(data) or label != TAKEN else "cut off"


def mend(value: Input, _chance: Random) -> Input:
    """Make length and checksum of the first batch right."""
    return (_sealed(bytearray(value[0])), *value[1:]) if len(value[0]) >= HEADER.size else value


def _sealed(made: bytearray) -> bytes:
    struct.pack_into(">i", made, 8, len(made) - 12)
    made[16] = 2
    struct.pack_into(">I", made, 17, crc32c(bytes(made[21:])))
    return bytes(made)


def _recompressed(value: Input, chance: Random) -> Input:
    """Change what a compressed batch holds."""
    data = value[0]
    if len(data) < HEADER.size:
        return value
    codec = data[22] & 7
    body = data[HEADER.size :]
    try:
        if codec == GZIP:
            body = zlib.decompressobj(wbits=31).decompress(body, 1 << 20)
        elif codec == ZSTD:
            body = zstandard.ZstdDecompressor().stream_reader(body).read(1 << 20)
    except (zlib.error, zstandard.ZstdError):
        return value
    changed = mutated((body,), ((body,),), chance, is_packed=False)[0]
    if chance.random() < 0.1:
        changed = changed * chance.choice((2, 50))
    made = bytearray(data[: HEADER.size])
    return (compressed(bytes(made) + changed, chance.choice((GZIP, ZSTD))),)
