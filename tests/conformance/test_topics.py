"""Topics, names, URLs."""

from __future__ import annotations

import pytest

from refold.bus import Place, TopicSpec, open_bus
from refold.schemas.errors import ConfigurationError, NotFoundError, UsageError


def test_creating_a_topic_twice_changes_nothing(driver, bus):
    topic = driver.topic(bus, partitions=3)
    with bus.producer() as producer:
        producer.send(topic, b"kept")
    bus.create_topics([TopicSpec(topic, 3)])
    assert bus.topics()[topic] == TopicSpec(topic, 3)
    assert bus.end_offset(Place(topic, 0)) == 1


@pytest.mark.parametrize(
    "other", [{"partitions": 3}, {"compacted": True}, {"retention_s": 60.0}], ids=lambda it: next(iter(it))
)
def test_a_topic_with_other_settings_is_a_configuration_error(driver, bus, other):
    topic = driver.topic(bus, partitions=2)
    settings = {"partitions": 2, "compacted": False, "retention_s": None} | other
    with pytest.raises(ConfigurationError, match="other settings"):
        bus.create_topics([TopicSpec(topic, **settings)])


def test_a_refused_topic_keeps_those_beside_it_from_being_made(driver, bus):
    topic = driver.topic(bus)
    with pytest.raises(ConfigurationError):
        bus.create_topics([TopicSpec(f"{topic}-new"), TopicSpec(topic, 9)])
    assert f"{topic}-new" not in bus.topics()


def test_all_settings_come_back(driver, bus):
    topic = driver.topic(bus, partitions=4, compacted=True, retention_s=3600.0)
    assert bus.topics()[topic] == TopicSpec(topic, 4, True, 3600.0)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "x" * 250])
def test_names_that_kafka_refuses_are_configuration_errors(bus, name):
    with pytest.raises(ConfigurationError):
        bus.create_topics([TopicSpec(name)])


def test_a_topic_needs_a_partition(bus):
    with pytest.raises(ConfigurationError):
        bus.create_topics([TopicSpec("suite.none", 0)])


def test_unknown_topics_are_not_found(bus):
    place = Place("suite.nowhere", 0)
    with bus.producer() as producer, bus.consumer(group="suite.unknown") as consumer:
        for attempt in (
            lambda: producer.send(place.topic, b""),
            lambda: consumer.assign([place]),
            lambda: consumer.subscribe([place.topic]),
            lambda: bus.begin_offset(place),
            lambda: bus.end_offset(place),
            lambda: bus.offset_for_time(place, 0),
            lambda: bus.delete_records(place, 1),
        ):
            with pytest.raises(NotFoundError):
                attempt()


def test_unknown_partitions_are_usage_errors(driver, bus):
    topic = driver.topic(bus, partitions=2)
    with bus.producer() as producer, bus.consumer() as consumer:
        for partition in (-1, 2):
            with pytest.raises(UsageError):
                producer.send(topic, b"", partition=partition)
            with pytest.raises(UsageError):
                consumer.assign([Place(topic, partition)])
            with pytest.raises(UsageError):
                bus.end_offset(Place(topic, partition))


def test_a_compacted_topic_takes_no_record_without_a_key(driver, bus):
    topic = driver.topic(bus, compacted=True)
    with bus.producer() as producer, pytest.raises(UsageError, match="key"):
        producer.send(topic, b"value")


def test_records_of_a_compacted_topic_cannot_be_deleted_by_offset(driver, bus):
    topic = driver.topic(bus, compacted=True)
    with pytest.raises(UsageError, match="tombstones"):
        bus.delete_records(Place(topic, 0), 0)


def test_another_handle_sees_new_topics(driver, bus):
    other = driver.open()
    other.topics()
    topic = driver.topic(bus)
    assert topic in other.topics()
    assert other.end_offset(Place(topic, 0)) == 0


def test_the_url_opens_the_same_bus(driver, bus):
    topic = driver.topic(bus)
    with bus.producer() as producer:
        producer.send(topic, b"here")
    with open_bus(bus.url) as again:
        assert again.url == bus.url
        assert again.end_offset(Place(topic, 0)) == 1


def test_a_closed_bus_says_so(driver):
    bus = driver.open()
    bus.close()
    bus.close()
    with pytest.raises(UsageError):
        bus.topics()
