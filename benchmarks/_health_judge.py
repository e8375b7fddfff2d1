"""Who is compared in benchmarks/health.py, on the same traces: Refold's monitor, a fixed time-out, and fixed thresholds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from _health_faults import EXPECTED, Injection

from refold.consumers.monitoring.monitor import Monitor
from refold.consumers.monitoring.policy import HealthPolicy
from refold.consumers.monitoring.readings import Pace, Sample

TICK_S = 0.1
UNWELL = ("degraded", "suspect", "dead")
GRACE_BEATS = 6.0
"""How long after a fault's end what is said still counts to it: what is smoothed wears off."""


@dataclass(frozen=True, slots=True)
class Said:
    """A judge's word on a node."""

    at_s: float
    client: str
    state: str
    cause: str
    kind: str


Trace = Sequence[tuple[float, Sample]]


def replay(trace: Trace, take: Callable[[Sample, float], None], tick: Callable[[float], Iterable[Any]]) -> list[Said]:
    """Play a trace to a judge and return what it says."""
    found: list[Said] = []
    next_s = trace[0][0]
    for at_s, sample in trace:
        while next_s <= at_s:
            found += [Said(next_s, c.client, c.state, c.cause, c.kind) for c in tick(next_s)]
            next_s += TICK_S
        take(sample, at_s)
    return found


def of_monitor(trace: Trace, interval_s: float, policy: HealthPolicy | None = None) -> list[Said]:
    """Return what Refold's monitor says."""
    monitor = Monitor(policy or HealthPolicy(), interval_s)
    return replay(trace, monitor.take, monitor.tick)


@dataclass
class FixedTimeout:
    """What most do: a node that is silent for three intervals is dead, and that is all there is to say."""

    interval_s: float
    beats: float = 3.0
    _heard: dict[str, float] = field(default_factory=dict)
    _dead: set[str] = field(default_factory=set)

    def take(self, sample: Sample, at_s: float) -> None:
        """Take in a beat."""
        self._heard[sample.client] = at_s
        self._dead.discard(sample.client)

    def tick(self, now_s: float) -> Iterable[Said]:
        """Say who is dead."""
        for client, at_s in self._heard.items():
            if client not in self._dead and now_s - at_s > self.beats * self.interval_s:
                self._dead.add(client)
                yield Said(now_s, client, "dead", "node", "silent")


@dataclass
class FixedThresholds(FixedTimeout):
    """The time-out, and thresholds as one would set them by hand; each beat stands for itself."""

    _pace: dict[str, Pace] = field(default_factory=dict)
    _usual: dict[str, float] = field(default_factory=dict)
    _on: dict[str, str] = field(default_factory=dict)
    _waiting: list[tuple[str, str, str]] = field(default_factory=list)
    _offset: dict[str, float] = field(default_factory=dict)

    def take(self, sample: Sample, at_s: float) -> None:
        """Take in a beat."""
        super().take(sample, at_s)
        cause, kind = self._found(sample, at_s)
        if kind != self._on.get(sample.client, ""):
            self._waiting.append((sample.client, cause, kind))
        self._on[sample.client] = kind

    def _found(self, sample: Sample, at_s: float) -> tuple[str, str]:
        said = sample.measures
        rate = self._pace.setdefault(sample.client, Pace()).rate(sample, at_s)
        usual = self._usual.setdefault(sample.client, rate) if rate else None
        offset_s = self._offset.setdefault(sample.client, at_s - sample.clock_s)
        if said.get("memory_used_ratio", 0) > 0.9:
            return "node", "memory"
        if said.get("disk_used_ratio", 0) > 0.9:
            return "node", "disk"
        if said.get("cpu_throttled_ratio", 0) > 0.5 or said.get("beat_lateness_s", 0) > 0.5:
            return "node", "starved"
        if said.get("bus_latency_s", 0) > 0.5 or said.get("bus_loss_ratio", 0) > 0.1:
            return "network", "late"
        if abs(at_s - sample.clock_s - offset_s) > 5:
            return "node", "clock"
        if (sample.loss or 0) > 1.5:
            return "data", "loss"
        if rate and usual and rate < usual / 3:
            return "straggler", "slow"
        return "", ""

    def tick(self, now_s: float) -> Iterable[Said]:
        """Say what changed."""
        waiting, self._waiting = self._waiting, []
        for client, cause, kind in waiting:
            yield Said(now_s, client, "degraded" if kind else "healthy", cause, kind)
        yield from super().tick(now_s)


@dataclass(frozen=True, slots=True)
class Score:
    """How a judge did.

    Parameters
    ----------
    named
        Fault → how often its first word on it had which cause; "" where it said nothing.
    after_beats
        Time to the first word that the node is not well, in intervals, of faults that were seen.
    right_after_beats
        The same to the first word with the right cause.
    false_dead, false_alarms
        Words on nodes that nothing was done to, of `healthy_beats` node-intervals.
    """

    named: dict[str, Counter[str]]
    kinds: dict[str, Counter[str]]
    after_beats: list[float]
    right_after_beats: list[float]
    false_dead: int
    false_alarms: int
    healthy_beats: float

    @property
    def right(self) -> float:
        """Share of all faults whose first word named the right cause."""
        all_ = sum(sum(counter.values()) for counter in self.named.values())
        return sum(self.named[fault][EXPECTED[fault]] for fault in self.named) / max(all_, 1)

    def detected(self, share: float) -> float:
        """Return a percentile of the time until a node was called unwell, in intervals; those never seen count as infinite.

        By nearest rank: the least time within which so many were seen.
        """
        return self._percentile(self.after_beats, share)

    def named_right(self, share: float) -> float:
        """Return the same of the time to the right cause."""
        return self._percentile(self.right_after_beats, share)

    def _percentile(self, after: Sequence[float], share: float) -> float:
        all_ = sum(sum(counter.values()) for counter in self.named.values())
        values = sorted(after) + [math.inf] * (all_ - len(after))
        return values[max(0, math.ceil(share * len(values)) - 1)] if values else math.inf


def score(
    said: Sequence[Said], done: Sequence[Injection], interval_s: float, clients: int, span_s: tuple[float, float]
) -> Score:
    """Hold what a judge said against what was done."""
    named: dict[str, Counter[str]] = {fault: Counter() for fault in EXPECTED}
    which: dict[str, Counter[str]] = {fault: Counter() for fault in EXPECTED}
    after, right_after = [], []
    explained: set[int] = set()
    for one in done:
        window = [
            (number, word)
            for number, word in enumerate(said)
            if word.client == one.client and one.from_s <= word.at_s <= one.until_s + GRACE_BEATS * interval_s
        ]
        explained.update(number for number, _ in window)
        during = [word for _, word in window if word.cause and word.at_s <= one.until_s]
        first = during[0] if during else None
        named[one.fault][first.cause if first else ""] += 1
        which[one.fault][first.kind if first else ""] += 1
        seen = next((word for _, word in window if word.state in UNWELL and word.at_s <= one.until_s), None)
        if seen:
            after.append((seen.at_s - one.from_s) / interval_s)
        fit = next((word for word in during if word.cause == EXPECTED[one.fault]), None)
        if fit:
            right_after.append((fit.at_s - one.from_s) / interval_s)
    hurt_s = sum(one.until_s - one.from_s + GRACE_BEATS * interval_s for one in done)
    healthy = (clients * (span_s[1] - span_s[0]) - hurt_s) / interval_s
    false = [word for number, word in enumerate(said) if number not in explained and word.state in UNWELL]
    dead = sum(word.state == "dead" for word in false)
    return Score(named, which, after, right_after, dead, len(false), healthy)
