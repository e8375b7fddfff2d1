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
    SLOWNESS,
    THROTTLED,
    Vector,
)
from refold.schemas.health import DATA

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
        kinds.STARVED: max(deviations[PAUSE], deviations[THROTTLED]),
        kinds.LATE: max(deviations[DELAY], deviations[LATENCY], deviations[LOST]),
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
    """Return which of several kinds have nothing to do with one that is known: data and machine are two things."""
    is_data = kinds.KINDS[kind].cause == DATA
    return {other for other in others if (kinds.KINDS[other].cause == DATA) != is_data}


def _is_starved(readings: Vector, deviations: Vector, raise_at: float) -> bool:
    """Whether processor time rather than the network is what is lacking: a starved process is late with everything it does."""
    if deviations[THROTTLED] >= raise_at:
        return True
    latency_s = 0.0 if math.isnan(readings[LATENCY]) else math.exp(readings[LATENCY])
    return readings[PAUSE] > max(readings[DELAY], latency_s)


def evidence_of(names: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Return measurements as records hold them: finite, and few."""
    return tuple((name, round(float(value), 4)) for name, value in names.items() if math.isfinite(value))[:32]
