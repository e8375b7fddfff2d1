"""kafka-python used as its documentation shows, with the settings that made it fastest: what the driver is compared with."""

from __future__ import annotations

import os

import kafka

FETCH_BYTES = 16 << 20


def write_plain(bootstrap: str, topic: str, values: list[bytes], count: int) -> None:
    """Send so many records, acknowledged by all replicas, idempotent, at most 16 MB under way."""
    producer = kafka.KafkaProducer(
        bootstrap_servers=bootstrap, acks="all", batch_size=1 << 20, linger_ms=5, max_request_size=2 << 20
    )
    ahead = max(1, FETCH_BYTES // len(values[0]))
    futures = []
    for number in range(count):
        futures.append(producer.send(topic, values[number % len(values)], partition=0))
        if len(futures) >= ahead:
            futures.pop(0).get(60)
    producer.flush(60)
    producer.close(5)


def read_plain(bootstrap: str, topic: str, count: int) -> None:
    """Read so many records from the beginning."""
    consumer = kafka.KafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=FETCH_BYTES,
        fetch_max_bytes=FETCH_BYTES,
        client_id=f"bench-{os.getpid()}",
    )
    place = kafka.TopicPartition(topic, 0)
    consumer.assign([place])
    consumer.seek_to_beginning(place)
    read = 0
    while read < count:
        read += sum(map(len, consumer.poll(10_000, max_records=2000).values()))
    consumer.close()
