"""How far readings lie from a node's own past, beyond what its peers go through: for all nodes that beat, at once.

Of each node the last healthy vectors are kept. A new one is taken as deviations from their median in units of their spread
(MAD, with a floor for each reading). From that goes what its peers have in common at the moment: where a machine, a bus or a
whole federation is slow, everyone deviates alike and nobody is to blame. What remains is judged reading by reading, and as a
whole by a Mahalanobis distance with a correlation matrix shrunk towards independence, since windows are short.

Sources: Hampel 1974 (median and MAD); Ledoit and Wolf 2004 (shrinkage); Wilson and Hilferty 1931 (chi-squared to normal).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refold.consumers.monitoring.readings import NAMES, Vector

Floats = npt.NDArray[np.float32]
WIDTH = len(NAMES)
FLOORS: Floats = np.array([0.05, 0.05, 0.35, 0.25, 0.04, 0.012, 0.008, 0.18, 0.25, 0.5], np.float32)
"""Least spread of each reading: a few times what a healthy, idle node's clock, bus and allocator do from beat to beat."""
MOST = 50.0
"""Deviations beyond this say no more, and would make correlations of nothing else."""
SHRINKAGE_BEATS = 16.0


@dataclass(frozen=True, slots=True)
class Deviations:
    """Of some nodes: `values` (n, readings) deviations, 0.0 for what is not known, and `scores` (n,) of the whole vector."""

    values: Floats
    scores: Floats


class Pasts:
    """The last healthy readings of every node.

    Memory: ``window × readings × 4`` bytes a node, 1.9 kB with the default window.
    """

    def __init__(self, window: int, warm_up: int) -> None:
        self._window = window
        self._warm_up = warm_up
        self._kept: Floats = np.full((16, window, WIDTH), np.nan, np.float32)
        self._count = np.zeros(16, np.int64)
        self._free: list[int] = list(range(15, -1, -1))

    def open(self) -> int:
        """Return a place for one more node."""
        if not self._free:
            size = len(self._kept)
            self._kept = np.concatenate([self._kept, np.full_like(self._kept, np.nan)])
            self._count = np.concatenate([self._count, np.zeros(size, np.int64)])
            self._free = list(range(2 * size - 1, size - 1, -1))
        return self._free.pop()

    def close(self, place: int) -> None:
        """Forget a node."""
        self.clear(place)
        self._free.append(place)

    def clear(self, place: int) -> None:
        """Forget a node's past but not its place."""
        self._kept[place] = np.nan
        self._count[place] = 0

    def learn(self, place: int, vector: Vector) -> None:
        """Take readings into a node's past."""
        self._kept[place, self._count[place] % self._window] = vector
        self._count[place] += 1

    def is_warm(self, place: int) -> bool:
        """Whether enough of a node's past is known."""
        return bool(self._count[place] >= self._warm_up)

    def deviations(self, places: list[int], vectors: list[Vector], peers_least: int) -> Deviations:
        """Return how far new readings of these nodes lie from what is usual; zero for those without a past.

        Parameters
        ----------
        peers_least
            With fewer nodes nothing is taken off for what they have in common.
        """
        past, now = self._kept[places], np.asarray(vectors, np.float32)
        middle, spread = _middle_and_spread(past)
        with np.errstate(invalid="ignore"):
            raw = np.clip((now - middle) / spread, -MOST, MOST)
        warm = self._count[places] >= self._warm_up
        raw[~warm] = np.nan
        own = np.nan_to_num(raw, nan=0.0) - _in_common(raw, peers_least)
        own[np.isnan(raw)] = 0.0
        return Deviations(own, _scores(own, past, middle, spread))


def _middle_and_spread(past: Floats) -> tuple[Floats, Floats]:
    """Return median and spread of each reading in windows (n, window, readings); nan and the floor where nothing is known.

    Sorting puts nan last, which makes this several times as fast as `numpy.nanmedian` on as many small windows.
    """
    middle = _median(past)
    spread = _median(np.abs(past - middle[:, None, :])) * np.float32(1.4826)
    return middle, np.maximum(np.nan_to_num(spread, nan=0.0), FLOORS)


def _median(values: Floats) -> Floats:
    ordered = np.sort(values, axis=1)
    known = np.count_nonzero(~np.isnan(values), axis=1)
    low, high = np.maximum(known - 1, 0) // 2, np.maximum(known // 2, 0)
    high = np.minimum(high, values.shape[1] - 1)
    pick = np.take_along_axis
    found = (pick(ordered, low[:, None, :], 1)[:, 0] + pick(ordered, high[:, None, :], 1)[:, 0]) / 2
    return np.where(known > 0, found, np.nan).astype(np.float32)


def _in_common(raw: Floats, peers_least: int) -> Floats:
    """Return what the nodes have in common: of each reading the median deviation, where enough of them have it."""
    known = np.count_nonzero(~np.isnan(raw), axis=0)
    common = _median(raw[None])[0]
    # Only the bad side: where peers happen to do well, nobody who does as always is behind.
    return np.where(known >= peers_least, np.maximum(np.nan_to_num(common, nan=0.0), 0.0), 0.0).astype(np.float32)


def _scores(own: Floats, past: Floats, middle: Floats, spread: Floats) -> Floats:
    """Return each vector's Mahalanobis distance as a normal deviate; readings that do well count nothing."""
    if not len(own):
        return np.zeros(0, np.float32)
    with np.errstate(invalid="ignore"):
        kept = np.nan_to_num(np.clip((past - middle[:, None, :]) / spread[:, None, :], -3, 3), nan=0.0)
    known = np.maximum(np.count_nonzero(~np.isnan(past[:, :, 0]), axis=1), 1).astype(np.float32)
    second = np.einsum("nwi,nwj->nij", kept, kept, optimize=True) / known[:, None, None]
    share = (known / (known + SHRINKAGE_BEATS))[:, None, None]
    shrunk = share * second + (1 - share) * np.eye(WIDTH, dtype=np.float32)
    # A reading that never moved has no variance of its own in these units: its floor stands for it.
    diagonal = np.einsum("nii->ni", shrunk)
    np.maximum(diagonal, 1.0, out=diagonal)
    worse = np.maximum(own, 0.0)
    squares = np.einsum("ni,ni->n", worse, np.linalg.solve(shrunk, worse[:, :, None])[:, :, 0])
    return _as_normal(np.maximum(squares, 0.0), WIDTH)


def _as_normal(squares: Floats, width: int) -> Floats:
    """Return chi-squared values of `width` degrees of freedom as normal deviates."""
    part = 2 / (9 * width)
    normal: Floats = (((squares / width) ** (1 / 3) - (1 - part)) / np.sqrt(part)).astype(np.float32)
    return normal
