"""Compaction, tombstones, retention: what may go, what must stay, and that readers pass over the gaps.

Kafka's cleaner comes when it likes, and never to the segment that is being written: tests/kafka/test_cleaning.py has it.
"""

from __future__ import annotations

from refold.bus import Place

ONLY_BUSES_THAT_CLEAN_WHEN_TOLD = True


def write(bus, topic, *pairs):
    with bus.producer() as producer:
        for key, value in pairs:
            producer.send(topic, value, key=key)


def contents(driver, bus, topic):
    return [(record.offset, record.key, record.value) for record in driver.read_all(bus, [Place(topic, 0)])]


def test_the_newest_value_of_each_key_stays_at_its_offset(driver, bus):
    topic = driver.topic(bus, compacted=True)
    write(bus, topic, (b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"c", b"1"), (b"b", b"2"))
    driver.run_cleaner(bus, topic)
    assert contents(driver, bus, topic) == [(2, b"a", b"2"), (3, b"c", b"1"), (4, b"b", b"2")]
    assert bus.begin_offset(Place(topic, 0)) == 2
    write(bus, topic, (b"c", b"2"), (b"d", b"1"))
    driver.run_cleaner(bus, topic)
    assert contents(driver, bus, topic) == [(2, b"a", b"2"), (4, b"b", b"2"), (5, b"c", b"2"), (6, b"d", b"1")]


def test_a_tombstone_removes_its_key_and_after_the_grace_itself(driver, bus):
    topic = driver.topic(bus, compacted=True)
    write(bus, topic, (b"a", b"1"), (b"b", b"1"), (b"a", None))
    driver.run_cleaner(bus, topic)
    assert contents(driver, bus, topic) == [(1, b"b", b"1"), (2, b"a", None)]
    driver.pass_time(driver.delete_retention_s + 1)
    driver.run_cleaner(bus, topic)
    assert contents(driver, bus, topic) == [(1, b"b", b"1")]
    assert bus.end_offset(Place(topic, 0)) == 3


def test_a_key_written_again_after_its_tombstone_stays(driver, bus):
    topic = driver.topic(bus, compacted=True)
    write(bus, topic, (b"a", b"1"), (b"a", None))
    driver.run_cleaner(bus, topic)
    write(bus, topic, (b"a", b"2"))
    driver.run_cleaner(bus, topic)
    driver.pass_time(driver.delete_retention_s + 1)
    driver.run_cleaner(bus, topic)
    assert contents(driver, bus, topic) == [(2, b"a", b"2")]


def test_a_reader_whose_next_records_were_compacted_away_reaches_the_end(driver, bus):
    topic = driver.topic(bus, compacted=True)
    place = Place(topic, 0)
    write(bus, topic, (b"a", b"1"), (b"b", b"1"), (b"b", None))
    driver.run_cleaner(bus, topic)
    driver.pass_time(driver.delete_retention_s + 1)
    driver.run_cleaner(bus, topic)
    with bus.consumer() as consumer:
        consumer.assign([place])
        records = driver.until(lambda: consumer.position(place) >= bus.end_offset(place), consumer)
        assert [record.offset for record in records] == [0]
        assert consumer.position(place) == 3
        write(bus, topic, (b"c", b"1"))
        assert [record.offset for record in consumer.poll(driver.wait_s)] == [3]


def test_a_topic_that_is_not_compacted_keeps_everything(driver, bus):
    topic = driver.topic(bus)
    write(bus, topic, (b"a", b"1"), (b"a", b"2"), (b"a", None))
    driver.run_cleaner(bus, topic)
    driver.pass_time(driver.delete_retention_s + 1)
    driver.run_cleaner(bus, topic)
    assert len(contents(driver, bus, topic)) == 3


def test_records_older_than_the_retention_go(driver, bus):
    topic = driver.topic(bus, retention_s=100.0)
    write(bus, topic, (None, b"old"), (None, b"old"))
    driver.pass_time(60)
    write(bus, topic, (None, b"young"))
    driver.pass_time(60)
    driver.run_cleaner(bus, topic)
    assert contents(driver, bus, topic) == [(2, None, b"young")]
    driver.pass_time(60)
    driver.run_cleaner(bus, topic)
    assert contents(driver, bus, topic) == []
    assert bus.begin_offset(Place(topic, 0)) == bus.end_offset(Place(topic, 0)) == 3


def test_retention_and_compaction_go_together(driver, bus):
    topic = driver.topic(bus, compacted=True, retention_s=100.0)
    write(bus, topic, (b"a", b"1"), (b"b", b"1"))
    driver.run_cleaner(bus, topic)
    driver.pass_time(60)
    write(bus, topic, (b"a", b"2"), (b"c", b"1"), (b"c", b"2"))
    driver.pass_time(60)
    driver.run_cleaner(bus, topic)
    assert contents(driver, bus, topic) == [(2, b"a", b"2"), (4, b"c", b"2")]
