"""Heartbeats: a thread that says, at the plan's interval, that its client is alive, which round it holds and how it is."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from refold.bus.clock import Clock
from refold.bus.contract import Bus, Producer
from refold.bus.topics import Topics, event_headers
from refold.producers.held_digest import Held
from refold.producers.reporting import BEAT_BYTES, Reporter
from refold.producers.tree_sender import TreeSender
from refold.schemas.canonical import encode
from refold.schemas.errors import BusError, ConfigurationError, TryAgainError
from refold.schemas.held import TrainingHeld
from refold.schemas.keys import HEARTBEAT_TAG, SigningKey
from refold.schemas.plans import Settings
from refold.schemas.updates import FAREWELL, WATCHING, Heartbeat, heartbeat_digest

log = logging.getLogger("refold.heartbeat")

FAREWELL_S = 2.0
"""How long a farewell waits at most for the bus to take it."""
CLOSE_S = 5.0
"""How long a close waits for the thread, which a bus that is away may hold up for longer; it then ends by itself."""

SIGNATURE_BYTES = 80
"""A signature, and what numbers of the bare beat may grow by."""


@dataclass(slots=True)
class Vitals:
    """What a client last said of itself; assigned by its own thread, read by the heartbeat's."""

    session: tuple[int, bytes]
    activity: str = "waiting"
    holds: tuple[int, bytes] = (0, bytes(32))
    """The round that it holds and the digest of its parameters by the log: one value, since another thread reads it."""

    held: Held | None = None
    """What is looked at for the digest that a beat tells; None while it is being changed."""

    training: TrainingHeld | None = None

    def shown(self) -> tuple[int, bytes]:
        """Return the round and digest of what is held, looked at where it can be."""
        held, expected = self.held, self.holds
        found = held.digest() if held is not None else b""
        # A state that was let go meanwhile may have been half changed when it was looked at.
        return (held.round, found) if held is not None and self.held is held else expected


@dataclass(frozen=True, slots=True)
class Letter:
    """One beat as it goes out: the record's type, whose it is, its number, and its bytes."""

    kind: str
    sender: str
    number: int
    time_ms: int
    value: bytes


class Beating(ABC):
    """A thread that beats until closed. A beat that cannot be sent is left out: the next one says as much.

    What no waiting mends (no right to write there) ends it, and is in `failure` for whoever works beside it.

    Parameters
    ----------
    folder
        On the file system whose room is told; without one no measures of the machine are.
    """

    def __init__(
        self, bus: Bus, topics: Topics, sender: str, *, interval_s: float, clock: Clock, folder: Path | None = None
    ) -> None:
        self.reporter = Reporter(clock, folder)
        self.failure: ConfigurationError | None = None
        self._bus = bus
        self._topics = topics
        self._interval_s = interval_s
        self._clock = clock
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._asking: list[threading.Event] = []
        self._thread = threading.Thread(target=self._run, name=f"refold-heartbeat-{sender}", daemon=True)

    @abstractmethod
    def _next(self, lateness_s: float) -> Letter:
        """Return the next beat, which has a number of its own even if it is never sent."""

    def _farewell(self) -> Letter | None:
        """Return the last beat of one that is closed in an orderly way, or None where nobody needs to know."""
        return None

    def _more(self) -> Iterable[Letter]:
        """Return what goes out behind the beat that was sent last."""
        return ()

    def beat_now(self, timeout_s: float) -> bool:
        """Beat without waiting for the interval to end; return whether the bus has taken that beat within this time."""
        told = threading.Event()
        self._asking.append(told)
        self._wake.set()
        return told.wait(timeout_s)

    def _run(self) -> None:
        producer: Producer | None = None
        planned_s = self._clock.monotonic_s()
        while not self._stop.is_set():
            self._wake.clear()
            asking, self._asking = self._asking, []
            try:
                producer = producer or self._bus.producer()
                self._send(producer, self._next(max(0.0, self._clock.monotonic_s() - planned_s)))
                for told in asking:
                    told.set()
                for letter in self._more():
                    self._send(producer, letter)
            except (BusError, TryAgainError) as error:
                log.debug("a heartbeat was left out: %s", error)
                self.reporter.lost()
                producer = None
            except ConfigurationError as error:
                log.warning("no more heartbeats: %s", error)
                self.failure = error
                return
            planned_s = self._clock.monotonic_s() + self._interval_s
            if not self._stop.is_set():  # A close that came before the event was cleared must not wait for the interval.
                self._wake.wait(self._interval_s)
        # Without a producer the bus did not take the last beat: a close does not wait for it to come back.
        if producer:
            self._take_leave(producer)
            producer.close()

    def _take_leave(self, producer: Producer) -> None:
        try:
            if letter := self._farewell():
                self._send(producer, letter, timeout_s=FAREWELL_S)
        except (BusError, TryAgainError, ConfigurationError) as error:
            log.debug("the farewell was left out: %s", error)

    def _send(self, producer: Producer, letter: Letter, *, timeout_s: float = 30.0) -> None:
        headers = event_headers(
            letter.kind,
            source=self._topics.health,
            subject=letter.sender,
            identity=str(letter.number),
            time_ms=letter.time_ms,
        )
        sent_s = self._clock.monotonic_s()
        producer.send(self._topics.health, letter.value, key=letter.sender.encode(), headers=headers)
        producer.flush(timeout_s)
        self.reporter.acknowledged(self._clock.monotonic_s() - sent_s)

    def close(self) -> None:
        """Stop beating, after a farewell where the bus takes it soon."""
        self._stop.set()
        self._wake.set()
        self._thread.join(CLOSE_S)
        self.reporter.close()


class HeartbeatThread(Beating):
    """Beats for a client, or (`activity` is `WATCHING`) for who watches its logs.

    `leaves_in_order` says whether it takes its leave when it is closed; who watches logs does not, since its client goes on.
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
        super().__init__(bus, topics, client, interval_s=interval_s, clock=clock, folder=folder)
        self.vitals = Vitals(session, activity)
        self.leaves_in_order = activity != WATCHING
        self._client = client
        self._key = key
        self._session = session
        self._properties = properties
        self._beat = 0
        self._last: Heartbeat | None = None
        self._trees = TreeSender(key)
        self._bare_bytes = len(encode(self._bare()))  # Properties that no record can hold are refused here, not in the thread.
        self._thread.start()

    def begin(self, activity: str) -> None:
        """Say what the client does from now on; what it said of its progress was of something else."""
        self.vitals.activity = activity
        self.reporter.forget_progress()

    def _next(self, lateness_s: float) -> Letter:
        bare = self._bare()
        self._beat += 1
        beat = replace(bare, condition=self.reporter.condition(lateness_s, BEAT_BYTES - SIGNATURE_BYTES - self._bare_bytes))
        beat = replace(beat, signature=self._key.sign(HEARTBEAT_TAG, heartbeat_digest(beat)))
        self._last = beat
        return Letter("Heartbeat", self._client, beat.beat, beat.client_time_ms, encode(beat))

    def _more(self) -> Iterator[Letter]:
        """Yield the tree of a state that has diverged."""
        assert self._last is not None
        tree = self._trees.due(self._last, self.vitals.held)
        if tree is not None:
            yield Letter("StateTree", self._client, tree.beat, self._clock.wall_ms(), encode(tree))

    def _farewell(self) -> Letter | None:
        if not self.leaves_in_order:
            return None
        self.vitals.activity, self.vitals.held = FAREWELL, None
        return self._next(0.0)

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
            *vitals.shown(),
            self._properties,
            self._clock.wall_ms(),
            self._key.key_id,
            training=vitals.training,
        )
