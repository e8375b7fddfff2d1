"""Reading places by name: positions, turns, bounds, waiting."""

from __future__ import annotations

import threading
import time

import pytest

from refold.bus import Place
from refold.schemas.errors import UsageError


def fill(bus, topic, values, partition=0):
    with bus.producer() as producer:
        for value in values:
            producer.send(topic, value, partition=partition)


def test_assigned_places_are_read_from_their_beginning(driver, bus):
    topic = driver.topic(bus, partitions=2)
    fill(bus, topic, [b"1", b"2"])
    with bus.consumer() as consumer:
        consumer.assign([Place(topic, 0), Place(topic, 1)])
        assert consumer.assignment() == {Place(topic, 0), Place(topic, 1)}
        assert consumer.position(Place(topic, 0)) == 0
        records = driver.until(lambda: consumer.position(Place(topic, 0)) == 2, consumer)
        assert [record.value for record in records] == [b"1", b"2"]
        assert consumer.poll() == []
        fill(bus, topic, [b"3"], partition=1)
        assert [record.value for record in consumer.poll(driver.wait_s)] == [b"3"]


def test_assigning_anew_begins_anew(driver, bus):
    topic = driver.topic(bus)
    fill(bus, topic, [b"1"])
    with bus.consumer() as consumer:
        for _ in range(2):
            consumer.assign([Place(topic, 0)])
            assert [record.offset for record in consumer.poll(driver.wait_s)] == [0]
        consumer.assign([])
        assert consumer.poll() == []


def test_a_poll_without_records_waits_its_time_and_does_not_spin(driver, bus):
    topic = driver.topic(bus)
    with bus.consumer() as consumer:
        consumer.assign([Place(topic, 0)])
        consumer.poll()
        began, began_cpu = time.monotonic(), time.thread_time()
        assert consumer.poll(0.4) == []
        waited, worked = time.monotonic() - began, time.thread_time() - began_cpu
        assert 0.4 <= waited < 0.4 + driver.wait_s
        assert worked < 0.25 * waited


def test_a_waiting_poll_wakes_for_a_record_of_another_thread(driver, bus):
    topic = driver.topic(bus)
    with bus.consumer() as consumer:
        consumer.assign([Place(topic, 0)])
        consumer.poll()
        writer = threading.Timer(0.05, fill, (bus, topic, [b"woken"]))
        writer.start()
        began = time.monotonic()
        assert [record.value for record in consumer.poll(driver.wait_s)] == [b"woken"]
        assert time.monotonic() - began < driver.wait_s / 2
        writer.join()


def test_at_most_max_records_come_at_once(driver, bus):
    topic = driver.topic(bus)
    fill(bus, topic, [str(number).encode() for number in range(25)])
    with bus.consumer() as consumer:
        consumer.assign([Place(topic, 0)])
        sizes, offsets = [], []
        while len(offsets) < 25:
            records = consumer.poll(driver.wait_s, max_records=10)
            sizes.append(len(records))
            offsets += [record.offset for record in records]
        assert max(sizes) <= 10
        assert offsets == list(range(25))
        with pytest.raises(UsageError):
            consumer.poll(max_records=0)


def test_a_poll_returns_at_most_the_consumers_bytes_in_flight(driver, bus):
    topic = driver.topic(bus, partitions=2)
    fill(bus, topic, [b"x" * 100_000] * 10, partition=0)
    fill(bus, topic, [b"y" * 100_000] * 10, partition=1)
    with bus.consumer(max_in_flight_bytes=250_000) as consumer:
        consumer.assign([Place(topic, 0), Place(topic, 1)])
        read = 0
        while read < 20:
            records = consumer.poll(driver.wait_s)
            assert len(records) >= 1
            assert sum(record.size_bytes for record in records) <= 250_000
            read += len(records)
        assert consumer.poll() == []


def test_a_record_larger_than_the_bytes_in_flight_comes_alone(driver, bus):
    topic = driver.topic(bus)
    fill(bus, topic, [b"1", b"x" * 5000, b"3"])
    with bus.consumer(max_in_flight_bytes=1000) as consumer:
        consumer.assign([Place(topic, 0)])
        assert [len(consumer.poll(driver.wait_s)) for _ in range(3)] == [1, 1, 1]


def test_a_full_place_starves_no_other(driver, bus):
    topic = driver.topic(bus, partitions=3)
    fill(bus, topic, [b"full"] * 500, partition=1)
    fill(bus, topic, [b"small"], partition=0)
    fill(bus, topic, [b"small"], partition=2)
    with bus.consumer() as consumer:
        consumer.assign([Place(topic, partition) for partition in range(3)])
        seen = [consumer.poll(driver.wait_s, max_records=10) for _ in range(4)]
        assert {record.partition for records in seen for record in records} == {0, 1, 2}


def test_full_places_take_turns(driver, bus):
    topic = driver.topic(bus, partitions=4)
    for partition in range(4):
        fill(bus, topic, [b"full"] * 100, partition=partition)
    with bus.consumer() as consumer:
        consumer.assign([Place(topic, partition) for partition in range(4)])
        polls = [consumer.poll(driver.wait_s, max_records=10) for _ in range(8)]
        read = [sum(record.partition == partition for records in polls for record in records) for partition in range(4)]
        assert min(read) > 0


def test_seek_goes_back_and_forth(driver, bus):
    topic = driver.topic(bus)
    place = Place(topic, 0)
    fill(bus, topic, [b"0", b"1", b"2", b"3"])
    with bus.consumer() as consumer:
        consumer.assign([place])
        for offset in (2, 0, 3):
            consumer.seek(place, offset)
            assert consumer.position(place) == offset
            assert consumer.poll(driver.wait_s)[0].offset == offset
        consumer.seek(place, 4)
        assert consumer.poll() == []
        for offset in (-1, 5):
            with pytest.raises(UsageError, match="no such offset"):
                consumer.seek(place, offset)
        with pytest.raises(UsageError):
            consumer.seek(Place(topic, 1), 0)


def test_seeking_a_deleted_offset_means_the_next_that_exists(driver, bus):
    topic = driver.topic(bus)
    place = Place(topic, 0)
    fill(bus, topic, [b"0", b"1", b"2", b"3"])
    with bus.consumer() as consumer:
        consumer.assign([place])
        bus.delete_records(place, 3)
        consumer.seek(place, 1)
        assert [record.offset for record in consumer.poll(driver.wait_s)] == [3]


def test_deleting_under_a_reader_lets_it_go_on(driver, bus):
    topic = driver.topic(bus)
    place = Place(topic, 0)
    fill(bus, topic, [b"0", b"1", b"2", b"3"])
    with bus.consumer() as consumer:
        consumer.assign([place])
        assert consumer.poll(driver.wait_s, max_records=1)[0].offset == 0
        bus.delete_records(place, 2)
        rest = [record.offset for record in driver.until(lambda: consumer.position(place) == 4, consumer)]
        # What the reader had fetched before it was deleted may still come.
        assert rest in ([2, 3], [1, 2, 3])


def test_a_reader_of_a_place_emptied_by_deletion_reaches_its_end(driver, bus):
    topic = driver.topic(bus)
    place = Place(topic, 0)
    fill(bus, topic, [b"0", b"1"])
    with bus.consumer() as consumer:
        consumer.assign([place])
        bus.delete_records(place, 2)
        driver.until(lambda: consumer.position(place) >= bus.end_offset(place), consumer)


def test_deleted_offsets_are_not_used_again(driver, bus):
    topic = driver.topic(bus)
    place = Place(topic, 0)
    fill(bus, topic, [b"0", b"1", b"2"])
    for _ in range(2):
        bus.delete_records(place, 2)
        assert (bus.begin_offset(place), bus.end_offset(place)) == (2, 3)
    bus.delete_records(place, 3)
    assert (bus.begin_offset(place), bus.end_offset(place)) == (3, 3)
    fill(bus, topic, [b"3"])
    assert [(record.offset, record.value) for record in driver.read_all(bus, [place])] == [(3, b"3")]


def test_a_time_is_looked_up_among_what_exists(driver, bus):
    topic = driver.topic(bus)
    place = Place(topic, 0)
    for number in range(4):
        fill(bus, topic, [str(number).encode()] * 2)
        driver.pass_time(1.5)
    times = [record.timestamp_ms for record in driver.read_all(bus, [place])]
    for wanted in [*times, times[0] - 10_000, times[2] + 1, times[3] + 1]:
        expected = next((offset for offset, time_ms in enumerate(times) if time_ms >= wanted), None)
        assert bus.offset_for_time(place, wanted) == expected
    assert bus.offset_for_time(place, times[-1] + 1) is None
    bus.delete_records(place, 3)
    assert bus.offset_for_time(place, 0) == 3
    bus.delete_records(place, 8)
    assert bus.offset_for_time(place, 0) is None


def test_a_consumer_that_reads_nothing_or_is_closed_says_so(driver, bus):
    topic = driver.topic(bus)
    consumer = bus.consumer()
    with pytest.raises(UsageError):
        consumer.poll()
    with pytest.raises(UsageError):
        consumer.subscribe([topic])
    consumer.close()
    consumer.close()
    with pytest.raises(UsageError):
        consumer.poll()
