"""Kafka's own cleaner and retention: what conformance asks of buses that clean when told, on one that cleans when it likes.

The cleaner never touches the segment that is written, so records of a key of their own push the others into older ones; and it
looks at a log again only when there is something new in it.
"""

from __future__ import annotations

import itertools
import os
import time

import pytest

from refold.bus import Place, TopicSpec
from refold.bus.kafka import KafkaBus
from refold.testing.kafka import Cluster

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

WAIT_S = 90.0
EAGER_BROKER = {
    "log.cleaner.backoff.ms": "100",
    "log.retention.check.interval.ms": "500",
    "log.initial.task.delay.ms": "100",
    "log.segment.delete.delay.ms": "100",
}
EAGER_TOPIC = {
    "segment.ms": "50",
    "min.cleanable.dirty.ratio": "0.001",
    "max.compaction.lag.ms": "100",
    "delete.retention.ms": "200",
    "file.delete.delay.ms": "100",
}
PUSH = b"push"


@pytest.fixture(scope="module")
def eager(kafka_is_available):
    with Cluster(settings=EAGER_BROKER) as cluster:
        yield cluster


@pytest.fixture
def bus(eager):
    # A segment ends when a record is `segment.ms` younger than its first: here each is a second younger than the one before.
    seconds = itertools.count(time.time() - 86_400)
    with KafkaBus((eager.bootstrap,), topic_settings=EAGER_TOPIC, wall=lambda: next(seconds)) as opened:
        yield opened


def make(bus, **settings):
    place = Place(f"cleaning-{os.urandom(6).hex()}", 0)
    bus.create_topics([TopicSpec(place.topic, **settings)])
    return place


def write(bus, place, *pairs):
    """Write records, each into a segment of its own, so that none but the last is in the one being written."""
    with bus.producer() as producer:
        for key, value in pairs:
            producer.send(place.topic, value, key=key)
            producer.flush()


def contents(bus, place):
    with bus.consumer() as consumer:
        consumer.assign([place])
        records, end = [], bus.end_offset(place)
        while consumer.position(place) < end:
            records += consumer.poll(1.0)
        return [(record.offset, record.key, record.value) for record in records if record.key != PUSH]


def push_until(bus, place, condition):
    """Write records of no meaning until the cleaner has brought about the condition."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the cleaner did not come"
        write(bus, place, (PUSH, b""))


def test_the_newest_value_of_each_key_stays_at_its_offset_and_tombstones_go(bus):
    place = make(bus, compacted=True)
    write(bus, place, (b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"c", b"1"), (b"b", None))
    push_until(bus, place, lambda: contents(bus, place) == [(2, b"a", b"2"), (3, b"c", b"1")])
    assert bus.end_offset(place) > 5


def test_a_reader_in_the_middle_of_what_is_cleaned_away_goes_on(bus):
    place = make(bus, compacted=True)
    write(bus, place, *[(b"key", b"%d" % number) for number in range(8)])
    with bus.consumer() as consumer:
        consumer.assign([place])
        consumer.seek(place, 3)
        push_until(bus, place, lambda: contents(bus, place) == [(7, b"key", b"7")])
        end, read = bus.end_offset(place), []
        deadline = time.monotonic() + WAIT_S
        while consumer.position(place) < end and time.monotonic() < deadline:
            read += [record.offset for record in consumer.poll(1.0) if record.key != PUSH]
        assert read == [7]
        assert consumer.position(place) >= end


def test_records_past_their_retention_go_and_readers_of_nothing_reach_the_end(bus):
    place = make(bus, retention_s=2.0)
    write(bus, place, (None, b"1"), (None, b"2"), (None, b"3"))
    deadline = time.monotonic() + WAIT_S
    while bus.begin_offset(place) < 3:
        assert time.monotonic() < deadline, "retention did not come"
    assert contents(bus, place) == []
    with bus.consumer() as consumer:
        consumer.assign([place])
        assert consumer.position(place) == bus.end_offset(place) == 3
