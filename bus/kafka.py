"""The bus on a Kafka cluster: ``kafka://HOST:PORT[,HOST:PORT…]/FEDERATION[?replication=N]``.

How the driver is built, from below:

- `_kafka_client` makes connections (kafka-python's) and waits for answers, each with a bound;
- `_kafka_batches` reads and writes record batches within bounds;
- `_kafka_places` and `_kafka_topics` ask about partitions, groups and topics;
- `_kafka_producer` sends; `_kafka_fetching`, `_kafka_group` and `_kafka_consumer` read and share the work.

Each producer and each consumer has connections of its own and a network thread, so that none waits behind another; the bus's
own questions share one. No transactions are used: what the log means is decided by its hash chain, and positions live in it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Self
from urllib.parse import quote

from refold.bus._kafka_client import KafkaClient, close_with
from refold.bus._kafka_consumer import KafkaConsumer, KafkaLog
from refold.bus._kafka_examination import examine_cluster, not_seen, remedy, unseen
from refold.bus._kafka_places import EARLIEST, LATEST, delete_before, end_at, offset_at, stored_positions
from refold.bus._kafka_producer import KafkaProducer
from refold.bus._kafka_topics import Specs, all_topics, create_topics
from refold.bus._store import check_deletable, check_place, check_specs
from refold.bus._url import BusUrl
from refold.bus.contract import Committed, Place, TopicSpec
from refold.bus.examination import examine_specs
from refold.bus.security import KafkaSecurity
from refold.bus.symptoms import Symptom
from refold.schemas.errors import ConfigurationError, UsageError

log = logging.getLogger("refold.bus")

UNENCRYPTED = (
    "{user} signs in without TLS (tls=false): whoever is on the way can read {what}, and change it; "
    "leave tls=false out where the brokers have a port with TLS"
)


def open_kafka(parts: BusUrl, security: KafkaSecurity | None = None) -> KafkaBus:
    """Open the cluster that a bus URL names, as `security` or, without it, the environment says.

    Raises
    ------
    ConfigurationError
        The package ``crc32c`` lacks: without it kafka-python computes checksums at 7 MB/s, and Refold not at all. Or the
        security settings are wrong, or not those of the cluster.
    BusError
        No broker answers.
    """
    security = security or KafkaSecurity.from_environment()
    if security.user is not None and not security.is_encrypted:
        log.warning("%s", UNENCRYPTED.format(user=security.user, what=_what_is_read(security)))
    return KafkaBus(
        tuple(parts.location.split(",")),
        federation=parts.federation,
        replication=parts.replication,
        security=security,
    )


def _what_is_read(security: KafkaSecurity) -> str:
    return "its password and all that is sent" if security.mechanism == "PLAIN" else "all that is sent"


class KafkaBus:
    """A bus on a Kafka cluster. Thread-safe.

    Parameters
    ----------
    brokers
        ``HOST:PORT`` of one or more; the others are found.
    replication
        Copies of each partition of the topics it makes; None means three, or one per broker where there are fewer.
    security
        How the brokers are spoken to; without encryption or account if None.
    wall
        Seconds, for timestamps.
    topic_settings
        Settings of the topics it makes that differ from Refold's, for tests of cleaning.
    """

    def __init__(
        self,
        brokers: tuple[str, ...],
        *,
        federation: str | None = None,
        replication: int | None = None,
        security: KafkaSecurity | None = None,
        wall: Callable[[], float] = time.time,
        topic_settings: dict[str, str] | None = None,
    ) -> None:
        self._brokers = brokers
        self._federation = federation
        self._replication = replication
        self._security = security or KafkaSecurity()
        self._wall = wall
        self._topic_settings = topic_settings or {}
        self._specs = Specs()
        self._client = self._connect()
        # Who drops a bus without closing it loses its connections and their thread with it.
        close_with(self, self._client)
        self._closed = False
        self._creating = threading.Lock()

    @property
    def url(self) -> str:
        """The URL that opens it again, with the same security settings: they are in no URL."""
        replication = f"?replication={self._replication}" if self._replication else ""
        return f"kafka://{','.join(self._brokers)}/{quote(self._federation or '', safe='')}{replication}"

    def _connect(self) -> KafkaClient:
        return KafkaClient(self._brokers, self._security)

    def create_topics(self, specs: Iterable[TopicSpec]) -> None:
        """Create what is not there. Idempotent; topics that are refused keep those beside them from being made."""
        client = self._open_client()
        with self._creating:
            self._specs.forget()
            wanted = list(specs)
            missing = check_specs(wanted, self._specs.all(client))
            self._check_replication(client, wanted)
            if missing:
                create_topics(client, missing, self._replication, self._topic_settings)

    def _check_replication(self, client: KafkaClient, specs: list[TopicSpec]) -> None:
        if self._replication is None:
            return
        present = all_topics(client)
        for spec in specs:
            copies = present.get(spec.name, (0, self._replication))[1]
            if copies < self._replication:
                hint = f"it has {copies} copies; add some with kafka-reassign-partitions.sh, or ask for {copies} in the bus URL"
                raise ConfigurationError(
                    "A topic exists with other settings", topic=spec.name, replication=self._replication, hint=hint
                )

    def topics(self) -> dict[str, TopicSpec]:
        """All topics by name, Kafka's own excepted."""
        return self._specs.all(self._open_client())

    def producer(self, *, max_in_flight_bytes: int = 16 << 20) -> KafkaProducer:
        """Open a producer, with connections of its own."""
        self._open_client()
        client = self._connect()
        try:
            return KafkaProducer(client, self._specs, max_in_flight_bytes, self._wall)
        except BaseException:
            client.close()
            raise

    def consumer(
        self,
        *,
        group: str | None = None,
        instance: str | None = None,
        max_in_flight_bytes: int = 16 << 20,
        session_timeout_s: float = 10.0,
    ) -> KafkaConsumer:
        """Open a consumer, with connections of its own."""
        self._open_client()
        log = KafkaLog(self._connect(), self._specs)
        try:
            return KafkaConsumer(log, group, instance, max_in_flight_bytes, session_timeout_s)
        except BaseException:
            log.close()
            raise

    def begin_offset(self, place: Place) -> int:
        """First offset that still exists, or the end."""
        return offset_at(*self._checked(place), EARLIEST)

    def end_offset(self, place: Place) -> int:
        """Offset that the next record will get at the earliest."""
        client, place = self._checked(place)
        return end_at(client, place, self._specs.acknowledged(place))

    def offset_for_time(self, place: Place, timestamp_ms: int) -> int | None:
        """First offset whose record has this timestamp or a later one."""
        found = offset_at(*self._checked(place), max(0, timestamp_ms))
        return None if found < 0 else found

    def delete_records(self, place: Place, before_offset: int) -> None:
        """Delete every record below `before_offset`, or all there are."""
        client, place = self._checked(place)
        check_deletable(self._specs.get(client, place.topic))
        delete_before(client, place, min(before_offset, offset_at(client, place, LATEST)))

    def committed(self, group: str, place: Place) -> Committed | None:
        """The group's stored position, or None."""
        return stored_positions(self._open_client(), group, place).get(place)

    def lag(self, group: str) -> dict[Place, int]:
        """End offset − stored next offset, for each place where the group stored a position."""
        client = self._open_client()
        stored = stored_positions(client, group)
        return {place: offset_at(client, place, LATEST) - stored[place].next_offset for place in sorted(stored)}

    def examine(self, specs: Iterable[TopicSpec], *, thorough: bool = False) -> list[Symptom]:
        """Look at the brokers, their versions, and the topics' settings and copies."""
        wanted = list(specs)
        client = self._open_client()
        self._specs.forget()
        hidden = set(unseen(client, wanted))
        seen = [spec for spec in wanted if spec.name not in hidden]
        found = [not_seen(name, client.account) for name in sorted(hidden)]
        return [*examine_cluster(client, seen), *examine_specs(seen, self.topics(), remedy(self._brokers)), *found]

    def _checked(self, place: Place) -> tuple[KafkaClient, Place]:
        client = self._open_client()
        return client, check_place(self._specs.get(client, place.topic), place.partition)

    def _open_client(self) -> KafkaClient:
        if self._closed:
            raise UsageError("the bus is closed")
        return self._client

    def close(self) -> None:
        """Let go. Producers and consumers that are open stay usable. Idempotent."""
        if not self._closed:
            self._closed = True
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
