"""Record batches, read within bounds: what is whole comes back, what is not harms nobody. No broker needed."""

from __future__ import annotations

import gzip
import struct
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from refold.bus import Place, Record
from refold.bus._kafka_answers import Held
from refold.bus._kafka_batches import (
    HEADER,
    MAX_BATCH_BYTES,
    UNREADABLE,
    Sender,
    _put,
    crc32c,
    encode_batch,
    encode_record,
    read_records,
    split_batches,
)
from refold.schemas.errors import BusError

PLACE = Place("suite.batches", 3)
SENDER = Sender(7, 1)
GZIP, SNAPPY, ZSTD = 1, 2, 4

records = st.lists(
    st.tuples(
        st.integers(0, 10_000),
        st.none() | st.binary(max_size=20),
        st.none() | st.binary(max_size=200),
        st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=20)), max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=8,
)


def batch_of(rows, base_offset=0):
    parts = [part for index, row in enumerate(rows) for part in encode_record(index, *row)]
    batch = encode_batch(parts, len(rows), (1_000, 1_000 + max(row[0] for row in rows)), SENDER, 0)
    struct.pack_into(">q", batch, 0, base_offset)
    return batch


def sealed(batch):
    """Make the checksum fit again, as a sender of bad batches would."""
    struct.pack_into(">I", batch, 17, crc32c(bytes(batch[21:])))
    return batch


def compressed(batch, codec, body):
    made = bytearray(batch[: HEADER.size]) + body
    struct.pack_into(">i", made, 8, len(made) - 12)
    struct.pack_into(">h", made, 21, codec)
    return sealed(made)


def read(data, from_offset=0):
    return [record for batch in split_batches(memoryview(data), PLACE) for record in read_records(batch, PLACE, from_offset)]


def plain(rows, base_offset=0):
    return [
        Record(PLACE.topic, PLACE.partition, base_offset + index, 1_000 + delta, key, value, headers)
        for index, (delta, key, value, headers) in enumerate(rows)
    ]


@given(records, st.integers(0, 2**40))
def test_what_was_written_is_read(rows, base_offset):
    assert read(batch_of(rows, base_offset), base_offset) == plain(rows, base_offset)


@given(records)
def test_kafka_python_reads_what_we_write_and_we_what_it_writes(rows):
    from refold.bus import kafka as driver  # first, so that what kafka-python warns of when it is loaded is dealt with

    assert driver
    from kafka.record import MemoryRecords
    from kafka.record.default_records import DefaultRecordBatchBuilder

    [theirs] = MemoryRecords(bytes(batch_of(rows)))
    assert theirs.validate_crc()
    assert [(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in theirs] == [
        (r.offset, r.timestamp_ms, r.key, r.value, r.headers) for r in plain(rows)
    ]
    builder = DefaultRecordBatchBuilder(2, 0, False, 7, 1, 0, 1 << 20)
    for index, (delta, key, value, headers) in enumerate(rows):
        builder.append(index, 1_000 + delta, key, value, list(headers))
    ours = read(builder.build())
    assert [(r.key, r.value, r.headers, r.timestamp_ms) for r in ours] == [
        (key, value, headers, 1_000 + delta) for delta, key, value, headers in rows
    ]


@pytest.mark.parametrize(("codec", "compress"), [(GZIP, gzip.compress), (ZSTD, zstandard.ZstdCompressor().compress)])
def test_compressed_batches_are_read(codec, compress):
    rows = [(0, b"key", b"x" * 5000, ()), (1, None, b"y", (("h", b"v"),))]
    batch = batch_of(rows)
    assert read(compressed(batch, codec, compress(bytes(batch[HEADER.size :])))) == plain(rows)


@pytest.mark.parametrize(("codec", "compress"), [(GZIP, gzip.compress), (ZSTD, zstandard.ZstdCompressor().compress)])
def test_a_bomb_comes_as_one_record_that_shows_it_and_memory_stays_bounded(codec, compress):
    bomb = compressed(batch_of([(0, None, b"", ())], 40), codec, compress(bytes(512 << 20)))
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    [record] = read(bomb, 40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MAX_BATCH_BYTES
    assert (record.offset, record.key, record.value) == (40, None, bytes(bomb))
    assert b"more than" in record.header(UNREADABLE)


def test_a_codec_that_refold_does_not_read_comes_as_one_record():
    [record] = read(compressed(batch_of([(0, b"k", b"v", ())] * 3), SNAPPY, b"whatever"))
    assert (record.offset, record.header(UNREADABLE)) == (0, b"its compression (codec 2) is none that Refold reads")


def test_what_precedes_a_bad_record_is_read_and_the_rest_is_shown_once():
    rows = [(0, None, b"first", ()), (0, None, b"second", ()), (0, None, b"third", ())]
    batch = batch_of(rows)
    at = bytes(batch).index(b"second")
    batch[at - 1] = 0x7E  # The length of the second value: longer than its record.
    first, rest = read(sealed(batch))
    assert first == plain(rows)[0]
    assert (rest.offset, rest.value) == (1, bytes(batch))


@given(records, st.data())
def test_whatever_a_sender_writes_into_a_batch_nothing_is_raised_and_no_offset_is_passed_over_in_silence(rows, data):
    batch = batch_of(rows)
    for _ in range(data.draw(st.integers(1, 4))):
        batch[data.draw(st.integers(HEADER.size, len(batch) - 1))] = data.draw(st.integers(0, 255))
    found = read(sealed(batch))
    offsets = [record.offset for record in found]
    assert offsets == sorted(set(offsets))
    assert set(offsets) <= set(range(len(rows)))
    if len(found) < len(rows):
        assert found[-1].header(UNREADABLE) is not None or offsets[-1] == len(rows) - 1


def test_a_damaged_batch_is_an_error_of_the_infrastructure():
    batch = batch_of([(0, None, b"value", ())], 9)
    batch[-2] ^= 1
    with pytest.raises(BusError, match="checksum") as raised:
        read(batch)
    assert raised.value.where == {"topic": PLACE.topic, "partition": PLACE.partition, "offset": 9}


@pytest.mark.parametrize("bit", [1 << 2, 1 << 40, 1 << 63], ids=["near", "far", "negative"])
def test_f22_a_batch_whose_offset_was_changed_on_the_way_passes_over_nothing(bit):
    rows = [(0, None, b"%d" % number, ()) for number in range(4)]
    answer = bytearray(batch_of(rows, base_offset=100))
    held = Held(PLACE, 100, 104, memoryview(bytes(answer)))
    assert [held.peek().value, held.position] == [b"0", 100]
    struct.pack_into(">Q", answer, 0, 100 ^ bit)
    changed = Held(PLACE, 100, 104, memoryview(bytes(answer)))
    with pytest.raises(BusError, match="is damaged"):
        changed.peek()
    assert changed.position == 100
    assert changed.peek() is None


def test_a_batch_that_the_broker_cut_off_is_left_for_the_next_fetch():
    whole, cut = batch_of([(0, None, b"whole", ())]), batch_of([(0, None, b"cut", ())], 1)
    for length in range(len(cut)):
        assert [record.value for record in read(whole + cut[:length])] == [b"whole"]


def test_a_transactions_marker_holds_no_records():
    marker = batch_of([(0, b"\x00\x00\x00\x01", b"\x00\x00\x00\x00\x00\x00", ())])
    struct.pack_into(">h", marker, 21, 0x30)
    assert read(sealed(marker)) == []


@pytest.mark.parametrize("codec", [GZIP, ZSTD])
def test_f31_a_batch_of_millions_of_headers_comes_as_one_record_in_bounded_memory(codec):
    """A few kilobytes that would become 8 million pairs of empty texts, 576 MiB of memory, in one record."""
    count = 8_000_000
    head = encode_record(0, 0, None, b"", ())
    inner = b"".join(head)[1:-1] + varint(count) + b"\x00\x00" * count
    body = varint(len(inner)) + inner
    assert len(body) < MAX_BATCH_BYTES
    compress = gzip.compress if codec == GZIP else zstandard.ZstdCompressor().compress
    bomb = compressed(batch_of([(0, None, b"", ())]), codec, compress(body))
    assert len(bomb) < 100_000
    tracemalloc.start()
    [record] = read(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert b"8000000 headers" in record.header(UNREADABLE)
    assert peak < 4 * MAX_BATCH_BYTES


def varint(number):
    out = bytearray()
    _put(out, number)
    return bytes(out)
