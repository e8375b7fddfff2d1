"""What others publish, judging the same rounds: whole updates, no memory. Each says who is refused and how bad each looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from _federation import Floats, Labels

Judged = tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Round:
    """What a server has in hand; who is bad is for the rules that must be told how many, and for `Oracle`."""

    round: int
    clients: Labels
    deltas: Floats
    examples: Labels
    losses: Floats
    root: Floats
    shapes: tuple[tuple[int, ...], ...]
    bad: npt.NDArray[np.bool_]
    seed: int

    @property
    def bad_count(self) -> int:
        """How many are bad."""
        return int(self.bad.sum())


class Judge(Protocol):
    """One run's judge; made anew for each run."""

    def judge(self, given: Round) -> Judged:
        """Return who is refused, and scores, higher is worse."""
        ...


def robust_z(values: Any) -> npt.NDArray[np.float64]:
    """Return (value − median) / (1.4826 · MAD), by column."""
    centre = np.median(values, axis=0)
    return np.asarray((values - centre) / (1.4826 * np.median(np.abs(values - centre), axis=0) + 1e-9))


class PlainZ:
    """The largest robust z of any feature: norm, parts' norms, quantiles, cosine to the median, signs; refused above 3.5."""

    def judge(self, given: Round) -> Judged:
        deltas = given.deltas
        size = np.linalg.norm(deltas, axis=1)
        centre = np.median(deltas / (size[:, None] + TINY), axis=0)
        cosine = deltas @ centre / (size * np.linalg.norm(centre) + TINY)
        sizes = [int(np.prod(s)) for s in given.shapes]
        parts = [np.log(np.linalg.norm(part, axis=1) + TINY) for part in np.split(deltas, np.cumsum(sizes)[:-1], axis=1)]
        levels = np.log(np.quantile(np.abs(deltas), [0.5, 0.75, 0.99], axis=1) + TINY)
        table = np.column_stack([np.log(size + TINY), *parts, *levels, cosine, (deltas > 0).mean(1), (deltas == 0).mean(1)])
        worst = np.abs(robust_z(table)).max(axis=1)
        return worst > 3.5, worst


class SignGuard:
    """Source: Xu et al., Byzantine-robust federated learning through collaborative malicious gradient filtering, 2022."""

    def judge(self, given: Round) -> Judged:
        from sklearn.cluster import MeanShift, estimate_bandwidth

        deltas = given.deltas
        ratio = np.linalg.norm(deltas, axis=1)
        ratio = ratio / (np.median(ratio) + TINY)
        rng = np.random.default_rng([given.seed, given.round])
        some = deltas[:, rng.choice(deltas.shape[1], max(1, deltas.shape[1] // 10), replace=False)]
        signs = np.column_stack([(some > 0).mean(1), (some < 0).mean(1), (some == 0).mean(1)])
        width = estimate_bandwidth(signs, quantile=0.5)
        labels = MeanShift(bandwidth=width, bin_seeding=False).fit(signs).labels_ if width > 0 else np.zeros(len(signs), int)
        most = labels == np.bincount(labels).argmax()
        length_ok = (ratio > 0.1) & (ratio < 3)
        distance = np.linalg.norm(signs - signs[most].mean(0), axis=1)
        scores = distance + 10 * ~most + 10 * np.abs(np.log(ratio + TINY)) * ~length_ok
        return ~(most & length_ok), scores


class Mandera:
    """Source: Zhu, Zhao, Luo, Liu and Deng, MANDERA: malicious node detection in federated learning via ranking, 2023."""

    def judge(self, given: Round) -> Judged:
        from sklearn.cluster import KMeans

        ranks = given.deltas.argsort(axis=0, kind="stable").argsort(axis=0)
        table = np.column_stack([ranks.mean(1), ranks.std(1)])
        labels = KMeans(2, n_init=3, random_state=0).fit(table).labels_
        larger = labels == np.bincount(labels).argmax()
        return ~larger, np.linalg.norm(table - table[larger].mean(0), axis=1) + 1000.0 * ~larger


class MultiKrum:
    """Told how many are bad. Source: Blanchard et al., Machine learning with adversaries, 2017."""

    def judge(self, given: Round) -> Judged:
        square = (given.deltas**2).sum(1)
        distances = np.maximum(square[:, None] + square - 2 * given.deltas @ given.deltas.T, 0)
        near = max(1, len(square) - given.bad_count - 2)
        scores = np.sort(distances, axis=1)[:, 1 : near + 1].sum(axis=1)
        refused = np.zeros(len(square), bool)
        refused[np.argsort(-scores)[: given.bad_count]] = True
        return refused, scores


class FLTrust:
    """Has data of the server's own. Source: Cao, Fang, Liu and Gong, FLTrust, 2021."""

    def judge(self, given: Round) -> Judged:
        cosine = given.deltas @ given.root / (np.linalg.norm(given.deltas, axis=1) * np.linalg.norm(given.root) + TINY)
        return cosine <= 0, -cosine.astype(np.float64)


class TextbookForest:
    """Raw parameters, a tenth taken for anomalous. Source: Liu, Ting and Zhou, Isolation forest, 2008."""

    def judge(self, given: Round) -> Judged:
        from sklearn.ensemble import IsolationForest

        forest = IsolationForest(contamination=0.1, random_state=0).fit(given.deltas)
        return forest.predict(given.deltas) < 0, -forest.score_samples(given.deltas)


class Oracle:
    """Refuses whoever is bad, and nobody else: what is lost then is lost with the data of the bad, whoever judges."""

    def judge(self, given: Round) -> Judged:
        """Return the truth."""
        return given.bad.copy(), given.bad.astype(np.float64)


PEERS: dict[str, type[Any]] = {
    "oracle": Oracle,
    "plain-z": PlainZ,
    "signguard": SignGuard,
    "mandera": Mandera,
    "multi-krum": MultiKrum,
    "fltrust": FLTrust,
    "forest-raw": TextbookForest,
}
