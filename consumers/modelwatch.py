"""Is the model getting worse? Decided from what clients report of it, round by round: a fold over `accepted`.

Each round's reading is the median over clients of one metric of the parent's model, so that a minority that lies moves it
little. Noise is learnt from the readings themselves: the median absolute difference of neighbours, which sampling of clients,
small test sets and training's own unrest all go into. Two tests, of which each must be beyond noise and large enough to matter:

- **collapse**: one reading lies far beyond its predecessors' median, and most clients that reported before saw it get worse;
- **decline**: a cumulative sum of how far readings lie behind the best that the model held. Source: Page, Continuous inspection
  schemes, 1954; the reference is robust, as in Hawkins, Robustification of cumulative sum charts, 1993.

A third needs no statistics: most clients say that a metric is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from refold.schemas.updates import UNTOLD

NOT_FINITE, COLLAPSE, DECLINE, DIGEST = "not-finite", "collapse", "decline", "digest"
LEAST_READINGS = 8
"""Readings before anything is decided: noise is not known before."""
WINDOW = 5
NOISE_WINDOW = 24
SUDDEN, SLACK, LIMIT, MOST_STEP = 10.0, 1.0, 12.0, 4.0
"""Collapse: so many deviations behind the last readings. Decline: deviations behind the best that are forgiven each round, the
sum at which it is called, and the most that one round adds, so that one outlier is no decline."""
WORSE_SHARE = 2 / 3

GOOD_WHEN_HIGH = ("accuracy", "acc", "auc", "f1", "score")
LEAST_LOSS = {"collapse": 0.10, "decline": 0.04}
"""Of a metric in 0 … 1: what it must have lost besides. Of a loss, half and a sixth of what it was."""
LOSS_GROWTH = {"collapse": 1.5, "decline": 1.17}


@dataclass(frozen=True, slots=True)
class Reading:
    """What was reported of a round's model.

    Parameters
    ----------
    value
        The higher, the worse; a metric that is good when high has its sign turned.
    worse_share
        Of the clients that also reported of the reading before, how many saw it get worse; NaN where none did.
    """

    round: int
    value: float
    clients: int
    worse_share: float


@dataclass(frozen=True, slots=True)
class Alarm:
    """What is wrong with the model, with the round whose model showed it and the last round that was good."""

    cause: str
    round: int
    last_good: int
    evidence: str


@dataclass(slots=True)
class ModelWatch:
    """The readings on the branch of the newest round, and what they say.

    Parameters
    ----------
    metric
        Which one to follow; "" follows the first of accuracy and its like that clients report, else the loss.
    """

    metric: str = ""
    readings: list[Reading] = field(default_factory=list)
    alarm: Alarm | None = None
    _open: dict[str, Mapping[str, float]] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)
    _sum: float = 0.0
    _good: int = 0
    _chosen: str = ""

    @property
    def last_good(self) -> int:
        """The newest round whose reading was found good, or taken before anything is decided."""
        return self._good

    def report(self, client: str, metrics: Mapping[str, float]) -> None:
        """Take what a client says of the model that the open round is built on; what it says of an evaluation comes first."""
        if metrics:
            self._open.setdefault(client, metrics)

    def close(self, base: int) -> None:
        """Take note that a round closed: what was reported of its parent is a reading."""
        told, self._open = self._open, {}
        if not told:
            return
        untold = [client for client, metrics in told.items() if metrics.get(UNTOLD)]
        if 2 * len(untold) > len(told):
            evidence = f"{len(untold)} of {len(told)} clients say that a metric of round {base} is not finite"
            self.alarm = Alarm(NOT_FINITE, base, self._good, evidence)
            return
        values = self._values(told)
        if values:
            self._take(base, values)

    def take_value(self, base: int, value: float, *, good_when_high: bool) -> None:
        """Take a reading that the server made itself; a second one of the newest round says nothing new."""
        if self.readings and self.readings[-1].round >= base:
            return
        if not math.isfinite(value):
            self.alarm = Alarm(NOT_FINITE, base, self._good, f"the evaluation of round {base} is not finite")
            return
        self._chosen = "accuracy" if good_when_high else "loss"
        self._take(base, {"": -value if good_when_high else value})

    def fault(self, base: int, last_good: int, what: str) -> None:
        """Take note that a round's state is not what the log says."""
        self.alarm = Alarm(DIGEST, base, last_good, what)

    def back_to(self, parent: int) -> None:
        """Forget what was read after a round that was gone back to."""
        self.readings = [reading for reading in self.readings if reading.round <= parent]
        self._open.clear()
        self._last.clear()
        self._sum, self._good, self.alarm = 0.0, min(self._good, parent), None

    def _values(self, told: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Return one metric of each client that tells it, the higher the worse."""
        name = self.metric or self._chosen or self._choose(told)
        self._chosen = name
        sign = -1.0 if name in GOOD_WHEN_HIGH else 1.0
        return {client: sign * metrics[name] for client, metrics in told.items() if name in metrics}

    def _choose(self, told: Mapping[str, Mapping[str, float]]) -> str:
        for name in (*GOOD_WHEN_HIGH, "loss"):
            if 2 * sum(name in metrics for metrics in told.values()) > len(told):
                return name
        return ""

    def _take(self, base: int, values: dict[str, float]) -> None:
        pairs = [(value, self._last[client]) for client, value in values.items() if client in self._last]
        worse = sum(now > before for now, before in pairs) / len(pairs) if pairs else math.nan
        reading = Reading(base, median(values.values()), len(values), worse)
        self.alarm = self.alarm or self._judged(reading)
        self.readings.append(reading)
        self._last.update(values)

    def _judged(self, reading: Reading) -> Alarm | None:
        before = [past.value for past in self.readings]
        if len(before) < LEAST_READINGS:
            self._good = reading.round
            return None
        noise = self._noise(before)
        level = median(before[-WINDOW:])
        behind = (reading.value - level) / noise
        best = min(median(before[at : at + WINDOW]) for at in range(len(before) - WINDOW + 1))
        if behind > SUDDEN and self._matters(COLLAPSE, reading.value, level) and not reading.worse_share < WORSE_SHARE:
            return Alarm(COLLAPSE, reading.round, self._good, self._said(reading, level, behind, "the last readings"))
        from_best = (reading.value - best) / noise
        self._sum = max(0.0, self._sum + min(from_best, MOST_STEP) - SLACK)
        if self._sum == 0.0:
            self._good = reading.round
        recent = median([*before[-2:], reading.value])
        if self._sum > LIMIT and self._matters(DECLINE, recent, best):
            return Alarm(DECLINE, reading.round, self._good, self._said(reading, best, from_best, "the best"))
        return None

    def _noise(self, values: list[float]) -> float:
        """Return the standard deviation of a reading, from the differences of neighbours; never below a thousandth of it."""
        recent = values[-NOISE_WINDOW:]
        steps = [now - before for before, now in pairwise(recent)]
        middle = median(steps)
        spread = 1.4826 * median(abs(step - middle) for step in steps) / math.sqrt(2)
        return max(spread, 0.002 if self._is_share else 0.01 * abs(median(recent)), 1e-9)

    @property
    def _is_share(self) -> bool:
        return self._chosen in GOOD_WHEN_HIGH

    def _matters(self, test: str, value: float, reference: float) -> bool:
        if self._is_share:
            return value - reference > LEAST_LOSS[test]
        return value > reference * LOSS_GROWTH[test] if reference > 0 else value > reference

    def _said(self, reading: Reading, reference: float, deviations: float, what: str) -> str:
        sign = -1 if self._is_share else 1
        return (
            f"{self._chosen or self.metric} of round {reading.round} is {sign * reading.value:.4g} where {what} were "
            f"{sign * reference:.4g}: {deviations:.1f} deviations of its noise, {reading.clients} clients"
        )
