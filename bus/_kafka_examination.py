"""What may be wrong with a Kafka cluster and the settings of a federation's topics, each with the command that mends it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from refold.bus._kafka_client import KafkaClient
from refold.bus._kafka_errors import address, check
from refold.bus._kafka_topics import EVERY_TOPIC, MOST_REPLICAS, topic_settings
from refold.bus.contract import TopicSpec
from refold.bus.examination import Remedy
from refold.bus.symptoms import Severity, Symptom

with warnings.catch_warnings():
    # As in `_kafka_errors`.
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka.errors
    from kafka.protocol.admin import DescribeConfigsRequest
    from kafka.protocol.metadata import ApiVersionsRequest, MetadataRequest

_TOPIC = 2
OLDEST_FETCH = 12
"""Kafka 2.7 and 3.0: what is older lacks what the driver asks."""

_FETCH_KEY = 1
MUST_BE = ("cleanup.policy", "unclean.leader.election.enable", "min.insync.replicas", "retention.bytes", "max.message.bytes")
"""Settings that lose data, or stop a federation, where they are others than Refold's; `retention.ms` is the spec's own."""


def remedy(brokers: tuple[str, ...]) -> Remedy:
    """Return what names the command that mends a topic."""

    def fix(spec: TopicSpec, setting: str) -> str:
        if setting == "missing":
            kinds = f"--partitions {spec.partitions} --config " + " --config ".join(_pairs(topic_settings(spec, MOST_REPLICAS)))
            return (
                f"if it never held anything, kafka-topics.sh --bootstrap-server {address(brokers)} --create "
                f"--topic {spec.name} {kinds}; otherwise `refold import` a copy into a new federation"
            )
        if setting == "partitions":
            return "Kafka takes no partitions back: `refold export` the federation, and `refold import` it under another name"
        name = {"compacted": "cleanup.policy", "retention": "retention.ms"}[setting]
        return alter(brokers, spec.name, name, topic_settings(spec, MOST_REPLICAS)[name])

    return fix


def alter(brokers: tuple[str, ...], topic: str, name: str, value: str) -> str:
    """Return the command that sets one setting of a topic."""
    return (
        f"kafka-configs.sh --bootstrap-server {address(brokers)} --alter --entity-type topics --entity-name {topic} "
        f"--add-config {name}={'[' + value + ']' if ',' in value else value}"
    )


def examine_cluster(client: KafkaClient, specs: Iterable[TopicSpec]) -> Iterator[Symptom]:
    """Look at brokers, versions, the packages here, and at what `TopicSpec` does not say of topics."""
    wanted = {spec.name: spec for spec in specs}
    metadata = client.persist(lambda left_s: client.ask(_metadata(list(wanted)), None, left_s), "examining the cluster")
    yield _brokers(client, metadata)
    yield _versions(client)
    yield Symptom("packages", Severity.OK, f"kafka-python {version('kafka-python')}, crc32c {version('crc32c')}")
    found = {topic.name: topic for topic in metadata.topics if topic.error_code == 0}
    settings = _settings(client, sorted(found))
    for name, topic in found.items():
        yield from _copies(client.brokers, topic, len(metadata.brokers))
        yield from _dangerous(client.brokers, wanted[name], settings[name], _replicas(topic))


def unseen(client: KafkaClient, specs: Iterable[TopicSpec]) -> list[str]:
    """Return the topics that the brokers do not let this account see, whether they are there or not."""
    request = _metadata([spec.name for spec in specs])
    answer = client.persist(lambda left_s: client.ask(request, None, left_s), "examining the cluster")
    return [topic.name for topic in answer.topics if topic.error_code == kafka.errors.TopicAuthorizationFailedError.errno]


def not_seen(name: str, account: str | None) -> Symptom:
    """Return what is said of such a topic."""
    fix = "examine with an account that has the role auditor: `refold doctor --acls`"
    return Symptom(name, Severity.FAILURE, f"cannot be examined: ACLs hide it from {account or 'this account'}", fix)


def _metadata(names: list[str]) -> Any:
    topics = [MetadataRequest.MetadataRequestTopic(name=name) for name in names]
    return MetadataRequest(topics=topics, allow_auto_topic_creation=False)


def _brokers(client: KafkaClient, metadata: Any) -> Symptom:
    count = len(metadata.brokers)
    what = f"{count} broker{'s' if count > 1 else ''} answer at {address(client.brokers)}"
    if count < MOST_REPLICAS:
        fix = "with three or more, none of them is missed when it fails; one alone is for trying things out"
        return Symptom("brokers", Severity.WARNING, what, fix)
    return Symptom("brokers", Severity.OK, what)


def _versions(client: KafkaClient) -> Symptom:
    request = ApiVersionsRequest(client_software_name="refold", client_software_version="doctor")
    answer = client.persist(lambda left_s: client.ask(request, None, left_s), "asking for the broker's version")
    newest = max((key.max_version for key in answer.api_keys if key.api_key == _FETCH_KEY), default=0)
    what = f"the broker fetches by version {newest} of the protocol"
    if newest < OLDEST_FETCH:
        return Symptom("version", Severity.FAILURE, what, "upgrade the brokers to Kafka 3.0 or newer (4.x is what is tested)")
    return Symptom("version", Severity.OK, what)


def _copies(brokers: tuple[str, ...], topic: Any, count: int) -> Iterator[Symptom]:
    leaderless = [part.partition_index for part in topic.partitions if part.leader_id < 0]
    behind = [part.partition_index for part in topic.partitions if len(part.isr_nodes) < len(part.replica_nodes)]
    if leaderless:
        what = f"partitions {leaderless} have no leader: nothing can be read or written there"
        fix = "start the brokers that hold them; `kafka-topics.sh --describe --unavailable-partitions` names these"
        yield Symptom(topic.name, Severity.FAILURE, what, fix)
    elif behind:
        fix = "start the brokers that are down; `kafka-topics.sh --describe --under-replicated-partitions` names these"
        yield Symptom(topic.name, Severity.WARNING, f"partitions {behind} have fewer copies in step than they should", fix)
    if _replicas(topic) < min(MOST_REPLICAS, count):
        what = f"has {_replicas(topic)} cop{'y' if _replicas(topic) == 1 else 'ies'} on {count} brokers: a lost disk loses it"
        fix = f"kafka-reassign-partitions.sh --bootstrap-server {address(brokers)}, with {MOST_REPLICAS} replicas each"
        yield Symptom(topic.name, Severity.WARNING, what, fix)


def _dangerous(brokers: tuple[str, ...], spec: TopicSpec, found: Mapping[str, str], replicas: int) -> Iterator[Symptom]:
    """Yield settings that lose data or stop a federation; what `TopicSpec` holds is told by `examine_specs`."""
    right = topic_settings(spec, replicas)
    harmful: dict[str, Callable[[str], bool]] = {
        "unclean.leader.election.enable": lambda value: value == "true",
        "min.insync.replicas": lambda value: int(value) < int(right["min.insync.replicas"]),
        "retention.bytes": lambda value: int(value) >= 0 and "delete" in found["cleanup.policy"],
        "max.message.bytes": lambda value: int(value) < int(EVERY_TOPIC["max.message.bytes"]),
    }
    loses = {
        "unclean.leader.election.enable": "a broker that lags may become the leader, and acknowledged records are gone",
        "min.insync.replicas": "records are acknowledged that one broker alone has",
        "retention.bytes": "the oldest records go when the topic is large",
        "max.message.bytes": "the largest records are refused",
    }
    for name, harms in harmful.items():
        if harms(found[name]):
            fix = alter(brokers, spec.name, name, right[name])
            yield Symptom(spec.name, Severity.FAILURE, f"has {name}={found[name]}: {loses[name]}", fix)


def _settings(client: KafkaClient, names: list[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    kind = DescribeConfigsRequest.DescribeConfigsResource
    resources = [kind(resource_type=_TOPIC, resource_name=name, configuration_keys=list(MUST_BE)) for name in names]
    request = DescribeConfigsRequest(resources=resources, include_synonyms=False, include_documentation=False)

    def attempt(left_s: float) -> dict[str, dict[str, str]]:
        found = {}
        for one in client.ask(request, None, left_s).results:
            check(one.error_code)
            found[one.resource_name] = {config.name: config.value for config in one.configs}
        return found

    return client.persist(attempt, "reading the topics' settings")


def _replicas(topic: Any) -> int:
    return min((len(part.replica_nodes) for part in topic.partitions), default=0)


def _pairs(settings: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in sorted(settings.items())]
