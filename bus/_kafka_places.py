"""What a Kafka cluster says about single partitions and groups: offsets, deletion, stored positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kafka.errors
from kafka.protocol.admin import DeleteRecordsRequest
from kafka.protocol.consumer import ListOffsetsRequest, OffsetFetchRequest

from refold.bus._kafka_client import ANSWER_S, KafkaClient
from refold.bus._kafka_errors import Again, Unanswered, check
from refold.bus.contract import Committed, Place

LATEST, EARLIEST = -1, -2
COORDINATOR_MOVED = (kafka.errors.NotCoordinatorError.errno, kafka.errors.CoordinatorNotAvailableError.errno)


def ask_leader(
    client: KafkaClient, place: Place, what: str, ask: Callable[[int, float], int], timeout_s: float = ANSWER_S
) -> int:
    """Ask a partition's leader; the answer's error code decides whether to look for another leader.

    Parameters
    ----------
    ask
        Given the leader and the seconds left, returns the answer or raises.
    """

    def attempt(left_s: float) -> int:
        try:
            return ask(client.leader(place, left_s), left_s)
        except kafka.errors.UnknownTopicOrPartitionError as error:
            # A broker that just became the leader says so too; whether the topic is there, the cluster's metadata know.
            client.look_up(place.topic, left_s)
            raise Again("the broker does not know the partition yet") from error
        except (Again, Unanswered):
            client.forget(place.topic)
            raise

    return client.persist(attempt, what, timeout_s, topic=place.topic, partition=place.partition)


def offset_at(client: KafkaClient, place: Place, timestamp_ms: int) -> int:
    """Return the first offset with this timestamp or a later one, -1 if there is none; also takes LATEST and EARLIEST.

    Transactions that hang hide nothing: offsets are those of read_uncommitted, like the readers (see `_kafka_fetching`).
    """

    def ask(node: int, left_s: float) -> int:
        topic = ListOffsetsRequest.ListOffsetsTopic
        partition = topic.ListOffsetsPartition(
            partition_index=place.partition, current_leader_epoch=-1, timestamp=timestamp_ms, max_num_offsets=1
        )
        request = ListOffsetsRequest(
            replica_id=-1,
            isolation_level=0,
            topics=[topic(name=place.topic, partitions=[partition])],
            timeout_ms=int(left_s * 1000),
            max_version=6,
        )
        [found] = client.ask(request, node, left_s).topics[0].partitions
        # A leader just gone or just come answers so; neither says that the topic is not there.
        check_unknown_leader(found.error_code)
        return int(found.offset)

    return ask_leader(client, place, "looking an offset up", ask)


def end_at(client: KafkaClient, place: Place, least: int) -> int:
    """Return a partition's end, which is not before `least`.

    A broker that was frozen while another took its place may answer as the leader that it was, for a moment.
    """

    def attempt(_left_s: float) -> int:
        found = offset_at(client, place, LATEST)
        if found < least:
            client.forget(place.topic)
            raise Again(f"a broker says that the end is {found}, and a record before {least} was acknowledged")
        return found

    return client.persist(attempt, "reading a partition's end", topic=place.topic, partition=place.partition)


def check_unknown_leader(error_code: int) -> None:
    """Raise a partition answer's error; an unknown topic is told apart, because it is retriable only for kafka-python."""
    if error_code == kafka.errors.UnknownTopicOrPartitionError.errno:
        raise kafka.errors.UnknownTopicOrPartitionError
    check(error_code)


def delete_before(client: KafkaClient, place: Place, offset: int) -> None:
    """Delete records below an offset, which must not lie past the end."""

    def ask(node: int, left_s: float) -> int:
        topic = DeleteRecordsRequest.DeleteRecordsTopic
        partition = topic.DeleteRecordsPartition(partition_index=place.partition, offset=offset)
        request = DeleteRecordsRequest(topics=[topic(name=place.topic, partitions=[partition])], timeout_ms=int(left_s * 1000))
        [found] = client.ask(request, node, left_s).topics[0].partitions
        check_unknown_leader(found.error_code)
        return int(found.low_watermark)

    ask_leader(client, place, "deleting records", ask)


def stored_positions(client: KafkaClient, group: str, place: Place | None = None) -> dict[Place, Committed]:
    """Return a group's stored positions, of one place or of all."""

    def attempt(left_s: float) -> dict[Place, Committed]:
        node = client.coordinator(group, left_s).prompt
        try:
            found = client.ask(_position_request(group, place), node, left_s).groups[0]
            if found.error_code in COORDINATOR_MOVED:
                raise Again("the coordinator moved")
            check(found.error_code)
        except (Again, Unanswered):
            client.forget_coordinator(group)
            raise
        return {
            Place(topic.name, part.partition_index): Committed(part.committed_offset, part.metadata or "")
            for topic in found.topics
            for part in topic.partitions
            if part.error_code == 0 and part.committed_offset >= 0
        }

    return client.persist(attempt, "reading a group's positions", group=group)


def _position_request(group: str, place: Place | None) -> Any:
    kind = OffsetFetchRequest.OffsetFetchRequestGroup
    topics = None if place is None else [kind.OffsetFetchRequestTopics(name=place.topic, partition_indexes=[place.partition])]
    return OffsetFetchRequest(groups=[kind(group_id=group, topics=topics)], require_stable=False, min_version=8, max_version=8)
