"""A trap in kafka-python, shown on a real broker, and that Refold does not walk into it.

Offsets whose transactional commit failed stay with kafka-python's producer through the abort, and go out with its next
transaction. Whoever starts from the group's offsets then skips input that nobody has worked on. Refold uses no transactions,
and its groups start where its log says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import CommitFailedError
from kafka.structs import OffsetAndMetadata

import refold
from refold.bus import TopicSpec
from refold.bus.kafka import KafkaBus
from refold.consumers.server import GROUPS
from refold.federation import Federation
from refold.schemas.events import UpdateAccepted
from refold.schemas.keys import SigningKey
from refold.testing import craft_update, eventually, send_update
from refold.testing.kafka import Cluster

pytestmark = pytest.mark.kafka

LONG_MS = 30_000
"""A poll that ends while its member joins again, because it has only now learned of its topic, throws the partitions that it is
given away, and no later poll asks for them (kafka-python 3.0.12). So a poll ends with the first record, and not before."""


def member(kafka: Cluster, group: str) -> KafkaConsumer:
    """Return a plain member of a group, on the topic of the same name."""
    return KafkaConsumer(
        group,
        bootstrap_servers=kafka.bootstrap,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        heartbeat_interval_ms=200,
    )


def poll_until(member: KafkaConsumer, partitions: int) -> None:
    """Poll until a member has so many partitions; of each it is given a record that it has not seen."""
    eventually(lambda: (member.poll(LONG_MS), len(member.assignment()) == partitions)[1], timeout_s=2 * LONG_MS / 1000)


def write_to_each(bus: KafkaBus, topic: str) -> None:
    """Write a record to both partitions."""
    with bus.producer() as producer:
        for partition in (0, 1):
            producer.send(topic, b"", partition=partition)
        producer.flush()


def at(offset: int) -> OffsetAndMetadata:
    return OffsetAndMetadata(offset, "", -1)


def stored(kafka: Cluster, group: str) -> dict[TopicPartition, int]:
    """Return the offsets that a group has stored."""
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    try:
        return {place: found.offset for place, found in admin.list_group_offsets(group)[group].items()}
    finally:
        admin.close()


def test_plain_kafka_python_commits_the_offsets_of_an_aborted_transaction_with_the_next(kafka: Cluster, bus: KafkaBus) -> None:
    name = f"trap-{os.urandom(3).hex()}"
    bus.create_topics([TopicSpec(name, 2)])
    write_to_each(bus, name)
    first, second = member(kafka, name), member(kafka, name)
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=name)
    try:
        poll_until(first, 2)
        outdated = first.group_metadata()
        with ThreadPoolExecutor(1) as beside:
            shared = beside.submit(poll_until, first, 1)
            poll_until(second, 1)
            write_to_each(bus, name)
            shared.result()
        [mine], [others] = first.assignment(), second.assignment()
        producer.init_transactions()
        producer.begin_transaction()
        with pytest.raises(CommitFailedError):
            producer.send_offsets_to_transaction({others: at(3)}, outdated)
        producer.abort_transaction()
        producer.begin_transaction()
        producer.send_offsets_to_transaction({mine: at(1)}, first.group_metadata())
        producer.commit_transaction()
        # If this fails some day, kafka-python was mended: nothing of Refold's rests on it.
        assert stored(kafka, name) == {mine: 1, others: 3}
    finally:
        producer.close()
        first.close()
        second.close()


@pytest.fixture
def federation(kafka: Cluster, tmp_path: Path) -> Iterator[Federation]:
    """Yield a federation of one client that nobody serves yet."""
    url = f"{kafka.url}/trap-{os.urandom(3).hex()}"
    plan = refold.Plan(minimum=1, deadline_s=None)
    with refold.create(url, {"w": np.zeros(4, np.float32)}, plan=plan, partitions=2, keys=tmp_path / "keys") as made:
        yield made


def test_f15_updates_that_a_groups_offsets_have_skipped_are_judged_all_the_same(
    kafka: Cluster, federation: Federation, tmp_path: Path
) -> None:
    key = SigningKey.load_or_create(tmp_path / "ann.pem")
    federation.enroll("ann", key.public)
    with federation.serve():
        eventually(lambda: federation.history().lineage.opened is not None)
    parcel = craft_update(federation, "ann", key)
    send_update(federation, parcel, "ann")
    move_to_the_ends(kafka, federation)
    with federation.serve():
        eventually(lambda: parcel.digest in accepted(federation), timeout_s=60.0)


def move_to_the_ends(kafka: Cluster, federation: Federation) -> None:
    """Store the ends of all topics as every group's offsets, as the trap does with an input's."""
    for group in GROUPS:
        consumer = KafkaConsumer(
            bootstrap_servers=kafka.bootstrap, group_id=f"{federation.name}.{group}", enable_auto_commit=False
        )
        places = [
            TopicPartition(topic, partition)
            for topic, spec in federation.bus.topics().items()
            if topic.startswith(f"{federation.name}.")
            for partition in range(spec.partitions)
        ]
        consumer.assign(places)
        consumer.commit({place: at(end) for place, end in consumer.end_offsets(places).items()})
        consumer.close()


def accepted(federation: Federation) -> set[bytes]:
    """Return the digests of the accepted updates."""
    return {event.origin.digest for event, _ in federation.log() if isinstance(event, UpdateAccepted)}
