"""From deviations to a name: what of several things that look wrong is the one that explains the others."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from refold.consumers.monitoring import kinds
from refold.consumers.monitoring.policy import HealthPolicy
from refold.consumers.monitoring.readings import (
    DELAY,
    DISK,
    ERRORS,
    LATENCY,
    LOSS,
    LOST,
    MEMORY,
    PAUSE,
    QUICK_S,
    SLOWNESS,
    THROTTLED,
    Vector,
)

_TIRED = frozenset({kinds.SLOW, kinds.LATE, kinds.STARVED, kinds.STOPPED, kinds.LOG, kinds.UNUSUAL})
CONSEQUENCES = {
    kinds.MEMORY_SHORT: _TIRED - {kinds.LATE},
    kinds.STOPPED: _TIRED,
    kinds.STARVED: _TIRED,
    kinds.DISK_SHORT: frozenset({kinds.LOG, kinds.UNUSUAL}),
    kinds.LATE: frozenset({kinds.SLOW, kinds.STARVED, kinds.LOG, kinds.UNUSUAL}),
    kinds.CLOCK: frozenset({kinds.LOG, kinds.UNUSUAL}),
    kinds.REFUSED: frozenset({kinds.LOSS_HIGH}),
    kinds.SLOW: frozenset({kinds.UNUSUAL}),
    kinds.LOSS_HIGH: frozenset({kinds.UNUSUAL}),
    kinds.LOG: frozenset({kinds.UNUSUAL}),
}
"""What a trouble brings with it."""

Levels = dict[str, float]
"""Kind → how far out of line it is, in deviations."""


def levels(policy: HealthPolicy, readings: Vector, deviations: Vector, score: float, interval_s: float) -> Levels:
    """Return how far out of line a node is in each way that one beat can show.

    Parameters
    ----------
    readings, deviations
        In the order of `refold.consumers.monitoring.readings.NAMES`.
    """
    found = {
        # What two clocks say of one thing, the server's and the node's, counts together.
        kinds.STARVED: _together(deviations[PAUSE], deviations[THROTTLED]),
        kinds.LATE: max(_together(deviations[DELAY], deviations[LATENCY]), deviations[LOST]),
        kinds.MEMORY_SHORT: _short(policy, readings[MEMORY], deviations[MEMORY]),
        kinds.DISK_SHORT: _short(policy, readings[DISK], deviations[DISK]),
        kinds.SLOW: deviations[SLOWNESS],
        kinds.LOSS_HIGH: policy.severe_at if readings[LOSS] == math.inf else deviations[LOSS],
        kinds.LOG: deviations[ERRORS],
    }
    if readings[PAUSE] > policy.suspect_beats * interval_s:
        found[kinds.STOPPED] = policy.severe_at
    if max(found.values()) < policy.raise_at and score >= policy.score_at:
        found[kinds.UNUSUAL] = max(policy.raise_at, min(score, policy.severe_at - 0.01))
    return found


def _together(one: float, other: float) -> float:
    return math.hypot(max(one, 0.0), max(other, 0.0))


def _short(policy: HealthPolicy, share: float, deviation: float) -> float:
    """Return how short memory or disk is; shares grow towards an end, so that what is nearly there needs no past."""
    return max(deviation, policy.severe_at) if share >= policy.full else deviation


def explain(found: Collection[str], readings: Vector, deviations: Vector, raise_at: float) -> str:
    """Return the kind that explains the others: a node without memory is also slow, one without a network also late.

    Parameters
    ----------
    found
        What is out of line; not empty.
    """
    left = set(found)
    if {kinds.LATE, kinds.STARVED} <= left:
        left.discard(kinds.LATE if _is_starved(readings, deviations, raise_at) else kinds.STARVED)
    if {kinds.LATE, kinds.STOPPED} <= left and not _is_starved(readings, deviations, raise_at):
        left.discard(kinds.STOPPED)
    return next(kind for kind in (*kinds.KINDS, *left) if kind in left)


def unrelated(kind: str, others: Collection[str]) -> set[str]:
    """Return which of several kinds are no consequence of one that is known: then there are two things to tell."""
    return set(others) - CONSEQUENCES.get(kind, frozenset())


def _is_starved(readings: Vector, deviations: Vector, raise_at: float) -> bool:
    """Whether processor time rather than the network is what is lacking: a starved process is late with everything it does."""
    if deviations[THROTTLED] >= raise_at:
        return True
    latency_s = 0.0 if math.isnan(readings[LATENCY]) else math.exp(readings[LATENCY]) - QUICK_S
    return readings[PAUSE] > max(readings[DELAY], latency_s)


def evidence_of(names: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Return measurements as records hold them: finite, and few."""
    return tuple((name, round(float(value), 4)) for name, value in names.items() if math.isfinite(value))[:32]
