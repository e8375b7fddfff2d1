"""Alerts: what a person should know, on a topic of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

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

    def raise_(self, subject: str, severity: str, what: str, advice: str, round_: int, *, kind: str = "") -> None:
        """Write an alert: `what` happened, and what the reader can do.

        Parameters
        ----------
        kind
            A heading of docs/OPERATIONS.md, which says more.
        """
        alert = Alert(subject, severity, what, advice, round_, self._clock.wall_ms(), kind)
        self.write([alert])

    def write(self, alerts: Iterable[Alert]) -> None:
        """Write alerts, made safe to print, and return once they are durable."""
        for alert in alerts:
            self._send(replace(alert, **_printable(alert)))
        self._producer.flush()

    def _send(self, alert: Alert) -> None:
        now_ms = alert.time_ms
        headers = event_headers("Alert", source=self._topic, subject=alert.subject, identity="", time_ms=now_ms)
        self._producer.send(self._topic, encode(alert), key=alert.subject.encode(), headers=headers)

    def close(self) -> None:
        """Let go of the producer."""
        self._producer.close()


def _printable(alert: Alert) -> dict[str, Any]:
    subject = printable(alert.subject, 200) or "unknown"
    return {"subject": subject, "what": printable(alert.what), "advice": printable(alert.advice)}
