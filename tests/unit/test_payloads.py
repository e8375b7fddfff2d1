"""Payloads: digests are the reference, places are hints, and what is not there is said to be missing."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from refold.bus import Place, TopicSpec
from refold.bus.memory import MemoryBus
from refold.bus.payloads import PayloadReader, send_payload
from refold.schemas.errors import IntegrityError, InvalidRecord
from refold.schemas.payload import CHUNK_BYTES, INLINE_BYTES, Payload, PlaceHint, describe, payload_root, split

TOPIC = "toy.deltas"
CHUNKS = [bytes([number]) * 100 for number in range(5)]
WHOLE = b"".join(CHUNKS)


@pytest.fixture
def bus() -> Iterator[MemoryBus]:
    with MemoryBus() as made:
        made.create_topics([TopicSpec(TOPIC, partitions=3)])
        yield made


def sent(bus: MemoryBus, chunks: list[bytes] = CHUNKS, key: bytes = b"a") -> Payload:
    with bus.producer() as producer:
        made = send_payload(producer, TOPIC, 3, chunks, key=key, inline_bytes=0)
        producer.flush()
        return made.placed()


def read(bus: MemoryBus, payload: Payload) -> bytes:
    reader = PayloadReader(bus, TOPIC)
    try:
        return reader.read_bytes(payload)
    finally:
        reader.close()


def garbage(bus: MemoryBus, count: int, partition: int, rng: np.random.Generator) -> None:
    with bus.producer() as producer:
        for _ in range(count):
            producer.send(TOPIC, rng.bytes(100), partition=partition)


def test_what_was_sent_is_read_at_its_hint(bus: MemoryBus) -> None:
    payload = sent(bus)
    assert payload.hint is not None
    assert (payload.size_bytes, len(payload.chunks)) == (500, 5)
    assert read(bus, payload) == WHOLE


def test_a_small_payload_travels_inside_its_record(bus: MemoryBus) -> None:
    with bus.producer() as producer:
        small = send_payload(producer, TOPIC, 3, [b"x" * INLINE_BYTES], key=b"a").placed()
        large = send_payload(producer, TOPIC, 3, [b"x" * (INLINE_BYTES + 1)], key=b"a")
        nothing = send_payload(producer, TOPIC, 3, [], key=b"a").placed()
    assert small.inline is not None
    assert large.placed().inline is None
    assert (read(bus, small), read(bus, large.placed()), read(bus, nothing)) == (
        b"x" * INLINE_BYTES,
        b"x" * (INLINE_BYTES + 1),
        b"",
    )
    assert sum(bus.end_offset(Place(TOPIC, partition)) for partition in range(3)) == 1


@pytest.mark.parametrize(
    "hint",
    [
        None,
        PlaceHint(0, 0, 0),
        PlaceHint(2, 0, 4),
        PlaceHint(99, 0, 4),
        PlaceHint(1, 10**15, 10**15 + 4),
        PlaceHint(0, 3, 2**62),
    ],
)
def test_a_hint_that_is_missing_or_wrong_costs_only_time(bus: MemoryBus, hint: PlaceHint | None) -> None:
    assert read(bus, sent(bus).at(hint)) == WHOLE


def test_the_leftovers_of_a_killed_writer_among_the_chunks_do_not_matter(bus: MemoryBus, rng: np.random.Generator) -> None:
    partition = (sent(bus).hint or PlaceHint(0, 0, 0)).partition
    with bus.producer() as producer:
        for chunk in CHUNKS[:3]:
            producer.send(TOPIC, chunk, partition=partition)
        first = producer.send(TOPIC, b"others", partition=partition)
        for index, chunk in enumerate(CHUNKS):
            producer.send(TOPIC, chunk, partition=partition)
            producer.send(TOPIC, rng.bytes(100), partition=partition)
            if index % 2:
                producer.send(TOPIC, CHUNKS[0], partition=partition)
        last = producer.send(TOPIC, b"others", partition=partition)
    payload = describe(CHUNKS, inline_bytes=-1).at(PlaceHint(partition, first.result(), last.result()))
    assert read(bus, payload) == WHOLE


def test_a_log_that_was_copied_to_other_offsets_reads_the_same(bus: MemoryBus, rng: np.random.Generator) -> None:
    payload = sent(bus)
    with MemoryBus() as copy:
        copy.create_topics([TopicSpec(TOPIC, partitions=1)])
        garbage(copy, 7, 0, rng)
        with copy.producer() as producer:
            for chunk in reversed(CHUNKS):
                producer.send(TOPIC, chunk)
        assert read(copy, payload) == WHOLE


def test_a_missing_chunk_is_an_integrity_error_that_names_it(bus: MemoryBus) -> None:
    payload = describe(CHUNKS, inline_bytes=-1)
    assert sent(bus, CHUNKS[:2]).hint is not None
    reader = PayloadReader(bus, TOPIC)
    stream = reader.read(payload)
    assert [next(stream), next(stream)] == CHUNKS[:2]
    with pytest.raises(IntegrityError, match=payload.chunks[2].hex()[:16]):
        next(stream)
    sent(bus, CHUNKS[2:])
    assert reader.read_bytes(payload) == WHOLE, "it came meanwhile"


def test_a_changed_chunk_is_an_integrity_error(bus: MemoryBus) -> None:
    flipped = [bytearray(chunk) for chunk in CHUNKS]
    flipped[3][17] ^= 1
    placed = sent(bus, [bytes(chunk) for chunk in flipped])
    with pytest.raises(IntegrityError):
        read(bus, describe(CHUNKS, inline_bytes=-1).at(placed.hint))


def test_chunks_in_another_order_are_put_in_theirs(bus: MemoryBus) -> None:
    placed = sent(bus, CHUNKS[::-1])
    assert read(bus, describe(CHUNKS, inline_bytes=-1).at(placed.hint)) == WHOLE


def test_what_is_there_of_a_broken_payload_can_be_kept(bus: MemoryBus) -> None:
    placed = sent(bus, [CHUNKS[0], CHUNKS[2], CHUNKS[4]])
    for hint in (None, placed.hint):
        found = list(PayloadReader(bus, TOPIC).read_what_is_there(describe(CHUNKS, inline_bytes=-1).at(hint)))
        assert found == [CHUNKS[0], CHUNKS[2], CHUNKS[4]]
    assert list(PayloadReader(bus, TOPIC).read_what_is_there(describe([b"inline"]))) == [b"inline"]


def test_a_payload_without_chunks_is_empty(bus: MemoryBus) -> None:
    sent(bus)
    nothing = Payload(payload_root((), ()), (), (), None, PlaceHint(0, 0, 3))
    assert read(bus, nothing) == b""


def test_f34_a_wide_hint_does_not_cost_a_pass_over_the_topic_for_each_update(bus: MemoryBus, rng: np.random.Generator) -> None:
    garbage(bus, 3000, 1, rng)
    looked_at = 0

    class Counting(PayloadReader):
        def _records(self, place: Place, first: int, last: int) -> Iterator[object]:  # type: ignore[override]
            nonlocal looked_at
            for record in super()._records(place, first, last):
                looked_at += 1
                yield record

    reader = Counting(bus, TOPIC)
    for number in range(100):
        missing = describe([b"never %d" % number], inline_bytes=-1).at(PlaceHint(1, 0, 2999))
        with pytest.raises(IntegrityError):
            reader.read_bytes(missing)
    assert looked_at < 3000 + 100 * 100


def test_the_index_is_no_larger_than_the_topic(bus: MemoryBus, rng: np.random.Generator) -> None:
    reader = PayloadReader(bus, TOPIC)
    for turn in range(1, 6):
        garbage(bus, 100, 0, rng)
        with pytest.raises(IntegrityError):
            reader.read_bytes(describe([b"never"], inline_bytes=-1))
        bus.delete_records(Place(TOPIC, 0), 100 * turn - 10)
    assert len(reader._index) <= 110


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"root": bytes(32)}, "root-digest"),
        ({"lengths": (100,) * 4}, "lengths"),
        ({"lengths": (100,) * 4 + (CHUNK_BYTES + 1,)}, "lengths"),
        ({"inline": b"other"}, "chunk-digest"),
        ({"chunks": (bytes(32),) * 5}, "root-digest"),
    ],
)
def test_a_payload_that_contradicts_itself_cannot_be_made(change: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        dataclasses.replace(describe(CHUNKS), **change)  # type: ignore[arg-type]
    assert caught.value.reason == reason


def test_bytes_are_cut_into_chunks_and_no_bytes_into_an_empty_one() -> None:
    assert list(map(len, split(bytes(2_500_000)))) == [1_000_000, 1_000_000, 500_000]
    assert split(b"") == [b""]


def test_a_chunk_of_another_length_than_the_payload_says_is_not_there(bus: MemoryBus) -> None:
    honest = sent(bus, [b"x" * 5000, b"y"]).at(None)
    lengths = (1, 1)
    lying = Payload(payload_root(honest.chunks, lengths), honest.chunks, lengths, None, None)
    with pytest.raises(IntegrityError, match="not in the topic"):
        read(bus, lying)
    assert read(bus, honest) == b"x" * 5000 + b"y"


def test_the_index_of_a_topic_that_clients_write_keeps_the_newest_chunks_of_each_partition(
    bus: MemoryBus, rng: np.random.Generator
) -> None:
    old, elsewhere = sent(bus, key=b"a"), sent(bus, [b"else", b"where"], key=b"b")
    assert old.hint is not None
    assert elsewhere.hint is not None
    assert old.hint.partition != elsewhere.hint.partition
    garbage(bus, 300, old.hint.partition, rng)
    new = sent(bus, [b"newest", b"of all"])
    reader = PayloadReader(bus, TOPIC, max_indexed=150)
    assert reader.read_bytes(new.at(None)) == b"newestof all"
    assert reader.read_bytes(elsewhere.at(None)) == b"elsewhere"
    assert [len(offsets) for offsets in reader._index.values() if len(offsets) > 2] == [50]
    assert list(reader.read_what_is_there(old.at(None))) == []
    reader.close()
    assert read(bus, old.at(None)) == WHOLE
