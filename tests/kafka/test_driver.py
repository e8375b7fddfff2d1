"""The Kafka driver where it is more than the contract: hostile batches, bounds, broken connections, lives in groups."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import zstandard

from refold.bus import Committed, Place
from refold.bus._kafka_batches import UNREADABLE, Sender, encode_batch, encode_record
from refold.bus._kafka_parcels import Parcel, produce_request
from refold.schemas.errors import ConfigurationError, PlaceTakenError, UsageError

from kafka.protocol.admin import DescribeGroupsRequest  # isort: skip  -- after the driver, which bears with its warnings

pytestmark = pytest.mark.kafka

WAIT_S = 20.0


def read_all(bus, place):
    with bus.consumer() as consumer:
        consumer.assign([place])
        records, end = [], bus.end_offset(place)
        while consumer.position(place) < end:
            records += consumer.poll(1.0)
        return records


def produce_raw(bus, place, batch):
    """Send bytes to a partition as they are, as a hostile client would."""
    client = bus._client
    parcel = Parcel(place, batch=batch)
    return client.ask(produce_request(parcel), client.leader(place)).responses[0].partition_responses[0]


def zstd_batch(values, *, body=None):
    parts = [part for index, value in enumerate(values) for part in encode_record(index, 0, None, value, ())]
    packed = zstandard.ZstdCompressor().compress(b"".join(parts) if body is None else body)
    batch = encode_batch([packed], len(values), (0, 0), Sender(-1, -1), -1)
    # The codec is part of what the checksum covers.
    batch[22] = 4
    batch[17:21] = connections_checksum(batch)
    return batch


def connections_checksum(batch):
    from crc32c import crc32c

    return crc32c(bytes(batch[21:])).to_bytes(4, "big")


# -- hostile and foreign batches ---------------------------------------------------------------------------------------------


def test_a_bomb_in_a_topic_stops_no_reader_and_shows_itself(bus, topic):
    place = Place(topic(), 0)
    with bus.producer() as producer:
        producer.send(place.topic, b"before", partition=0)
        producer.flush()
        answer = produce_raw(bus, place, zstd_batch([bytes(64 << 20)]))
        assert answer.error_code == 0
        producer.send(place.topic, b"behind", partition=0)
    before, bomb, behind = read_all(bus, place)
    assert [before.value, behind.value] == [b"before", b"behind"]
    assert bomb.offset == 1
    assert b"more than" in bomb.header(UNREADABLE)
    assert len(bomb.value) < 1 << 20


def test_batches_that_another_client_compressed_are_read(bus, topic):
    place = Place(topic(), 0)
    assert produce_raw(bus, place, zstd_batch([b"1", b"2"])).error_code == 0
    assert [(record.offset, record.value) for record in read_all(bus, place)] == [(0, b"1"), (1, b"2")]


def test_a_reader_passes_over_the_markers_of_foreign_transactions(bus, topic, kafka):
    from kafka import KafkaProducer

    place = Place(topic(), 0)
    foreign = KafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=place.topic)
    try:
        foreign.init_transactions()
        for end in (foreign.commit_transaction, foreign.abort_transaction):
            foreign.begin_transaction()
            foreign.send(place.topic, b"theirs", partition=0).get(WAIT_S)
            end()
    finally:
        foreign.close(WAIT_S)
    assert bus.end_offset(place) == 4
    assert [record.offset for record in read_all(bus, place)] == [0, 2]


def test_a_foreign_transaction_that_hangs_holds_no_reader_up(bus, topic, kafka):
    from kafka import KafkaProducer

    place = Place(topic(), 0)
    foreign = KafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=place.topic)
    try:
        foreign.init_transactions()
        foreign.begin_transaction()
        foreign.send(place.topic, b"open", partition=0).get(WAIT_S)
        with bus.producer() as producer:
            producer.send(place.topic, b"ours", partition=0)
        assert [record.value for record in read_all(bus, place)] == [b"open", b"ours"]
        foreign.abort_transaction()
    finally:
        foreign.close(WAIT_S)


def test_other_clients_read_our_headers(bus, topic, kafka):
    from kafka import KafkaConsumer, TopicPartition

    name = topic()
    with bus.producer() as producer:
        producer.send(name, b"value", key=b"key", headers=(("ce_type", b"refold.Commit"), ("ce_type", "größe".encode())))
    reader = KafkaConsumer(bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
    try:
        reader.assign([TopicPartition(name, 0)])
        [[record]] = reader.poll(WAIT_S * 1000).values()
    finally:
        reader.close()
    assert (record.key, record.value) == (b"key", b"value")
    assert record.headers == [("ce_type", b"refold.Commit"), ("ce_type", "größe".encode())]


# -- bounds ------------------------------------------------------------------------------------------------------------------


def test_a_slow_reader_of_many_full_places_holds_no_more_than_its_bound(bus, topic):
    name, record, bound = topic(partitions=16), 1_000_000, 4 << 20
    with bus.producer() as producer:
        for number in range(48):
            producer.send(name, os.urandom(record), partition=number % 16)
    with bus.consumer(max_in_flight_bytes=bound) as consumer:
        consumer.assign([Place(name, partition) for partition in range(16)])
        read = dict.fromkeys(range(16), 0)
        while sum(read.values()) < 48:
            for each in consumer.poll(1.0, max_records=1):
                read[each.partition] += 1
            assert consumer.in_flight_bytes <= bound + record
        assert set(read.values()) == {3}


def test_headers_without_number_are_refused_before_they_are_sent(bus, topic):
    with bus.producer() as producer, pytest.raises(UsageError, match="too large"):
        producer.send(topic(), b"", headers=tuple(("h", b"") for _ in range(200_000)))


def test_the_largest_records_fill_batches_that_the_broker_takes(bus, topic):
    place = Place(topic(), 0)
    with bus.producer() as producer:
        for size in (1 << 20, 1, 1 << 19, 1 << 19, 1 << 20, 1):
            producer.send(place.topic, bytes(size), partition=0)
    assert [len(record.value) for record in read_all(bus, place)] == [1 << 20, 1, 1 << 19, 1 << 19, 1 << 20, 1]


def test_a_producer_that_is_dropped_takes_its_connections_and_thread_with_it(bus, topic):
    producer = bus.producer()
    producer.send(topic(), b"", partition=0)
    producer.flush()
    thread = producer._client._net._io_thread
    del producer
    gc.collect()
    thread.join(WAIT_S)
    assert not thread.is_alive()


# -- broken connections ------------------------------------------------------------------------------------------------------


def break_connections(client):
    """Cut every connection of a client in the middle of whatever it does."""

    def cut():
        for connection in list(client._manager._conns.values()):
            connection.close(ConnectionError("cut by the test"))

    client._net.call_soon_with_future(cut)


def test_what_is_sent_over_connections_that_break_is_there_once_and_in_order(bus, topic):
    place = Place(topic(), 0)
    with bus.producer() as producer:
        stop = threading.Event()

        def trouble():
            while not stop.wait(0.02):
                break_connections(producer._client)

        thread = threading.Thread(target=trouble)
        thread.start()
        try:
            deliveries = [producer.send(place.topic, b"%d" % number * 5000, partition=0) for number in range(400)]
            producer.flush(WAIT_S)
        finally:
            stop.set()
            thread.join()
    assert [delivery.result() for delivery in deliveries] == list(range(400))
    assert [record.value for record in read_all(bus, place)] == [b"%d" % number * 5000 for number in range(400)]


def test_a_reader_and_its_group_go_on_over_connections_that_break(bus, topic):
    place = Place(topic(), 0)
    heard = []
    with bus.producer() as producer, bus.consumer(group=place.topic, instance="one") as consumer:
        consumer.subscribe([place.topic], on_assigned=heard.append, on_revoked=heard.append)
        seen = []
        for number in range(30):
            producer.send(place.topic, b"%d" % number, partition=0)
            producer.flush()
            break_connections(consumer._client)
            deadline = time.monotonic() + WAIT_S
            while len(seen) <= number and time.monotonic() < deadline:
                seen += [int(record.value) for record in consumer.poll(0.05)]
        consumer.commit({place: Committed(30)})
    assert seen == list(range(30))
    assert heard == [frozenset({place})]


# -- groups ------------------------------------------------------------------------------------------------------------------


def share(consumers, count):
    """Poll until each consumer holds so many places."""
    deadline = time.monotonic() + WAIT_S
    while [len(consumer.assignment()) for consumer in consumers] != [count] * len(consumers):
        assert time.monotonic() < deadline
        for consumer in consumers:
            consumer.poll(0.01)


def test_a_named_member_that_is_closed_leaves_at_once(bus, topic):
    name = topic(partitions=2)
    first, second = (bus.consumer(group=name, instance=each, session_timeout_s=60) for each in ("a", "b"))
    with first:
        with second:
            first.subscribe([name])
            second.subscribe([name])
            share([first, second], 1)
        began = time.monotonic()
        share([first], 2)
        assert time.monotonic() - began < WAIT_S


MEMBER = """
import sys
from refold.bus import open_bus
bus = open_bus(sys.argv[1])
consumer = bus.consumer(group=sys.argv[2], session_timeout_s=2)
consumer.subscribe([sys.argv[2]])
while True:
    consumer.poll(0.1)
    print(len(consumer.assignment()), flush=True)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_process_that_dies_or_freezes_holds_its_places_no_longer_than_its_session(bus, topic, end):
    name = topic(partitions=2)
    with bus.consumer(group=name, session_timeout_s=2) as consumer:
        consumer.subscribe([name])
        other = subprocess.Popen([sys.executable, "-c", MEMBER, bus.url, name], stdout=subprocess.PIPE, text=True)
        try:
            share([consumer], 1)
            other.send_signal(end)
            ended = time.monotonic()
            share([consumer], 2)
            assert time.monotonic() - ended < 2 + 5
        finally:
            other.kill()
            other.communicate()


def test_who_was_alone_and_silent_goes_on_with_what_it_holds(bus, topic):
    place, heard = Place(topic(), 0), []
    with bus.producer() as producer:
        for number in range(4):
            producer.send(place.topic, b"%d" % number, partition=0)
    with bus.consumer(group=place.topic, session_timeout_s=1) as consumer:
        consumer.subscribe([place.topic], on_assigned=heard.append, on_revoked=heard.append)
        read = []
        while len(read) < 2:
            read += [record.offset for record in consumer.poll(WAIT_S, max_records=1)]
        silent(bus, place.topic, 1)
        consumer.commit({place: Committed(2)})
        while len(read) < 4:
            read += [record.offset for record in consumer.poll(WAIT_S, max_records=1)]
        consumer.commit({place: Committed(4)})
    assert read == [0, 1, 2, 3]
    assert heard == [frozenset({place})]
    assert bus.committed(place.topic, place) == Committed(4)


def test_who_was_alone_and_silent_is_told_when_somebody_came_meanwhile(bus, topic):
    place, heard = Place(topic(), 0), []
    with bus.consumer(group=place.topic, session_timeout_s=1) as consumer:
        consumer.subscribe([place.topic], on_assigned=heard.append, on_revoked=heard.append)
        share([consumer], 1)
        silent(bus, place.topic, 1)
        with bus.consumer(group=place.topic, session_timeout_s=1) as other:
            other.subscribe([place.topic])
            share([other], 1)
            with pytest.raises(PlaceTakenError):
                consumer.commit({place: Committed(0)})
        deadline = time.monotonic() + WAIT_S
        while len(heard) < 3 and time.monotonic() < deadline:
            consumer.poll(0.05)
    assert heard == [frozenset({place})] * 3


def silent(bus, group, members):
    """Return when the broker has removed the group's members: nobody polls."""
    client, deadline = bus._client, time.monotonic() + WAIT_S
    while True:
        request = DescribeGroupsRequest(groups=[group], include_authorized_operations=False)
        [found] = client.ask(request, client.coordinator(group).prompt).groups
        if len(found.members) < members:
            return
        assert time.monotonic() < deadline


def test_a_listener_may_take_longer_than_the_session(bus, topic):
    name, heard = topic(partitions=2), []

    def take_over(places):
        heard.append(places)
        threading.Event().wait(2.5)

    with bus.consumer(group=name, session_timeout_s=1) as slow, bus.consumer(group=name, session_timeout_s=1) as other:
        slow.subscribe([name], on_assigned=take_over, on_revoked=heard.append)
        other.subscribe([name])
        share([slow], 2)
        with running(lambda: other.poll(0.05)):
            slow.poll(0.5)
            deadline = time.monotonic() + WAIT_S
            while len(slow.assignment()) != 1 and time.monotonic() < deadline:
                slow.poll(0.05)
    first, second = heard
    assert (len(first), len(second)) == (2, 1)


@contextmanager
def running(call):
    """Call again and again, in a thread."""
    over = threading.Event()

    def run():
        while not over.is_set():
            call()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_session_timeout_that_the_broker_refuses_is_a_configuration_error(bus, topic):
    name = topic()
    with bus.consumer(group=name, session_timeout_s=0.1) as consumer:
        consumer.subscribe([name])
        with pytest.raises(ConfigurationError, match="session timeout"):
            consumer.poll(WAIT_S)


def test_a_group_of_another_program_is_a_configuration_error(bus, topic, kafka):
    from kafka import KafkaConsumer

    name = topic()
    foreign = KafkaConsumer(name, bootstrap_servers=kafka.bootstrap, group_id=name, enable_auto_commit=False)
    try:
        deadline = time.monotonic() + WAIT_S
        while not foreign.assignment() and time.monotonic() < deadline:
            foreign.poll(100)
        with bus.consumer(group=name) as consumer:
            consumer.subscribe([name])
            with pytest.raises(ConfigurationError, match="other software"):
                consumer.poll(WAIT_S)
    finally:
        foreign.close()
