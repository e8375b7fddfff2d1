"""Topics of a Kafka cluster: how Refold makes them, and what it reads back.

Settings that every topic gets, whatever the brokers' defaults are, and what breaks without them:

- ``retention.bytes=-1``, ``retention.ms`` as the topic asks: a log is kept for ever, or the model cannot be rebuilt.
- ``unclean.leader.election.enable=false``, ``min.insync.replicas=2`` of three: what was acknowledged survives a broker.
- ``message.timestamp.type=LogAppendTime``: a client whose clock is two hours ahead can send, one that forges the time neither
  keeps a topic with a retention from being cleaned nor empties it, and `refold doctor` sees whose clock is off.
- ``max.message.bytes``: the largest record with its batch's overhead; a broker's default is 12 bytes above the record alone.
- ``compression.type=producer``: the broker keeps bytes as they were sent. Payloads are compressed already.
- compacted topics: segments of 256 MiB or a day, cleaned within a day. Kafka never compacts the segment being written, so that
  with its defaults (1 GiB, a week) snapshots of a small federation would stay for weeks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

import kafka.errors
from kafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest
from kafka.protocol.metadata import MetadataRequest

from refold.bus._kafka_client import ANSWER_S, KafkaClient, topic_node
from refold.bus._kafka_errors import Again, Unanswered, check, refused
from refold.bus._store import no_topic
from refold.bus.contract import MAX_RECORD_BYTES, Place, TopicSpec
from refold.bus.topics import made_spec
from refold.schemas.errors import BusError, ConfigurationError

MAX_MESSAGE_BYTES = MAX_RECORD_BYTES + (64 << 10)
"""Largest batch: the largest record, and room for its batch's header (61 bytes), its own lengths and those of its headers."""

CREATE_S = 30.0
DAY_MS = 86_400_000
MOST_REPLICAS = 3

EVERY_TOPIC = {
    "retention.bytes": "-1",
    "unclean.leader.election.enable": "false",
    "message.timestamp.type": "LogAppendTime",
    "max.message.bytes": str(MAX_MESSAGE_BYTES),
    "compression.type": "producer",
}
COMPACTED_TOPIC = {
    "segment.bytes": str(256 << 20),
    "segment.ms": str(DAY_MS),
    "max.compaction.lag.ms": str(DAY_MS),
    "min.cleanable.dirty.ratio": "0.3",
    "delete.retention.ms": str(DAY_MS),
}
_TOPIC = 2
"""A topic among the kinds of resources that have settings."""


def topic_settings(spec: TopicSpec, replication: int) -> dict[str, str]:
    """Return the settings that a topic is made with."""
    policy = "delete" if not spec.compacted else "compact" if spec.retention_s is None else "compact,delete"
    return (
        EVERY_TOPIC
        | (COMPACTED_TOPIC if spec.compacted else {})
        | {
            "cleanup.policy": policy,
            "retention.ms": "-1" if spec.retention_s is None else str(round(spec.retention_s * 1000)),
            "min.insync.replicas": "2" if replication >= MOST_REPLICAS else "1",
        }
    )


def create_topics(client: KafkaClient, specs: Iterable[TopicSpec], replication: int | None, overrides: dict[str, str]) -> None:
    """Create topics that are not there, and return once every broker knows them.

    Parameters
    ----------
    replication
        Copies of each partition; None means three, or one per broker where there are fewer.
    overrides
        Settings that differ from `topic_settings`, for tests.
    """
    wanted = list(specs)
    copies = replication or min(MOST_REPLICAS, len(client.nodes()))
    request = CreateTopicsRequest(
        topics=[_creatable(spec, copies, topic_settings(spec, copies) | overrides) for spec in wanted],
        timeout_ms=int(CREATE_S * 1000),
        validate_only=False,
    )
    # Asking twice is harmless: a topic that is there by now is what was asked for.
    response = client.persist(lambda left_s: client.ask(request, None, left_s), "creating topics", CREATE_S)
    for topic in response.topics:
        _check_created(topic, copies, client.account)
    _await_known(client, [spec.name for spec in wanted])


def _creatable(spec: TopicSpec, copies: int, configured: dict[str, str]) -> Any:
    kind = CreateTopicsRequest.CreatableTopic
    configs = [kind.CreatableTopicConfig(name=name, value=value) for name, value in sorted(configured.items())]
    return kind(name=spec.name, num_partitions=spec.partitions, replication_factor=copies, assignments=[], configs=configs)


def _check_created(topic: Any, copies: int, account: str | None) -> None:
    if topic.error_code in (0, kafka.errors.TopicAlreadyExistsError.errno):
        return
    error = kafka.errors.for_code(topic.error_code)
    said = topic.error_message or error.__name__
    if error is kafka.errors.InvalidReplicationFactorError:
        hint = f"start more brokers, or add ?replication=N to the bus URL (asked for {copies})"
        raise ConfigurationError(f"the cluster has too few brokers: {said}", topic=topic.name, hint=hint)
    if issubclass(error, kafka.errors.AuthorizationError):
        raise refused("creating topics", error(), account=account, topic=topic.name)
    if issubclass(error, kafka.errors.RetriableError):
        raise BusError(f"the topic could not be created: {said}", topic=topic.name, hint="try again")
    raise ConfigurationError(f"the cluster refuses the topic: {said}", topic=topic.name)


def _await_known(client: KafkaClient, names: list[str]) -> None:
    """Return once every broker says who leads the topics: brokers learn of a topic one after the other."""
    deadline = time.monotonic() + CREATE_S
    waiting = [(node, name) for node in client.nodes() for name in names]
    while waiting and time.monotonic() < deadline:
        by_node = {node: [name for at, name in waiting if at == node] for node, _ in waiting}
        waiting = [(node, name) for node, asked in by_node.items() for name in asked if name not in _known(client, node, asked)]
        if waiting:
            time.sleep(0.02)
    for name in names:
        client.forget(name)


def _known(client: KafkaClient, node: int, names: list[str]) -> frozenset[str]:
    wanted = [MetadataRequest.MetadataRequestTopic(name=name) for name in names]
    try:
        response = client.ask(MetadataRequest(topics=wanted, allow_auto_topic_creation=False), node, ANSWER_S)
    except Again:
        return frozenset()
    except Unanswered:
        return frozenset(names)  # A broker that is down does not hold up the rest; it learns when it is back.
    return frozenset(topic.name for topic in response.topics if topic.error_code == 0)


def all_topics(client: KafkaClient) -> dict[str, tuple[int, int]]:
    """Return partitions and replicas of every topic that is not Kafka's own."""

    def attempt(left_s: float) -> dict[str, tuple[int, int]]:
        response = client.ask(MetadataRequest(topics=None, allow_auto_topic_creation=False), None, left_s)
        found = [topic for topic in response.topics if topic.error_code == 0 and not topic.is_internal]
        return {topic.name: (len(topic.partitions), topic_node(topic).replicas) for topic in found}

    return client.persist(attempt, "listing the topics")


def read_specs(client: KafkaClient, partitions: dict[str, int]) -> dict[str, TopicSpec]:
    """Return topics as they are set, given how many partitions each has."""
    if not partitions:
        return {}
    kind = DescribeConfigsRequest.DescribeConfigsResource
    keys = ["cleanup.policy", "retention.ms"]
    resources = [kind(resource_type=_TOPIC, resource_name=name, configuration_keys=keys) for name in sorted(partitions)]
    request = DescribeConfigsRequest(resources=resources, include_synonyms=False, include_documentation=False)

    def attempt(left_s: float) -> dict[str, TopicSpec]:
        specs = {}
        for found in client.ask(request, None, left_s).results:
            if found.error_code == kafka.errors.UnknownTopicOrPartitionError.errno:
                continue  # Deleted meanwhile.
            if found.error_code == kafka.errors.TopicAuthorizationFailedError.errno:
                # Clients may not ask; servers and `refold doctor`, who may, refuse what is set otherwise.
                specs[found.resource_name] = made_spec(found.resource_name, partitions[found.resource_name])
                continue
            check(found.error_code)
            configured = {config.name: config.value for config in found.configs}
            specs[found.resource_name] = _spec(found.resource_name, partitions[found.resource_name], configured)
        return specs

    return client.persist(attempt, "reading the topics' settings")


def _spec(name: str, partitions: int, configured: dict[str, str]) -> TopicSpec:
    policies = configured["cleanup.policy"].split(",")
    kept_ms = int(configured["retention.ms"])
    retention_s = None if kept_ms < 0 or "delete" not in policies else kept_ms / 1000
    return TopicSpec(name, partitions, "compact" in policies, retention_s)


class Specs:
    """What is known of topics' settings, shared by all that one bus opened: a topic's settings do not change under Refold."""

    def __init__(self) -> None:
        self._known: dict[str, TopicSpec] = {}
        self._acknowledged: dict[Place, int] = {}
        self._lock = threading.Lock()

    def acknowledge(self, place: Place, next_offset: int) -> None:
        """Take note that a record before this offset was acknowledged to one of this bus's producers."""
        with self._lock:
            self._acknowledged[place] = max(next_offset, self._acknowledged.get(place, 0))

    def acknowledged(self, place: Place) -> int:
        """Return the offset behind all that was acknowledged: a place's end is not before it, whatever a broker says."""
        return self._acknowledged.get(place, 0)

    def get(self, client: KafkaClient, topic: str) -> TopicSpec:
        """Return a topic's settings; NotFoundError if there is none."""
        known = self._known.get(topic)
        if known is None:
            partitions = len(client.look_up(topic).leaders)
            read = read_specs(client, {topic: partitions})
            if topic not in read:
                raise no_topic(topic)
            known = self._known[topic] = read[topic]
        return known

    def all(self, client: KafkaClient) -> dict[str, TopicSpec]:
        """Return every topic's settings, reading those that are new."""
        present = {name: partitions for name, (partitions, _) in all_topics(client).items()}
        known = {name: spec for name, spec in list(self._known.items()) if present.get(name) == spec.partitions}
        known |= read_specs(client, {name: count for name, count in present.items() if name not in known})
        self._known = known
        return dict(sorted(known.items()))

    def forget(self) -> None:
        """Read all settings anew when they are next needed: topics may have been made anew."""
        self._known = {}
        with self._lock:
            self._acknowledged.clear()
