"""Delivering alerts to where people look: a webhook, a command, or both. At least once, in order, without holding anything up.

It is a member of its own, in a thread of its own: however slow the other end is, nothing but the next alert waits for it. An
alert that cannot be delivered after a few attempts is given up, counted and logged; it stays in `alerts`, where every attached
consumer finds it too.
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Protocol
from urllib.parse import urlsplit

from refold.bus.contract import Bus
from refold.bus.topics import Topics
from refold.consumers.attached import NOW, Context, Subscription
from refold.schemas.checks import Alert
from refold.schemas.errors import UsageError

log = logging.getLogger("refold.delivery")

NAME = "alert-delivery"
PAUSES_S = (0.5, 2.0)
"""Before the second attempt and the third."""
LEAST = {"info": 0, "warning": 1, "error": 2}


class Sink(Protocol):
    """Somewhere that takes alerts."""

    @property
    def name(self) -> str:
        """What it is called in logs; no secret is in it."""
        ...

    def deliver(self, alert: dict[str, Any]) -> None:
        """Take one alert; raise OSError, HTTPException, or what `subprocess` raises, where it could not."""
        ...


@dataclass(frozen=True, slots=True)
class Webhook:
    """An HTTP(S) address to which each alert is posted as JSON. It is not followed to other addresses."""

    url: str
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("a webhook is an http or https address", hint="for example https://alerts.example.org/refold")

    @property
    def name(self) -> str:
        """Scheme and host; the path often holds a secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}"

    def deliver(self, alert: dict[str, Any]) -> None:
        """Post an alert; anything but 2xx is a failure."""
        headers = {"Content-Type": "application/json", "User-Agent": "refold"}
        request = urllib.request.Request(self.url, json.dumps(alert).encode(), headers, method="POST")
        with _opener.open(request, timeout=self.timeout_s) as answer:
            answer.read(1)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)


@dataclass(frozen=True, slots=True)
class Command:
    """A program that is run for each alert, which it reads from its standard input as JSON. No shell takes part."""

    words: tuple[str, ...]
    timeout_s: float = 30.0

    @classmethod
    def of(cls, text: str) -> Command:
        """Return the command of a line of words."""
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise UsageError(f"no command: {error}") from error
        if not words:
            raise UsageError("an alert command has at least one word")
        return cls(words)

    @property
    def name(self) -> str:
        """The program."""
        return self.words[0]

    def deliver(self, alert: dict[str, Any]) -> None:
        """Run the program; a non-zero exit code is a failure, and so is one that does not end."""
        subprocess.run(
            self.words,
            input=json.dumps(alert).encode(),
            timeout=self.timeout_s,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


class Courier:
    """Carries alerts from their topic to sinks. Several servers share the work."""

    name = "delivery"

    def __init__(self, bus: Bus, topics: Topics, sinks: Sequence[Sink], *, pause: Callable[[float], None] = time.sleep) -> None:
        self._sinks = tuple(sinks)
        self._pause = pause
        self._federation = topics.federation
        self._subscription = Subscription(bus, topics, NAME, topic="alerts", start=NOW)
        self.delivered = 0
        self.given_up = 0

    def step(self, timeout_s: float) -> bool:
        """Deliver what is new; return whether there was anything."""
        found = self._subscription.poll(timeout_s)
        for alert, context in found:
            if isinstance(alert, Alert):
                self._carry(alert_json(alert, self._federation, context))
        self._subscription.acknowledge()
        return bool(found)

    def _carry(self, alert: dict[str, Any]) -> None:
        for sink in self._sinks:
            for pause_s in (*PAUSES_S, None):
                try:
                    sink.deliver(alert)
                    self.delivered += 1
                    break
                except (OSError, HTTPException, subprocess.SubprocessError) as error:
                    if pause_s is None:
                        self.given_up += 1
                        log.warning("an alert could not be delivered to %s: %s", sink.name, type(error).__name__)
                    else:
                        self._pause(pause_s)

    def close(self) -> None:
        """Leave the work to others."""
        self._subscription.close()


def alert_json(alert: Alert, federation: str, context: Context) -> dict[str, Any]:
    """Return an alert as an object; partition and offset tell a repeat."""
    names = ("subject", "severity", "kind", "cause", "state", "what", "advice", "round", "time_ms")
    found = {name: getattr(alert, name) for name in names}
    evidence = dict(alert.evidence)
    return {"federation": federation, **found, "evidence": evidence, "id": f"{context.partition}/{context.offset}"}
