"""Kafka's record batches (format 2), written and read within bounds.

kafka-python decompresses whatever it is given, without a bound: 16 KB can grow to 512 MB. So batches are read here: lazily, one
record at a time, each length checked before anything is copied, and decompressed to at most `MAX_BATCH_BYTES`.

A batch that is whole (its checksum fits) and yet cannot be read was made so by whoever sent it. It stops no reader and is not
lost: what cannot be read of it comes as one record, at the first offset concerned, with the batch's bytes as its value and the
header `UNREADABLE`. A checksum that does not fit is the infrastructure's fault and raises.

Source: Apache Kafka's `DefaultRecordBatch`, `DefaultRecord`; https://kafka.apache.org/documentation/#recordbatch.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import zstandard

from refold.bus.contract import Headers, Place, Record
from refold.schemas.errors import BusError, ConfigurationError

try:
    from crc32c import crc32c
except ImportError as error:
    # kafka-python would go on at 7 MB/s without it.
    raise ConfigurationError("the package crc32c lacks", hint="pip install 'kafka-python[crc32c]'") from error

UNREADABLE = "refold-unreadable"
"""Header of a record that stands for a batch, or the rest of one, that cannot be read; its value says why."""

MAX_BATCH_BYTES = 16 << 20
"""Largest batch after decompression: what a sender of 1 MB batches of text may reach, and no more."""

MAX_HEADERS = 1_000
"""Most headers of a record: each costs 70 bytes of memory where it takes two in its batch, so that 16 MiB would take 580."""

MAX_SHOWN_BYTES = 1_000_000
"""How much of an unreadable batch its record shows, so that it fits into one record again (for `quarantine`)."""

HEADER = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, magic, checksum, attributes, last offset delta, first and largest timestamp, producer's id
and epoch, base sequence, record count."""

_LENGTH_END = 12
_CHECKSUM_AT = 17
_CHECKED_FROM = 21
_CODEC_MASK, _LOG_APPEND_TIME, _CONTROL = 0x07, 0x08, 0x20


class Malformed(ValueError):
    """A batch is whole and yet not what the format says."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as it lies in a fetch response; `view` keeps the response's memory alive."""

    view: memoryview
    base_offset: int
    last_offset: int
    attributes: int
    first_timestamp: int
    max_timestamp: int
    count: int

    @property
    def is_control(self) -> bool:
        """Whether it holds a transaction's marker and no records."""
        return bool(self.attributes & _CONTROL)


class Sender(NamedTuple):
    """An idempotent producer's identity."""

    producer_id: int
    epoch: int


def encode_record(index: int, time_delta_ms: int, key: bytes | None, value: bytes | None, headers: Headers) -> list[bytes]:
    """Return one record as the parts to be joined, so that a large value is copied once, into its batch."""
    head = bytearray(b"\x00")
    _put(head, time_delta_ms)
    _put(head, index)
    _put(head, -1 if key is None else len(key))
    head += key or b""
    _put(head, -1 if value is None else len(value))
    tail = bytearray()
    _put(tail, len(headers))
    for name, content in headers:
        encoded = name.encode()
        _put(tail, len(encoded))
        tail += encoded
        _put(tail, len(content))
        tail += content
    length = bytearray()
    _put(length, len(head) + len(value or b"") + len(tail))
    return [bytes(length + head), value or b"", bytes(tail)]


def encode_batch(records: Sequence[bytes], count: int, timestamps: tuple[int, int], sender: Sender, sequence: int) -> bytearray:
    """Return a batch of encoded records.

    Parameters
    ----------
    timestamps
        The first record's and the largest, in milliseconds.
    sequence
        The first record's sequence number, which tells the broker a repeat.
    """
    batch = bytearray(HEADER.size)
    for part in records:
        batch += part
    first_ms, last_ms = timestamps
    HEADER.pack_into(batch, 0, 0, len(batch) - _LENGTH_END, -1, 2, 0, 0, count - 1, first_ms, last_ms, *sender, sequence, count)
    with memoryview(batch) as view:
        checksum = crc32c(view[_CHECKED_FROM:])
    struct.pack_into(">I", batch, _CHECKSUM_AT, checksum)
    return batch


def split_batches(data: memoryview, place: Place) -> Iterator[Batch]:
    """Yield the whole batches of a fetch response; brokers cut the last one off where their bound falls.

    Raises
    ------
    BusError
        A checksum does not fit, or the format is older than Kafka 4 writes.
    """
    at = 0
    while len(data) - at >= HEADER.size:
        base, length, _, magic, checksum, attributes, last_delta, first_ms, max_ms, _, _, _, count = HEADER.unpack_from(
            data, at
        )
        end = at + _LENGTH_END + length
        if magic != 2 or length < HEADER.size - _LENGTH_END:
            raise damaged(place, base, f"its format is {magic}, not 2")
        if end > len(data):
            return
        if crc32c(data[at + _CHECKED_FROM : end]) != checksum:
            raise damaged(place, base, "its checksum does not fit")
        yield Batch(data[at:end], base, base + last_delta, attributes, first_ms, max_ms, count)
        at = end


def damaged(place: Place, offset: int, what: str) -> BusError:
    """Return the error of a batch whose bytes are not what its writer made."""
    hint = "the broker's disk or the network changed bytes; check the broker's log, then read again"
    return BusError(
        f"a record batch is damaged: {what}", topic=place.topic, partition=place.partition, offset=offset, hint=hint
    )


def read_records(batch: Batch, place: Place, from_offset: int) -> Iterator[Record]:
    """Yield a batch's records from an offset on, each as it is asked for; control batches hold none."""
    if batch.is_control:
        return
    next_offset = max(from_offset, batch.base_offset)
    try:
        for record in _read_within_bounds(batch, place):
            if record.offset >= from_offset:
                yield record
                next_offset = record.offset + 1
    except (Malformed, IndexError, UnicodeError, struct.error) as error:
        if next_offset <= batch.last_offset:
            yield _unreadable(batch, place, next_offset, str(error) or type(error).__name__)


def _unreadable(batch: Batch, place: Place, offset: int, why: str) -> Record:
    headers = ((UNREADABLE, why.encode()),)
    shown = bytes(batch.view[:MAX_SHOWN_BYTES])
    return Record(place.topic, place.partition, offset, batch.first_timestamp, None, shown, headers)


def _read_within_bounds(batch: Batch, place: Place) -> Iterator[Record]:
    data = _decompressed(batch)
    at, last_offset = 0, batch.base_offset - 1
    for _ in range(batch.count):
        length, at = _take(data, at)
        end = at + length
        if length < 0 or end > len(data):
            raise Malformed("a record is longer than its batch")
        record = _read_record(batch, place, data, at, end)
        if not last_offset < record.offset <= batch.last_offset:
            raise Malformed("a record's offset is outside its batch or out of order")
        last_offset, at = record.offset, end
        yield record
    if at != len(data):
        raise Malformed("bytes are left after the last record")


def _read_record(batch: Batch, place: Place, data: memoryview, at: int, end: int) -> Record:
    time_delta, at = _take(data, at + 1)
    offset_delta, at = _take(data, at)
    key, at = _take_bytes(data, at, end)
    value, at = _take_bytes(data, at, end)
    count, at = _take(data, at)
    if not 0 <= count <= min(end - at, MAX_HEADERS):
        raise Malformed(f"a record says that it has {count} headers")
    headers = []
    for _ in range(count):
        name, at = _take_bytes(data, at, end)
        content, at = _take_bytes(data, at, end)
        headers.append(((name or b"").decode(errors="replace"), content or b""))
    if at != end:
        raise Malformed("a record's parts do not fill it")
    time_ms = batch.max_timestamp if batch.attributes & _LOG_APPEND_TIME else batch.first_timestamp + time_delta
    return Record(place.topic, place.partition, batch.base_offset + offset_delta, time_ms, key, value, tuple(headers))


def _decompressed(batch: Batch) -> memoryview:
    body, codec = batch.view[HEADER.size :], batch.attributes & _CODEC_MASK
    if codec == 0:
        return body
    if codec == 1:
        return memoryview(_gunzip(body))
    if codec == 4:
        return memoryview(_unzstd(body))
    # snappy and lz4 would need packages that Refold does not bring; whoever writes for Refold sends batches uncompressed.
    raise Malformed(f"its compression (codec {codec}) is none that Refold reads")


def _gunzip(body: memoryview) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        data = stream.decompress(body, MAX_BATCH_BYTES + 1)
    except zlib.error as error:
        raise Malformed(f"it cannot be decompressed: {error}") from error
    return _within_bound(data)


def _unzstd(body: memoryview) -> bytes:
    try:
        with zstandard.ZstdDecompressor(max_window_size=MAX_BATCH_BYTES).stream_reader(body, read_across_frames=True) as stream:
            data = stream.read(MAX_BATCH_BYTES + 1)
    except zstandard.ZstdError as error:
        raise Malformed(f"it cannot be decompressed: {error}") from error
    return _within_bound(data)


def _within_bound(data: bytes) -> bytes:
    if len(data) > MAX_BATCH_BYTES:
        raise Malformed(f"it decompresses to more than {MAX_BATCH_BYTES} bytes")
    return data


def _take_bytes(data: memoryview, at: int, end: int) -> tuple[bytes | None, int]:
    length, at = _take(data, at)
    if length < 0:
        return None, at
    if at + length > end:
        raise Malformed("a part of a record is longer than the record")
    return bytes(data[at : at + length]), at + length


def _take(data: memoryview, at: int) -> tuple[int, int]:
    """Read a zigzag varint."""
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (result >> 1) ^ -(result & 1), at
        shift += 7
        if shift > 63:
            raise Malformed("a number is longer than 64 bits")


def _put(out: bytearray, number: int) -> None:
    """Append a zigzag varint."""
    rest = (number << 1) ^ (number >> 63)
    while rest > 0x7F:
        out.append(0x80 | (rest & 0x7F))
        rest >>= 7
    out.append(rest)
