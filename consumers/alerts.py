"""Alerts: what a person should know, on a topic of its own."""

from __future__ import annotations

from refold.bus.clock import Clock
from refold.bus.contract import Bus
from refold.bus.topics import Topics, event_headers
from refold.consumers.consistency import printable
from refold.schemas.canonical import encode
from refold.schemas.checks import Alert


class Alerts:
    """Writes alerts; what cannot be written now is written with the next one."""

    def __init__(self, bus: Bus, topics: Topics, clock: Clock) -> None:
        self._topic = topics.alerts
        self._clock = clock
        self._producer = bus.producer()

    def raise_(self, subject: str, severity: str, what: str, advice: str, round_: int) -> None:
        """Write an alert: `what` happened, and what the reader can do."""
        now_ms = self._clock.wall_ms()
        alert = Alert(printable(subject, 200) or "unknown", severity, printable(what), printable(advice), round_, now_ms)
        headers = event_headers("Alert", source=self._topic, subject=alert.subject, identity="", time_ms=now_ms)
        self._producer.send(self._topic, encode(alert), key=alert.subject.encode(), headers=headers)
        self._producer.flush()

    def close(self) -> None:
        """Let go of the producer."""
        self._producer.close()
