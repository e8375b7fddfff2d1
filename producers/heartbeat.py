"""Heartbeats: a thread that says, at the plan's interval, that its client is alive, which round it holds and how it is."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from refold.bus.clock import Clock
from refold.bus.contract import Bus, Producer
from refold.bus.topics import Topics, event_headers
from refold.producers.reporting import BEAT_BYTES, Reporter
from refold.schemas.canonical import encode
from refold.schemas.errors import BusError, ConfigurationError, TryAgainError
from refold.schemas.keys import HEARTBEAT_TAG, SigningKey
from refold.schemas.plans import Settings
from refold.schemas.updates import Heartbeat, heartbeat_digest

log = logging.getLogger("refold.heartbeat")

SIGNATURE_BYTES = 80
"""A signature, and what numbers of the bare beat may grow by."""


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

    Parameters
    ----------
    folder
        On the file system whose room is told; without one no measures of the machine are.
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
        folder: Path | None = None,
        activity: str = "waiting",
    ) -> None:
        self.vitals = Vitals(session, activity)
        self.reporter = Reporter(clock, folder)
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
        self._bare_bytes = len(encode(self._bare()))  # Properties that no record can hold are refused here, not in the thread.
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"refold-heartbeat-{client}", daemon=True)
        self._thread.start()

    def begin(self, activity: str) -> None:
        """Say what the client does from now on; what it said of its progress was of something else."""
        self.vitals.activity = activity
        self.reporter.forget_progress()

    def _run(self) -> None:
        producer: Producer | None = None
        planned_s = self._clock.monotonic_s()
        while not self._stop.is_set():
            try:
                producer = producer or self._bus.producer()
                self._send(producer, self._clock.monotonic_s() - planned_s)
            except (BusError, TryAgainError) as error:
                log.debug("a heartbeat was left out: %s", error)
                self.reporter.lost()
                producer = None
            except ConfigurationError as error:
                self.failure = error
                return
            planned_s = self._clock.monotonic_s() + self._interval_s
            self._stop.wait(self._interval_s)
        if producer:
            producer.close()

    def _send(self, producer: Producer, lateness_s: float) -> None:
        beat = self._signed(lateness_s)
        self._beat += 1
        headers = event_headers(
            "Heartbeat",
            source=self._topics.health,
            subject=self._client,
            identity=str(beat.beat),
            time_ms=beat.client_time_ms,
        )
        value, sent_s = encode(beat), self._clock.monotonic_s()
        producer.send(self._topics.health, value, key=self._client.encode(), headers=headers)
        producer.flush()
        self.reporter.acknowledged(self._clock.monotonic_s() - sent_s)

    def _signed(self, lateness_s: float) -> Heartbeat:
        bare = self._bare()
        beat = replace(bare, condition=self.reporter.condition(lateness_s, BEAT_BYTES - SIGNATURE_BYTES - self._bare_bytes))
        return replace(beat, signature=self._key.sign(HEARTBEAT_TAG, heartbeat_digest(beat)))

    def _bare(self) -> Heartbeat:
        vitals = self.vitals
        if vitals.session != self._session:
            self._session, self._beat = vitals.session, 0
            self.reporter.begin_session()
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
        self.reporter.close()
