"""The launcher: brokers that answer, survive what is done to them, and are gone when their launcher is, however it went."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from refold.schemas.errors import BusError, ConfigurationError, UsageError
from refold.testing import eventually
from refold.testing.kafka import Cluster
from refold.testing.kafka.cluster import free_ports
from refold.testing.kafka.probe import brokers_known_to

pytestmark = pytest.mark.kafka

UP = [sys.executable, "-m", "refold.testing.kafka", "up"]
START_S = 120.0
QUICK_TO_NOTICE = {"broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "300"}


def new_topic(bootstrap: str, *, copies: int = 1) -> str:
    name = f"launcher-{os.getpid()}-{os.urandom(3).hex()}"
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(name, 1, copies)])
    admin.close()
    return name


def write(bootstrap: str, topic: str, *values: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    for value in values:
        producer.send(topic, value).get(30)
    producer.close()


def read(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    place = TopicPartition(topic, 0)
    consumer.assign([place])
    consumer.seek_to_beginning(place)
    found: list[bytes] = []

    def are_read() -> bool:
        found.extend(record.value for records in consumer.poll(100).values() for record in records)
        return len(found) >= count

    eventually(are_read, what=f"{count} records of {topic}")
    consumer.close()
    return found


def brokers_of(launcher: psutil.Process) -> list[psutil.Process]:
    """Return the Java processes that a launcher has started."""
    return [child for child in launcher.children() if "kafka.Kafka" in child.cmdline()]


@pytest.fixture
def launched(kafka_is_available: None, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """Yield a launcher's process with one broker, its URL, and the folder in which it makes temporary ones."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(UP, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert select.select([process.stdout], [], [], START_S)[0], "the launcher said nothing"
            yield process, process.stdout.readline().strip(), folder
        finally:
            process.kill()


def test_one_node_keeps_what_it_acknowledged_through_a_kill(kafka_is_available: None) -> None:
    with Cluster(settings=QUICK_TO_NOTICE) as cluster:
        topic = new_topic(cluster.bootstrap)
        write(cluster.bootstrap, topic, b"one", b"two")
        cluster.kill(1)
        assert brokers_known_to(cluster.ports[1]) == frozenset()
        cluster.start(1)
        write(cluster.bootstrap, topic, b"three")
        assert read(cluster.bootstrap, topic, 3) == [b"one", b"two", b"three"]
        assert cluster.log(1).count("Kafka Server started") == 2


@pytest.mark.slow
def test_three_nodes_go_on_without_one_and_take_it_back(kafka_cluster: Cluster) -> None:
    topic = new_topic(kafka_cluster.bootstrap, copies=3)
    write(kafka_cluster.bootstrap, topic, b"one")
    kafka_cluster.kill(2)
    write(kafka_cluster.bootstrap, topic, b"two")
    kafka_cluster.start(2)
    assert all(brokers_known_to(port) == {1, 2, 3} for port in kafka_cluster.ports.values())
    assert read(kafka_cluster.bootstrap, topic, 2) == [b"one", b"two"]


@pytest.mark.slow
def test_a_frozen_node_holds_its_connections_and_says_nothing_until_it_is_thawed(kafka_cluster: Cluster) -> None:
    port = kafka_cluster.ports[3]
    kafka_cluster.freeze(3)
    with socket.create_connection(("127.0.0.1", port), 1.0):
        assert brokers_known_to(port, timeout_s=0.5) == frozenset()
    kafka_cluster.thaw(3)
    eventually(lambda: brokers_known_to(port) == {1, 2, 3}, what="the thawed node's answer")


@pytest.mark.slow
def test_restore_brings_back_what_was_killed_and_what_was_frozen(kafka_cluster: Cluster) -> None:
    kafka_cluster.kill(1)
    kafka_cluster.freeze(2)
    kafka_cluster.restore()
    assert all(brokers_known_to(port) == {1, 2, 3} for port in kafka_cluster.ports.values())


def test_a_later_cluster_goes_on_with_the_data_of_an_earlier(kafka_is_available: None, tmp_path: Path) -> None:
    with Cluster(data=tmp_path) as first:
        topic = new_topic(first.bootstrap)
        write(first.bootstrap, topic, b"kept")
    with Cluster(data=tmp_path) as second:
        assert read(second.bootstrap, topic, 1) == [b"kept"]
    with pytest.raises(ConfigurationError, match="holds a cluster of 1 nodes"), Cluster(3, data=tmp_path):
        pass


def test_clients_are_told_the_ports_of_a_proxy() -> None:
    (proxy,) = free_ports(1)
    cluster = Cluster(advertised={1: proxy})
    assert cluster.bootstrap == f"127.0.0.1:{proxy}"
    told = cluster.settings(1, Path("data"))
    assert f"EXTERNAL://127.0.0.1:{proxy}," in told["advertised.listeners"]
    assert f"EXTERNAL://127.0.0.1:{cluster.ports[1]}," in told["listeners"]
    assert str(proxy) not in told["listeners"]


def test_a_setting_of_ones_own_takes_the_place_of_a_shared_one() -> None:
    told = Cluster(settings={"auto.create.topics.enable": "true", "log.cleaner.backoff.ms": "100"}).settings(1, Path("data"))
    assert (told["auto.create.topics.enable"], told["log.cleaner.backoff.ms"]) == ("true", "100")


def test_a_topic_that_nobody_made_is_not_made_by_its_name(kafka: Any) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    name = f"misspelt-{os.urandom(3).hex()}"
    admin.describe_topics([name])
    assert name not in admin.list_topics()
    admin.close()


def test_a_node_that_cannot_start_is_reported_with_the_end_of_its_log(kafka_is_available: None, tmp_path: Path) -> None:
    with (
        pytest.raises(BusError, match=r"Kafka node 1 .*its log ends:[\s\S]*log\.retention\.ms"),
        Cluster(settings={"log.retention.ms": "soon"}),
    ):
        pass


def test_only_one_or_three_nodes_make_a_cluster() -> None:
    with pytest.raises(UsageError, match="a cluster of 2 nodes"):
        Cluster(2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_its_url_and_leaves_nothing_when_it_is_told_to_stop(
    launched: tuple[subprocess.Popen[str], str, Path], number: signal.Signals
) -> None:
    process, url, folder = launched
    port = int(url.removeprefix("kafka://127.0.0.1:"))
    assert brokers_known_to(port) == {1}
    (broker,) = brokers_of(psutil.Process(process.pid))
    process.send_signal(number)
    assert process.wait(START_S) == 0
    assert not broker.is_running()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("state", ["awake", "frozen"])
def test_a_launcher_that_is_killed_leaves_no_broker_and_no_data(
    launched: tuple[subprocess.Popen[str], str, Path], state: str
) -> None:
    process, _, folder = launched
    (broker,) = brokers_of(psutil.Process(process.pid))
    if state == "frozen":
        broker.suspend()
    assert list(folder.iterdir())
    process.kill()
    eventually(lambda: not _is_alive(broker), what="the end of the broker")
    eventually(lambda: not list(folder.iterdir()), what="the end of its data")


def _is_alive(process: psutil.Process) -> bool:
    """Return whether a process does anything yet: a dead one that nobody has waited for does not."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
