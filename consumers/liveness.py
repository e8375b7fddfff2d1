"""Who is alive, and how long a round has waited for them: by the server's monotonic clock alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from refold.schemas.updates import Heartbeat

BEATS_MISSED = 5
"""A client that is silent for this many of its own intervals is no longer waited for."""

LEAST_SILENCE_S = 0.5


@dataclass(slots=True)
class Liveness:
    """When each client was last heard of; times are the server's, what a client claims of its clock counts for nothing."""

    _heard: dict[str, tuple[float, float]] = field(default_factory=dict)

    def beat(self, heartbeat: Heartbeat, interval_ms: int, now_s: float) -> None:
        """Take note of a heartbeat that was just read. The plan says how often they come, whatever the beat claims."""
        silence = max(LEAST_SILENCE_S, BEATS_MISSED * interval_ms / 1000)
        self._heard[heartbeat.client] = (now_s, silence)

    def left(self, client: str) -> None:
        """Take note that a client said farewell: it does not live until it is heard of again."""
        self._heard.pop(client, None)

    def heard(self, client: str, now_s: float) -> None:
        """Take note of any other sign of life."""
        _, silence = self._heard.get(client, (0.0, LEAST_SILENCE_S))
        self._heard[client] = (now_s, silence)

    def is_fresh(self, client: str, beats: int, now_s: float) -> bool:
        """Whether a client was heard of so few intervals ago."""
        at, silence = self._heard.get(client, (0.0, 0.0))
        return now_s - at < silence * beats / BEATS_MISSED

    def living(self, now_s: float) -> frozenset[str]:
        """Return the clients heard of lately; forget those silent for long."""
        self._heard = {c: (at, silence) for c, (at, silence) in self._heard.items() if now_s - at < 100 * silence}
        return frozenset(client for client, (at, silence) in self._heard.items() if now_s - at < silence)


@dataclass(slots=True)
class Deadline:
    """How long the open round has waited while enough clients were alive."""

    round: int = -1
    waited_s: float = 0.0
    extensions: int = 0
    _last_s: float = 0.0

    def tick(self, round_: int, enough: bool, now_s: float) -> float:
        """Move the time on and return how long the round has waited; time with too few living does not count."""
        if round_ != self.round:
            self.round, self.waited_s, self.extensions = round_, 0.0, 0
        elif enough:
            self.waited_s += max(0.0, now_s - self._last_s)
        self._last_s = now_s
        return self.waited_s

    def extend(self) -> None:
        """Begin the wait anew."""
        self.waited_s = 0.0
        self.extensions += 1
