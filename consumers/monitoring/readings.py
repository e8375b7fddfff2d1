"""What is measured of a node from one beat to the next: the server's own observations first, then what the node says.

A delay, a pause and a clock that was set look alike from afar: the beat comes, or seems to come, at the wrong time. Two
clocks tell them apart. With Δs the server's monotonic time between two arrivals, Δc what the node's clock moved between making
them and n the intervals between their numbers:

- on the way longer (network): Δs grows, Δc does not;
- made later (the node was stopped, or got no processor): Δs and Δc grow alike;
- clock set: Δc alone changes.

A node that forges its clock only accuses itself of the third.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

NAMES = ("pause", "delay", "latency", "lost", "throttled", "memory", "disk", "slowness", "loss", "errors")
PAUSE, DELAY, LATENCY, LOST, THROTTLED, MEMORY, DISK, SLOWNESS, LOSS, ERRORS = range(len(NAMES))
UNITS = {
    "pause": "s", "delay": "s", "latency": "ln s", "lost": "beats", "throttled": "share", "memory": "share", "disk": "share",
    "slowness": "ln s", "loss": "ln", "errors": "ln lines",
}  # fmt: skip
"""Every reading grows as things get worse, so that only one side of it is looked at."""

COURSE_SHARE = 0.3
LOSS_BEATS = 4
RATE_BEATS = 1
"""Progress is a rate over so many beats at most. A program that reports in large steps is jerky; its spread then shows it."""

QUICK_S = 0.02
"""Latencies well below this are all the same: nothing that a node does would notice."""
MOST = 1e9
"""What nodes say may be anything; beyond this it is this."""

Vector = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One beat, in the units of this package.

    Parameters
    ----------
    measures
        As in `refold.schemas.condition.MEASURES`; unknown names are not looked at.
    left_out
        Beats of this session that the node could not send.
    steps
        Batches done since the task began; None where nobody says.
    step_age_s
        How long ago the node's program said so.
    loss
        Its newest training loss; infinite where it was not finite.
    errors
        Lines of level error or worse since the node's log is watched; None without one.
    """

    client: str
    session: tuple[int, bytes]
    beat: int
    clock_s: float
    activity: str = ""
    round: int = 0
    measures: Mapping[str, float] = field(default_factory=dict)
    left_out: int = 0
    steps: float | None = None
    step_age_s: float = 0.0
    loss: float | None = None
    errors: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What lies between two beats of one session.

    Parameters
    ----------
    gap_s, ahead_s
        By the server's clock, and by the node's.
    planned_s
        What the plan has for so many beats.
    """

    gap_s: float
    ahead_s: float
    planned_s: float
    beats: int

    @property
    def shift_s(self) -> float:
        """How much more the server's clock moved than the node's: time on the way, or the node's clock set back."""
        return self.gap_s - self.ahead_s

    def clock_jump_s(self, clock_s: float) -> float:
        """Return how far the node's clock was set forward, or 0.0: it moved by that much, and the beat came as planned.

        Parameters
        ----------
        clock_s
            Smaller jumps are none.
        """
        jump = -self.shift_s
        came_as_planned = abs(self.gap_s - self.planned_s) < 0.5 * abs(jump)
        return jump if abs(jump) > clock_s and came_as_planned else 0.0


def step_between(before: Sample, after: Sample, gap_s: float, interval_s: float) -> Step | None:
    """Return what lies between two beats, or None if they are of different lives."""
    beats = after.beat - before.beat
    if before.session != after.session or beats < 1:
        return None
    return Step(gap_s, after.clock_s - before.clock_s, beats * interval_s, beats)


def readings(before: Sample, after: Sample, step: Step, rate: float | None, delay_s: float, lost: int, rise: float) -> Vector:
    """Return a node's readings in the order of `NAMES`; what is not known is nan.

    Parameters
    ----------
    rate
        Batches a second, as `Pace` has it.
    delay_s
        How much longer beats are on the way than the quickest that were seen.
    lost
        How many of the last beats are missing, as `Losses` has it.
    rise
        Of the training loss, as `Course` has it.
    """
    said = after.measures
    # Neither clock alone: a node whose own clock stood still while it was stopped shows in the server's, and a beat that waited
    # on the way shows in the delay, not here.
    # What it waited for the bus since the beat before is no pause: the next beat is planned from the acknowledgement on.
    late_s, latency_s = said.get("beat_lateness_s", 0.0), said.get("bus_latency_s")
    pause_s = max(0.0, late_s, min(step.gap_s, step.ahead_s) - step.planned_s - max(0.0, latency_s or 0.0))
    throttled = [said[name] for name in ("cpu_throttled_ratio", "cpu_stolen_ratio") if name in said]
    errors = None if after.errors is None or before.errors is None else max(0, after.errors - before.errors)
    found = (
        pause_s,
        max(0.0, delay_s),
        math.nan if latency_s is None else _log(latency_s + QUICK_S),
        float(lost),
        max(throttled) if throttled else math.nan,
        said.get("memory_used_ratio", math.nan),
        said.get("disk_used_ratio", math.nan),
        math.nan if rate is None else -_log(rate),
        rise,
        math.nan if errors is None else math.log1p(errors),
    )
    return tuple([value if -MOST <= value <= MOST else _bounded(value) for value in found])


def _bounded(value: float) -> float:
    return value if math.isnan(value) or value == math.inf else min(max(value, -MOST), MOST)


def _log(value: float) -> float:
    """Return the logarithm of what a node says, which may be anything."""
    return math.nan if math.isnan(value) else math.log(min(max(value, 1e-9), 1e9))


@dataclass(slots=True)
class Pace:
    """How fast a node gets on, of what its program says it has done."""

    _seen: list[tuple[float, float]] = field(default_factory=list)

    def rate(self, sample: Sample, now_s: float) -> float | None:
        """Return batches a second, or None where that is not known: nothing was said, or a task has just begun.

        Parameters
        ----------
        now_s
            The server's clock at arrival.
        """
        if sample.steps is None or sample.activity == "waiting":
            self._seen.clear()
            return None
        if self._seen and sample.steps < self._seen[-1][1]:
            self._seen.clear()  # Another task.
        self._seen.append((now_s, sample.steps))
        del self._seen[: -1 - RATE_BEATS]
        (from_s, first), (to_s, last) = self._seen[0], self._seen[-1]
        if len(self._seen) < 2 or to_s <= from_s:
            return None
        # None at all in this time: less than one, which is what can be said of it.
        return max(last - first, 0.5) / (to_s - from_s)


@dataclass(slots=True)
class Course:
    """How a training loss goes: it falls as training gets on, so that only its recent past says what is usual."""

    _usual: float | None = None
    _now: float | None = None

    def rise(self, loss: float | None) -> float:
        """Return how far a loss lies above the recent ones, as a logarithm of their ratio; nan where that is not known."""
        if loss is None or loss == math.inf:
            self._now = None
            return math.nan if loss is None else math.inf
        self._now = _log(loss + 1e-3)
        if self._usual is None:
            self._usual = self._now
        return self._now - self._usual

    def learn(self) -> None:
        """Take the last loss into what is usual."""
        if self._now is not None and self._usual is not None:
            self._usual += COURSE_SHARE * (self._now - self._usual)


@dataclass(slots=True)
class Losses:
    """How many beats are missing of the last few: numbers that were passed over, or as the node says."""

    _missing: deque[int] = field(default_factory=lambda: deque(maxlen=LOSS_BEATS))

    def missing(self, before: Sample, after: Sample, step: Step) -> int:
        """Return it for a beat that has come."""
        self._missing.append(max(step.beats - 1, min(after.left_out - before.left_out, 1000)))
        return sum(self._missing)


@dataclass(slots=True)
class Way:
    """How long beats are on the way beyond the quickest of the recent ones; clocks need not agree for that.

    Source: the idea of the clock filter in D. Mills, "Internet time synchronization", 1991: the least delay is the truest.
    """

    window: int
    _offsets: list[float] = field(default_factory=list)

    def delay_s(self, offset_s: float) -> float:
        """Return the delay of a beat whose arrival (our clock) minus making (the node's) is this."""
        self._offsets.append(offset_s)
        del self._offsets[: -self.window]
        return offset_s - min(self._offsets)

    def shift(self, seconds: float) -> None:
        """Take it that the node's clock was set forward by so much."""
        self._offsets = [offset - seconds for offset in self._offsets]

    def clear(self) -> None:
        """Begin anew: another life of the node."""
        self._offsets.clear()
