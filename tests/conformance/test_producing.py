"""Sending: what comes back, in which order, within which bounds."""

from __future__ import annotations

import threading

import pytest

from refold.bus import MAX_RECORD_BYTES, Place, partition_for
from refold.schemas.errors import UsageError


def test_records_come_back_as_they_were_sent(driver, bus):
    topic = driver.topic(bus)
    headers = (("ce_id", b"1"), ("empty", b""), ("ce_id", b"2"), ("größe", bytes(range(256))))
    with bus.producer() as producer:
        producer.send(topic, b"value", key=b"key", headers=headers)
        producer.send(topic, None, key=b"key")
        producer.send(topic, b"")
        producer.send(topic, b"\x00" * 70_000, key=b"")
    first, tombstone, empty, long = driver.read_all(bus, [Place(topic, 0)])
    assert (first.topic, first.partition, first.offset) == (topic, 0, 0)
    assert (first.key, first.value, first.headers) == (b"key", b"value", headers)
    assert first.header("ce_id") == b"1"
    assert first.header("none") is None
    assert (tombstone.key, tombstone.value, tombstone.headers) == (b"key", None, ())
    assert (empty.key, empty.value) == (None, b"")
    assert (long.key, long.value) == (b"", b"\x00" * 70_000)


def test_offsets_of_a_partition_are_dense_from_zero(driver, bus):
    topic = driver.topic(bus, partitions=2)
    with bus.producer() as producer:
        deliveries = [producer.send(topic, b"", partition=number % 2) for number in range(10)]
        producer.flush()
        assert [delivery.result(driver.wait_s) for delivery in deliveries] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [record.offset for record in driver.read_all(bus, [Place(topic, 1)])] == [0, 1, 2, 3, 4]
    assert bus.end_offset(Place(topic, 0)) == 5


def test_records_of_one_key_keep_their_order(driver, bus):
    topic = driver.topic(bus, partitions=5)
    with bus.producer(max_in_flight_bytes=200) as producer:
        for number in range(200):
            producer.send(topic, str(number).encode(), key=f"client-{number % 7}".encode())
    records = driver.read_all(bus, [Place(topic, partition) for partition in range(5)])
    assert len(records) == 200
    for client in range(7):
        key = f"client-{client}".encode()
        mine = [record for record in records if record.key == key]
        assert [int(record.value) for record in mine] == list(range(client, 200, 7))
        assert {record.partition for record in mine} == {partition_for(key, 5)}


def test_without_a_key_partition_zero_takes_it_and_a_named_partition_wins(driver, bus):
    topic = driver.topic(bus, partitions=3)
    with bus.producer() as producer:
        producer.send(topic, b"no key")
        producer.send(topic, b"named", key=b"key", partition=(partition_for(b"key", 3) + 1) % 3)
    places = {record.value: record.partition for record in driver.read_all(bus, [Place(topic, n) for n in range(3)])}
    assert places == {b"no key": 0, b"named": (partition_for(b"key", 3) + 1) % 3}


def test_the_largest_record_passes_and_one_byte_more_does_not(driver, bus):
    topic = driver.topic(bus)
    value = b"x" * (MAX_RECORD_BYTES - len(b"key" + b"name" + b"header"))
    with bus.producer() as producer:
        producer.send(topic, value, key=b"key", headers=(("name", b"header"),))
        with pytest.raises(UsageError, match="too large"):
            producer.send(topic, value + b"x", key=b"key", headers=(("name", b"header"),))
    [record] = driver.read_all(bus, [Place(topic, 0)])
    assert record.size_bytes == MAX_RECORD_BYTES


def test_unacknowledged_bytes_stay_within_the_producers_bound(driver, bus):
    topic = driver.topic(bus)
    size, bound = 100_000, 250_000
    with bus.producer(max_in_flight_bytes=bound) as producer:
        for sent in range(1, 21):
            producer.send(topic, b"x" * size)
            assert (sent - bus.end_offset(Place(topic, 0))) * size <= bound
        producer.send(topic, b"x" * (bound * 2))
    assert bus.end_offset(Place(topic, 0)) == 21


def test_a_flush_makes_everything_visible_to_others(driver, bus):
    topic = driver.topic(bus)
    with bus.producer() as producer:
        producer.send(topic, b"1")
        producer.flush()
        assert driver.open().end_offset(Place(topic, 0)) == 1
        producer.flush()
        assert driver.open().end_offset(Place(topic, 0)) == 1


def test_awaiting_a_delivery_needs_no_flush(driver, bus):
    topic = driver.topic(bus)
    with bus.producer() as producer:
        delivery = producer.send(topic, b"1")
        assert delivery.result(driver.wait_s) == 0
        assert delivery.result() == 0


def test_closing_flushes_and_a_closed_producer_says_so(driver, bus):
    topic = driver.topic(bus)
    producer = bus.producer()
    delivery = producer.send(topic, b"1")
    producer.close()
    producer.close()
    assert delivery.result() == 0
    with pytest.raises(UsageError):
        producer.send(topic, b"2")


def test_producers_of_many_threads_lose_and_double_nothing(driver, bus):
    topic = driver.topic(bus, partitions=2)

    def write(writer: int) -> None:
        with bus.producer(max_in_flight_bytes=50) as producer:
            for number in range(40):
                producer.send(topic, f"{writer}:{number}".encode(), partition=number % 2)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = driver.read_all(bus, [Place(topic, 0), Place(topic, 1)])
    assert sorted(record.value for record in records) == sorted(f"{w}:{n}".encode() for w in range(6) for n in range(40))
    for partition in (0, 1):
        mine = [record for record in records if record.partition == partition]
        assert [record.offset for record in mine] == list(range(120))
        for writer in range(6):
            numbers = [int(record.value.split(b":")[1]) for record in mine if record.value.startswith(f"{writer}:".encode())]
            assert numbers == sorted(numbers)


def test_timestamps_are_the_writers_clock(driver, bus):
    topic = driver.topic(bus)
    with bus.producer() as producer:
        producer.send(topic, b"1")
        driver.pass_time(2.0)
        producer.send(topic, b"2")
    first, second = driver.read_all(bus, [Place(topic, 0)])
    assert second.timestamp_ms - first.timestamp_ms >= 2000


def test_partitions_are_chosen_as_kafka_does():
    # Vectors of Kafka's own UtilsTest.testMurmur2, made positive.
    vectors = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }
    for key, digest in vectors.items():
        assert partition_for(key, 1 << 31) == digest & 0x7FFFFFFF
        assert partition_for(key, 7) == (digest & 0x7FFFFFFF) % 7
    assert partition_for(None, 7) == 0


def test_partitions_are_chosen_as_kafka_python_does():
    default = pytest.importorskip("kafka.partitioner.default")
    for length in range(40):
        key = bytes((length * 37 + i * 11) % 256 for i in range(length))
        assert partition_for(key, 1 << 31) == default.murmur2(key) & 0x7FFFFFFF
