"""Traits of what a client did lately: its last updates laid over each other, in which noise fades and a purpose does not.

One round of a label flip lies among the honest ones' noise. Eight of them, each less its cohort's centre, add up where noise
does not; so do the honest ones' own leanings where clients hold unlike data, which is why a client is compared with all others'
sums. Source: the momentum of Karimireddy, He and Jaggi, Learning from history for Byzantine robust optimization, 2021, kept at
the server instead of at the client; consistency with the own past as in Zhang et al., FLDetector, 2022.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import blake3
import numpy as np
import numpy.typing as npt

from refold.consumers.detectors.contract import TINY, Floats, median
from refold.consumers.features import Features

Singles = npt.NDArray[np.float32]

DECAY = 0.85
ROUNDS = 8
"""So many of a client's past updates count, each older one for less."""

LONGEST = 2.0
"""Lengths count up to e to this times the median, and down to its inverse: one huge update must not outweigh seven others."""

SMALL = np.float32(1e-20)
"""Beside lengths of about one."""

LAGS = 3
LAG_NAMES = tuple(f"lag-{lag}" for lag in range(1, LAGS + 1))
NAMES = (
    "insists",
    "like-itself",
    "like-itself-relative",
    "like-its-last",
    "like-its-last-relative",
    "sum-length",
    "sum-centre",
    "sum-centre-relative",
    "sum-against",
    "sum-twin",
    "sum-neighbours",
    "sum-neighbours-relative",
    "sum-pairs",
    "sum-krum",
    "sum-spectral",
    "sum-spectral-side",
    "sum-second",
    "like-another",
    "like-another-more",
    *LAG_NAMES,
    "turning",
    "past",
    "odd",
    "odd-most",
    "odd-sum",
    "odd-sum-relative",
    "odd-sum-most",
    "odd-sum-most-relative",
    "odd-like-itself",
    "odd-twin",
    "odd-neighbours",
    "odd-neighbours-relative",
    "odd-centre",
    "odd-spectral",
)
"""The last twelve are of odds: by how many of the cohort's own deviations each place of the sketch differs from its median.
What a step's length hides, since few places make it up, is seen here: pushes where honest updates hardly move.
"""

MOST_ODD = 8.0
FEW_PLACES = 32


@dataclass(frozen=True, slots=True)
class Look:
    """A round as later ones look back at it.

    Parameters
    ----------
    place
        Each client's row.
    units
        (clients, width) the sketches' directions.
    steps
        The same as long as they are beside the median length, less the centre.
    centre
        (width,) the median direction.
    odds
        (clients, width) the steps in units of the cohort's deviation at each place.
    """

    place: dict[str, int]
    units: Singles
    steps: Singles
    centre: Singles
    odds: Singles

    @classmethod
    def of(cls, clients: Sequence[str], features: Sequence[Features]) -> Self:
        """Return what is to be seen of a round."""
        sketches = np.array([found.sketch for found in features], dtype=np.float64)
        norms = np.linalg.norm(sketches, axis=1)
        units = (sketches / (norms[:, None] + TINY)).astype(np.float32)
        lengths = np.log(norms + TINY)
        times = np.exp(np.clip(lengths - median(lengths), -LONGEST, LONGEST)).astype(np.float32)
        centre = median(units, axis=0)
        scaled = units * times[:, None]
        place = {name: at for at, name in enumerate(clients)}
        return cls(place, units, scaled - centre, centre, _odds(scaled))

    def among(self, clients: Sequence[str], rows: Sequence[int]) -> Self:
        """Return what is to be seen of some of them."""
        if list(rows) == list(range(len(self.units))):
            return self
        place = {client: at for at, client in enumerate(clients)}
        return type(self)(place, self.units[rows], self.steps[rows], self.centre, self.odds[rows])


_KEPT = 4
_lock = threading.Lock()
_kept: OrderedDict[bytes, Look] = OrderedDict()


def look_of(clients: Sequence[str], features: Sequence[Features]) -> Look:
    """Return `Look.of`, which is wanted twice: when a round is judged and when it is looked back at."""
    digest = blake3.blake3("\0".join(clients).encode())
    for found in features:
        digest.update(found.sketch.tobytes())
    key = digest.digest()
    with _lock:
        look = _kept.pop(key, None) or Look.of(clients, features)
        _kept[key] = look
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)
    return look


@dataclass(slots=True)
class _Sums:
    """For each client, weighted sums over its last updates."""

    past: Singles
    odds: Singles
    centres: Singles
    lengths: Floats
    weight: Floats
    count: npt.NDArray[np.int64]
    last: Singles


def look_back(clients: Sequence[str], now: Look, before: Sequence[Look]) -> Floats:
    """Return the traits: (clients, `NAMES`).

    Parameters
    ----------
    now
        The round that is judged; rows in the order of `clients`.
    before
        Rounds before it, newest first.
    """
    before = [look for look in before if look.centre.shape == now.centre.shape]
    sums = _sums(clients, now, before)
    seen = sums.count > 0
    share = (1 / (sums.weight + 1)).astype(np.float32)[:, None]
    whole = (sums.past + now.steps) * share
    centres = (sums.centres + now.centre) * share
    own = (sums.lengths + np.linalg.norm(now.steps, axis=1)) / (sums.weight + 1)
    length = np.linalg.norm(whole, axis=1)
    itself = np.where(seen, _cosines(now.steps, sums.past), 0.0)
    last = np.where(seen, _cosines(now.units, sums.last), 0.0)
    toward = _cosines(whole + centres, centres)
    columns = [
        np.log((length + 1e-6) / (own + 1e-6)),
        itself,
        _among(itself, seen),
        last,
        _among(last, seen),
        _centred(np.log(length + 1e-6)),
        toward,
        _centred(toward),
        whole @ now.centre / (length * np.linalg.norm(now.centre) + TINY),
        *_geometry(whole, length),
        *_others(now, sums, itself),
        *_lags(now, before),
        sums.count.astype(np.float64),
        *_oddities(now, sums, seen),
    ]
    return np.column_stack(columns)


def _sums(clients: Sequence[str], now: Look, before: Sequence[Look]) -> _Sums:
    count, width = now.steps.shape
    zeros = np.zeros((count, width), np.float32)
    sums = _Sums(zeros, zeros.copy(), zeros.copy(), np.zeros(count), np.zeros(count), np.zeros(count, np.int64), zeros.copy())
    for look in before:
        if sums.count.min(initial=ROUNDS) >= ROUNDS:
            break
        places = np.array([look.place.get(client, -1) for client in clients])
        here = np.flatnonzero((places >= 0) & (sums.count < ROUNDS))
        if not len(here):
            continue
        if len(here) == count and sums.count.min() == sums.count.max() and np.array_equal(places, np.arange(count)):
            _add_all(sums, look)
            continue
        rows = look.steps[places[here]]
        weights = DECAY ** (sums.count[here] + 1.0)
        first = sums.count[here] == 0
        sums.last[here[first]] = look.units[places[here[first]]]
        sums.past[here] += weights[:, None].astype(np.float32) * rows
        sums.odds[here] += weights[:, None].astype(np.float32) * look.odds[places[here]]
        sums.centres[here] += weights[:, None].astype(np.float32) * look.centre
        sums.lengths[here] += weights * np.linalg.norm(rows, axis=1)
        sums.weight[here] += weights
        sums.count[here] += 1
    return sums


def _add_all(sums: _Sums, look: Look) -> None:
    """Add a round of just the clients that are asked for: the same sums, without picking rows."""
    seen = int(sums.count[0])
    weight = DECAY ** (seen + 1.0)
    if not seen:
        sums.last[:] = look.units
    sums.past += np.float32(weight) * look.steps
    sums.odds += np.float32(weight) * look.odds
    sums.centres += np.float32(weight) * look.centre
    sums.lengths += weight * np.linalg.norm(look.steps, axis=1)
    sums.weight += weight
    sums.count += 1


def _geometry(whole: Singles, length: Floats) -> list[Floats]:
    """Return where a client's sum lies among the others'."""
    count = len(whole)
    units = whole / (length[:, None] + SMALL)
    pairs = units @ units.T
    np.fill_diagonal(pairs, -1.0)
    ordered = -np.sort(-pairs, axis=1)
    near = ordered[:, : max(1, count // 4)].mean(axis=1)
    gram = np.asarray(whole @ whole.T, np.float64) / (float(median(length)) ** 2 + TINY)
    square = np.diag(gram)
    distances = np.maximum(square[:, None] + square - 2 * gram, 0)
    krum = np.sort(distances, axis=1)[:, 1 : max(2, count // 2)].mean(axis=1)
    middle = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
    strengths, vectors = np.linalg.eigh(middle)
    axes = vectors[:, -2:] * np.sqrt(np.maximum(strengths[-2:], 0) / (strengths.sum() + TINY) * count)
    first = _centred(axes[:, 1])
    first = first * (1 if (first**3).sum() > 0 else -1)
    return [
        ordered[:, 0],
        near,
        _centred(near),
        (ordered[:, :-1].sum(axis=1)) / (count - 1),
        _centred(np.log(krum + 1e-6)),
        np.abs(first),
        first,
        np.abs(_centred(axes[:, 0])),
    ]


def _others(now: Look, sums: _Sums, itself: Floats) -> list[Floats]:
    """Return how like another's past a client's update is, and how much more than like its own: whose is it?"""
    past = sums.past / (np.linalg.norm(sums.past, axis=1, keepdims=True) + SMALL)
    steps = now.steps / (np.linalg.norm(now.steps, axis=1, keepdims=True) + SMALL)
    cosines = np.asarray(steps @ past.T, np.float64)
    np.fill_diagonal(cosines, -1.0)
    cosines[:, sums.count == 0] = -1.0
    most = cosines.max(axis=1)
    most = np.where(most > -1.0, most, 0.0)
    return [most, most - itself]


def _oddities(now: Look, sums: _Sums, seen: npt.NDArray[np.bool_]) -> list[Floats]:
    """Return how odd a client is now and was lately, how steadily, and who is odd in the same way."""
    count = len(now.odds)
    whole = (sums.odds + now.odds) * (1 / (sums.weight + 1)).astype(np.float32)[:, None]
    all_of_now, most_of_now = _sizes(now.odds)
    all_of_sum, most_of_sum = _sizes(whole)
    itself = np.where(seen, _cosines(now.odds, sums.odds), 0.0)
    units = whole / (np.linalg.norm(whole, axis=1, keepdims=True) + SMALL)
    pairs = units @ units.T
    middle = np.asarray(pairs - pairs.mean(axis=0) - pairs.mean(axis=1)[:, None] + pairs.mean(), np.float64)
    strengths, vectors = np.linalg.eigh(middle)
    spectral = np.abs(_centred(vectors[:, -1] * np.sqrt(max(strengths[-1], 0.0))))
    np.fill_diagonal(pairs, -1.0)
    ordered = -np.sort(-pairs, axis=1)
    near = ordered[:, : max(1, count // 4)].mean(axis=1)
    toward = _cosines(whole, np.broadcast_to(now.centre, whole.shape))
    return [
        _centred(all_of_now),
        _centred(most_of_now),
        all_of_sum,
        _centred(all_of_sum),
        most_of_sum,
        _centred(most_of_sum),
        itself,
        ordered[:, 0],
        near,
        _centred(near),
        toward,
        spectral,
    ]


def _odds(scaled: Singles) -> Singles:
    apart = scaled - median(scaled, axis=0)
    spread = 1.4826 * median(np.abs(apart), axis=0)
    # Where most do not move at all, any movement is odd, but not without bounds.
    return np.asarray(np.clip(apart / (spread + 0.01 * median(spread) + SMALL), -MOST_ODD, MOST_ODD), np.float32)


def _sizes(odds: Singles) -> tuple[Floats, Floats]:
    """Return the logarithms of the mean size, and of the mean of the largest."""
    sizes = np.abs(odds)
    few = min(FEW_PLACES, sizes.shape[1])
    largest = np.partition(sizes, sizes.shape[1] - few, axis=1)[:, -few:]
    return np.log(sizes.mean(axis=1, dtype=np.float64) + 0.01), np.log(largest.mean(axis=1, dtype=np.float64) + 0.01)


def _lags(now: Look, before: Sequence[Look]) -> list[Floats]:
    """Return how much more than the others an update is like the centre of a round before, and how far the centre turned."""
    columns = []
    turning = 0.0
    for lag in range(LAGS):
        if lag >= len(before):
            columns.append(np.zeros(len(now.units)))
            continue
        old = before[lag].centre / (np.linalg.norm(before[lag].centre) + TINY)
        columns.append(_centred(np.asarray(now.units @ old, np.float64)))
        if lag == 0:
            turning = float(now.centre @ old / (np.linalg.norm(now.centre) + TINY))
    return [*columns, np.full(len(now.units), turning)]


def _cosines(rows: Singles, others: Singles) -> Floats:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    return np.asarray((rows * others).sum(axis=1) / (lengths + TINY), np.float64)


def _centred(values: Floats) -> Floats:
    return np.asarray(values - median(values), np.float64)


def _among(values: Floats, seen: npt.NDArray[np.bool_]) -> Floats:
    """Return the difference from the median of those who have a past; 0 for those who have none."""
    return np.where(seen, values - median(values[seen]), 0.0) if seen.any() else np.zeros(len(values))
