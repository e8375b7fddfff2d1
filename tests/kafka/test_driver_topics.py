"""The Kafka driver: topics as they are made, addresses and URLs, and errors that help."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from refold.bus import TopicSpec, open_bus, parse_url
from refold.bus import _kafka_client as connections
from refold.bus._kafka_topics import topic_settings
from refold.bus.kafka import KafkaBus
from refold.schemas.errors import BusError, ConfigurationError, NotFoundError

pytestmark = pytest.mark.kafka

WAIT_S = 20.0


# -- topics ------------------------------------------------------------------------------------------------------------------


def test_topics_that_many_create_at_once_are_there_once(bus, kafka):
    specs = [TopicSpec(f"driver-{os.urandom(6).hex()}", partitions) for partitions in (1, 2, 3)]
    errors = []

    def create():
        try:
            with KafkaBus((kafka.bootstrap,)) as other:
                other.create_topics(specs)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [bus.topics()[spec.name] for spec in specs] == specs


@pytest.mark.parametrize(("compacted", "retention_s"), [(False, None), (True, None), (False, 60.0), (True, 60.0)])
def test_a_topic_gets_the_settings_that_keep_the_log(bus, topic, kafka, compacted, retention_s):
    from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

    name = topic(compacted=compacted, retention_s=retention_s)
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    try:
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])["topic"][name]
    finally:
        admin.close()
    wanted = topic_settings(TopicSpec(name, 1, compacted, retention_s), 1)
    assert {setting: found[setting]["value"] for setting in wanted} == wanted
    assert wanted["retention.ms"] == ("-1" if retention_s is None else "60000")


def test_more_copies_than_brokers_are_a_configuration_error(kafka):
    with (
        KafkaBus((kafka.bootstrap,), replication=9) as bus,
        pytest.raises(ConfigurationError, match="too few brokers") as raised,
    ):
        bus.create_topics([TopicSpec(f"driver-{os.urandom(6).hex()}")])
    assert "replication" in raised.value.hint


def test_fewer_copies_than_asked_for_are_a_configuration_error(bus, topic, kafka):
    spec = TopicSpec(topic())
    with KafkaBus((kafka.bootstrap,), replication=2) as other, pytest.raises(ConfigurationError, match="other settings"):
        other.create_topics([spec])


def test_an_unknown_topic_is_not_found_at_once(bus):
    began = time.monotonic()
    with bus.producer() as producer, pytest.raises(NotFoundError):
        producer.send("driver-nowhere", b"")
    assert time.monotonic() - began < 2


# -- opening -----------------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_address_without_a_broker_is_named_in_time(monkeypatch, capfd):
    monkeypatch.setattr(connections, "CONNECT_S", 1.0)
    port, began = free_port(), time.monotonic()
    with pytest.raises(BusError) as raised:
        open_bus(f"kafka://127.0.0.1:{port}/hospital")
    assert time.monotonic() - began < 4
    assert raised.value.exit_code == 69
    assert f"127.0.0.1:{port}" in str(raised.value)
    assert "start the broker" in raised.value.hint
    assert capfd.readouterr().err == ""


def test_something_else_at_the_address_is_named_in_time(monkeypatch):
    monkeypatch.setattr(connections, "CONNECT_S", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(BusError, match="no Kafka broker answered"):
            open_bus(f"kafka://127.0.0.1:{silent.getsockname()[1]}/hospital")
        assert time.monotonic() - began < 8


def test_one_address_that_never_answers_does_not_keep_the_others_from_being_asked(kafka):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for _ in range(3):  # The order is drawn.
            began = time.monotonic()
            with KafkaBus((f"127.0.0.1:{silent.getsockname()[1]}", kafka.bootstrap)) as bus:
                assert bus.topics() is not None
            assert time.monotonic() - began < 9


@pytest.mark.parametrize("url", ["kafka://host/x", "kafka://host:abc/x", "kafka://host:99999/x", "kafka://:9092/x"])
def test_an_address_without_a_host_or_a_port_is_told_at_once(url):
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        open_bus(url)


def test_without_crc32c_nothing_starts():
    program = "import sys; sys.modules['crc32c'] = None; from refold.bus import open_bus; open_bus('kafka://127.0.0.1:1/x')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ConfigurationError" in done.stderr
    assert "pip install 'kafka-python[crc32c]'" in done.stderr


@pytest.mark.parametrize(
    "url",
    ["kafka:host:1/x", "kafka://", "kafka:///x", "kafka://h:1,/x", "kafka://h:1/x?copies=3", "kafka://h:1/x?replication=none"],
)
def test_a_wrong_url_says_what_is_right(url):
    with pytest.raises(ConfigurationError, match="kafka://HOST:PORT"):
        parse_url(url)


def test_the_url_carries_brokers_federation_and_copies(kafka):
    parts = parse_url("kafka://a:1,b:2/north%20wing?replication=3")
    assert (parts.location, parts.federation, parts.replication) == ("a:1,b:2", "north wing", 3)
    with KafkaBus((kafka.bootstrap,), federation="north wing", replication=1) as bus:
        assert bus.url == f"kafka://{kafka.bootstrap}/north%20wing?replication=1"
        assert parse_url(bus.url).federation == "north wing"
