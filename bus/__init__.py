"""The message bus: topics, partitions, offsets and consumer groups in Kafka's terms, on drivers that all behave alike.

`contract` says what every bus does. `open_bus` opens one by its URL::

    with open_bus("sqlite:hospital.db") as bus:
        bus.create_topics([TopicSpec("hospital.updates", partitions=4)])
        with bus.producer() as producer:
            producer.send("hospital.updates", b"...", key=b"ward-7")
"""

from __future__ import annotations

from refold.bus._url import BusUrl, parse_url
from refold.bus.contract import (
    MAX_RECORD_BYTES,
    Bus,
    Committed,
    Consumer,
    Delivery,
    Headers,
    Listener,
    Place,
    Producer,
    Record,
    TopicSpec,
    partition_for,
)
from refold.bus.security import KafkaSecurity

__all__ = [
    "MAX_RECORD_BYTES",
    "Bus",
    "BusUrl",
    "Committed",
    "Consumer",
    "Delivery",
    "Headers",
    "KafkaSecurity",
    "Listener",
    "Place",
    "Producer",
    "Record",
    "TopicSpec",
    "open_bus",
    "parse_url",
    "partition_for",
]


def open_bus(url: str, *, create: bool = True, security: KafkaSecurity | None = None) -> Bus:
    """Open the bus that `url` names.

    Parameters
    ----------
    create
        Make an embedded bus's file if it is not there; otherwise NotFoundError.
    security
        How a Kafka cluster is spoken to; if None, as ``REFOLD_KAFKA_*`` says in the environment. Other buses need none.

    Raises
    ------
    ConfigurationError
        The URL is wrong, or what it names is not a bus.
    """
    parts = parse_url(url)
    # Drivers are imported on use, so that a client without Kafka never loads kafka-python.
    if parts.scheme == "sqlite":
        from refold.bus.sqlite import SqliteBus

        return SqliteBus(parts.location, federation=parts.federation, create=create)
    if parts.scheme == "memory":
        from refold.bus.memory import MemoryBus

        return MemoryBus(parts.location or None)
    from refold.bus.kafka import open_kafka

    return open_kafka(parts, security)
