"""The Kafka driver when brokers die or freeze: calls return within their bounds, and what was sent is there once."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import pytest

from refold.bus import Committed, Place, TopicSpec
from refold.bus.kafka import KafkaBus
from refold.schemas.errors import BusError, PlaceTakenError, TryAgainError
from refold.testing import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

WAIT_S = 60.0


@pytest.fixture
def brokers(kafka_cluster):
    yield kafka_cluster
    kafka_cluster.restore()


@pytest.fixture
def bus(brokers):
    with KafkaBus(tuple(brokers.bootstrap.split(","))) as opened:
        yield opened


@pytest.fixture
def topic(bus):
    def make(partitions=1):
        name = f"faults-{os.urandom(6).hex()}"
        bus.create_topics([TopicSpec(name, partitions)])
        return name

    return make


def leader_of(bus, place):
    return bus._client.look_up(place.topic).leaders[place.partition]


def read_all(bus, place):
    with bus.consumer() as consumer:
        consumer.assign([place])
        records, end = [], bus.end_offset(place)
        while consumer.position(place) < end:
            records += consumer.poll(1.0)
        return records


def seconds(call, *expected):
    """Call, and return how long it took; it may raise what is expected."""
    began = time.monotonic()
    with contextlib.suppress(*expected):
        call()
    return time.monotonic() - began


def test_topics_are_kept_three_times_over(bus, topic):
    node = bus._client.look_up(topic(3))
    assert node.replicas == 3


def test_when_brokers_freeze_every_call_returns_within_its_bound_and_goes_on_when_they_thaw(bus, topic, brokers):
    place = Place(topic(), 0)
    producer, reader = bus.producer(), bus.consumer()
    member = bus.consumer(group=place.topic, instance="one", session_timeout_s=6)
    reader.assign([place])
    member.subscribe([place.topic])
    deadline = time.monotonic() + WAIT_S
    while not member.assignment():
        assert time.monotonic() < deadline
        member.poll(0.1)
    producer.send(place.topic, b"before", partition=0)
    producer.flush()
    for node in brokers.ids:
        brokers.freeze(node)
    try:
        producer.send(place.topic, b"frozen", partition=0)
        assert seconds(lambda: producer.flush(1.0), TryAgainError) < 1.5
        assert seconds(lambda: reader.poll(0.5), BusError) < 1.5
        assert seconds(lambda: member.poll(0.5), BusError) < 2.5
        with pytest.raises((BusError, PlaceTakenError)):
            member.commit({place: Committed(1)})
        with pytest.raises(BusError):
            bus.end_offset(place)
        with pytest.raises(BusError):
            bus.topics()
        assert seconds(member.close) < 6
    finally:
        for node in brokers.ids:
            brokers.thaw(node)
    producer.flush(WAIT_S)
    deadline = time.monotonic() + WAIT_S
    seen = []
    while len(seen) < 2:
        assert time.monotonic() < deadline
        try:
            seen += [record.value for record in reader.poll(0.5)]
        except BusError:
            continue
    assert seen == [b"before", b"frozen"]
    assert [record.value for record in read_all(bus, place)] == [b"before", b"frozen"]
    producer.close()
    reader.close()


def test_closing_a_producer_that_reaches_nobody_ends_and_says_so(bus, topic, brokers, monkeypatch):
    monkeypatch.setattr("refold.bus._kafka_producer.FLUSH_S", 2.0)
    place = Place(topic(), 0)
    producer = bus.producer()
    delivery = producer.send(place.topic, b"", partition=0)
    for node in brokers.ids:
        brokers.freeze(node)
    try:
        assert seconds(producer.close, BusError, TryAgainError) < 6
        with pytest.raises(BusError, match="closed before"):
            delivery.result(0)
    finally:
        for node in brokers.ids:
            brokers.thaw(node)


def test_when_the_leader_is_killed_what_is_sent_is_there_once_and_in_order_and_readers_go_on(bus, topic, brokers):
    place, count = Place(topic(), 0), 1500
    killed = threading.Event()
    seen: list[int] = []

    def read():
        with bus.consumer(group=place.topic, session_timeout_s=20) as consumer:
            consumer.subscribe([place.topic])
            deadline = time.monotonic() + WAIT_S
            while len(seen) < count and time.monotonic() < deadline:
                seen.extend(int(record.value[:8]) for record in consumer.poll(0.2))

    reader = threading.Thread(target=read)
    reader.start()
    with bus.producer() as producer:
        deliveries = []
        for number in range(count):
            deliveries.append(producer.send(place.topic, b"%08d" % number * 100, partition=0))
            if number % 10 == 0:
                producer.flush(WAIT_S)
            if number == count // 3:
                brokers.kill(leader_of(bus, place))
                killed.set()
        producer.flush(WAIT_S)
    reader.join()
    assert killed.is_set()
    assert [delivery.result() for delivery in deliveries] == list(range(count))
    assert seen == list(range(count))
    assert bus.end_offset(place) == count


def test_when_a_groups_coordinator_is_killed_its_members_keep_their_places(bus, topic, brokers):
    name = topic(2)
    heard = []
    with bus.consumer(group=name, session_timeout_s=30) as first, bus.consumer(group=name, session_timeout_s=30) as second:
        for consumer in (first, second):
            consumer.subscribe([name])
        deadline = time.monotonic() + WAIT_S
        while len(first.assignment()) != 1 or len(second.assignment()) != 1:
            assert time.monotonic() < deadline
            first.poll(0.02)
            second.poll(0.02)
        places = first.assignment() | second.assignment()
        coordinator = int(first._client.coordinator(name).patient.removeprefix("coordinator-"))
        brokers.kill(coordinator)
        deadline = time.monotonic() + WAIT_S
        stored = False
        while not stored:
            assert time.monotonic() < deadline
            for consumer in (first, second):
                try:
                    consumer.poll(0.05)
                except BusError as error:
                    heard.append(error)
            try:
                first.commit({place: Committed(0, "kept") for place in first.assignment()})
                stored = bus.committed(name, next(iter(first.assignment()))) == Committed(0, "kept")
            except BusError as error:
                heard.append(error)
        assert first.assignment() | second.assignment() == places
        assert len(heard) < 3


def test_a_leader_that_cannot_share_the_places_out_joins_again(kafka, monkeypatch):
    """Nothing else would: it beats no heart while it joins, and the others wait for what it says."""
    from refold.bus import _kafka_group as group

    topic = f"sharing-{os.urandom(3).hex()}.topic"
    failures = [BusError("no answer about the topic")]
    share = group.share

    def sharing(*given):
        if failures:
            raise failures.pop()
        return share(*given)

    monkeypatch.setattr(group, "share", sharing)
    with KafkaBus((kafka.bootstrap,)) as bus:
        bus.create_topics([TopicSpec(topic)])
        with bus.consumer(group=topic, session_timeout_s=2.0) as consumer:
            consumer.subscribe([topic])
            with pytest.raises(BusError, match="no answer about the topic"):
                eventually(lambda: consumer.poll(0.1) == [1])
            eventually(lambda: (consumer.poll(0.1), consumer.assignment())[1] == {Place(topic, 0)})


def test_a_partition_without_a_leader_keeps_no_other_from_being_read_and_is_gone_on_with_when_its_broker_is_back(brokers):
    with KafkaBus(tuple(brokers.bootstrap.split(",")), replication=1) as bus:
        name = f"faults-{os.urandom(6).hex()}"
        bus.create_topics([TopicSpec(name, 6)])
        leaders = bus._client.look_up(name).leaders
        dead = leaders[0]
        alive = [number for number, node in leaders.items() if node != dead]
        producer, reader = bus.producer(), bus.consumer()
        for number in leaders:
            producer.send(name, b"before", partition=number)
        producer.flush()
        reader.assign([Place(name, number) for number in leaders])
        read = []
        eventually(lambda: len(read.extend(reader.poll(0.1)) or read) == len(leaders))

        brokers.kill(dead)
        eventually(lambda: bus._client.look_up(name).leaders[0] < 0, timeout_s=WAIT_S)
        for number in alive:
            producer.send(name, b"meanwhile", partition=number)
        producer.flush()
        eventually(lambda: len(read.extend(reader.poll(0.1)) or read) == len(leaders) + len(alive))

        brokers.start(dead)
        producer.send(name, b"after", partition=0)
        # By itself kafka-python would list the brokers once a minute.
        producer.flush(30.0)
        eventually(lambda: len(read.extend(reader.poll(0.1)) or read) == len(leaders) + len(alive) + 1, timeout_s=30.0)
        producer.close()
        reader.close()


def test_the_end_is_never_before_what_was_acknowledged_though_a_frozen_leader_thaws_and_says_so(brokers, bus, topic):
    place = Place(topic(), 0)
    frozen = leader_of(bus, place)
    with bus.producer() as producer:
        producer.send(place.topic, b"1", partition=0).result(WAIT_S)
        assert bus.end_offset(place) == 1
        brokers.freeze(frozen)
        delivery = producer.send(place.topic, b"2", partition=0)
        delivered = []
        eventually(lambda: delivered.append(_result(delivery)) or delivered[-1] is not None, timeout_s=WAIT_S)
        brokers.thaw(frozen)
        for _ in range(5):
            assert bus.end_offset(place) == 2


def _result(delivery):
    try:
        return delivery.result(5.0)
    except TryAgainError:
        return None
