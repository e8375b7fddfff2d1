"""What detectors that were fitted see of an update: its traits, their means over the client's last updates, and these laid over
each other.

Everything follows from features that the log holds, and what is seen of a past round from rounds before it alone: whoever folds
the same verdicts sees the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from refold.consumers.detectors.contract import Cohort, Floats, median
from refold.consumers.detectors.looks import NAMES as LATE
from refold.consumers.detectors.looks import Look, look_back, look_of
from refold.consumers.detectors.recent import Past
from refold.consumers.detectors.traits import NAMES as TRAITS
from refold.consumers.detectors.traits import groups, table

DECAY = 0.75
ROUNDS = 8
"""A client's traits of now are seen beside their mean over so many of its updates, each older one counting for less."""

NAMES = (*TRAITS, *(f"mean-{name}" for name in TRAITS), *LATE)

LEAST_SPREAD, FAR = 0.05, 8.0
"""Deviations of a cohort are not smaller than this, and count up to so many."""


def columns_of(cohort: Cohort) -> Floats:
    """Return what is seen of each update: (clients, `NAMES`)."""
    tables = cohort.recent.tables() if cohort.recent else []
    looks = cohort.recent.looks() if cohort.recent else []
    return _columns(cohort, table(cohort), look_of(cohort.clients, cohort.features), tables, looks)


def among_all(columns: Floats) -> Floats:
    """Return by how many of its cohort's own deviations each update differs from the median, column by column."""
    apart = columns - median(columns)
    spread = np.maximum(1.4826 * median(np.abs(apart)), LEAST_SPREAD)
    return np.asarray(np.clip(apart / spread, -FAR, FAR))


def past_columns(recent: Past, rounds: int) -> Iterator[tuple[Floats, npt.NDArray[np.bool_]]]:
    """Yield what was seen of each of the last rounds, and which of its updates were accepted, newest first."""
    tables, looks = recent.tables(), recent.every_look()
    for at, (cohort, accepted) in enumerate(recent.cohorts()):
        if at == rounds:
            return
        look = looks[at]
        if look is not None:
            before = [found for found in looks[at + 1 :] if found is not None]
            yield _columns(cohort, tables[at][1], look, tables[at + 1 :], before), accepted


def _columns(
    cohort: Cohort, now: Floats, look: Look, tables: Sequence[tuple[dict[str, int], Floats]], looks: Sequence[Look]
) -> Floats:
    late = np.zeros((len(cohort), len(LATE)))
    for members in groups(cohort):
        names = [cohort.clients[index] for index in members]
        late[members] = look_back(names, look.among(names, members), looks)
    return np.column_stack([now, _means(cohort.clients, now, tables), late])


def _means(clients: Sequence[str], now: Floats, tables: Sequence[tuple[dict[str, int], Floats]]) -> Floats:
    """Return the means of each client's traits of now and of its last rounds, each older one counting for less."""
    sums, weights, counts = now.copy(), np.ones(len(now)), np.ones(len(now))
    for place, rows in tables:
        if counts.min() >= ROUNDS:
            break
        at = np.array([place.get(client, -1) for client in clients])
        here = np.flatnonzero((at >= 0) & (counts < ROUNDS))
        if len(here):
            weight = DECAY ** counts[here]
            sums[here] += weight[:, None] * rows[at[here]]
            weights[here] += weight
            counts[here] += 1
    return np.asarray(sums / weights[:, None])
