"""Heartbeats: a thread that says, at the plan's interval, that its client is alive and which round it holds."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace

from refold.bus.clock import Clock
from refold.bus.contract import Bus, Producer
from refold.bus.topics import Topics, event_headers
from refold.schemas.canonical import encode
from refold.schemas.errors import BusError, ConfigurationError, TryAgainError
from refold.schemas.keys import HEARTBEAT_TAG, SigningKey
from refold.schemas.plans import Settings
from refold.schemas.updates import Heartbeat, heartbeat_digest

log = logging.getLogger("refold.heartbeat")


@dataclass(slots=True)
class Vitals:
    """What a client last said of itself; assigned by its own thread, read by the heartbeat's."""

    session: tuple[int, bytes]
    activity: str = "waiting"
    round: int = 0
    parameters_digest: bytes = bytes(32)


class HeartbeatThread:
    """Beats until closed. A beat that cannot be sent is left out: the next one says as much.

    What no waiting mends (no right to write there) ends it, and is in `failure` for whoever works beside it.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        client: str,
        session: tuple[int, bytes],
        key: SigningKey,
        *,
        interval_s: float,
        properties: Settings,
        clock: Clock,
    ) -> None:
        self.vitals = Vitals(session)
        self._bus = bus
        self._topics = topics
        self._client = client
        self._key = key
        self._session = session
        self._interval_s = interval_s
        self._properties = properties
        self._clock = clock
        self._beat = 0
        self.failure: ConfigurationError | None = None
        encode(self._signed())  # Properties that no record can hold are refused here, not in the thread.
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"refold-heartbeat-{client}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        producer: Producer | None = None
        while not self._stop.is_set():
            try:
                producer = producer or self._bus.producer()
                self._send(producer)
            except (BusError, TryAgainError) as error:
                log.debug("a heartbeat was left out: %s", error)
                producer = None
            except ConfigurationError as error:
                self.failure = error
                return
            self._stop.wait(self._interval_s)
        if producer:
            producer.close()

    def _send(self, producer: Producer) -> None:
        beat = self._signed()
        self._beat += 1
        headers = event_headers(
            "Heartbeat",
            source=self._topics.health,
            subject=self._client,
            identity=str(beat.beat),
            time_ms=beat.client_time_ms,
        )
        producer.send(self._topics.health, encode(beat), key=self._client.encode(), headers=headers)
        producer.flush()

    def _signed(self) -> Heartbeat:
        beat = self._next()
        return replace(beat, signature=self._key.sign(HEARTBEAT_TAG, heartbeat_digest(beat)))

    def _next(self) -> Heartbeat:
        vitals = self.vitals
        if vitals.session != self._session:
            self._session, self._beat = vitals.session, 0
        return Heartbeat(
            self._topics.federation,
            self._client,
            *self._session,
            self._beat,
            int(self._interval_s * 1000),
            vitals.activity,
            vitals.round,
            vitals.parameters_digest,
            self._properties,
            self._clock.wall_ms(),
            self._key.key_id,
        )

    def close(self) -> None:
        """Stop beating."""
        self._stop.set()
        self._thread.join()
