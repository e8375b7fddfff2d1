"""Each learned detector alone, beside its textbook form on raw parameters and the plain maximum z over the same columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from _own import Own
from _peers import Judge, Judged, Round, TextbookForest

from refold.consumers.detectors import Cohort, Ensemble, Opinion, Recent, Tree
from refold.consumers.detectors.choice import chosen
from refold.consumers.detectors.contract import Detector, robust_z
from refold.consumers.detectors.seen import FAR, LEAST_SPREAD, columns_of
from refold.detection import _Extractor

FIRST = 8
"""From this round on what learns has something to score by. All judges are compared from here on."""


class Alone:
    """One detector, whose scores rank and whose verdicts are its own history."""

    def __init__(self, detector: Detector) -> None:
        self._ensemble, self._recent = Ensemble([detector], patience_s=120.0), Recent()
        self._extractor: _Extractor | None = None

    def judge(self, given: Round) -> Judged:
        """Return who is refused, and how much each value exceeds its threshold."""
        opinions = self._opinions(given)
        refused = np.array([bool(opinion.reasons) for opinion in opinions])
        return refused, np.array([sum(s.value - s.threshold for s in opinion.scores) for opinion in opinions])

    def _opinions(self, given: Round) -> list[Opinion]:
        cohort = self.cohort(given)
        opinions = self._ensemble.judge(cohort)
        if self._ensemble.faults:
            raise RuntimeError(f"a detector failed: {dict(self._ensemble.last_fault)}")
        for client, found, opinion in zip(cohort.clients, cohort.features, opinions, strict=True):
            self._recent.take(given.round, client, found, accepted=not opinion.reasons)
        return opinions

    def cohort(self, given: Round) -> Cohort:
        """Return what the detector is given."""
        names = tuple(f"client-{client:03d}" for client in given.clients)
        deltas = Own()._deltas(given)
        self._extractor = self._extractor or _Extractor.of(deltas[0], bytes(32))
        features: Any = tuple(self._extractor.features(delta) for delta in deltas)
        return Cohort(given.round, names, features, recent=self._recent.view(given.round))


class PlainZ(Alone):
    """The largest robust z, within the cohort, of anything that the detectors that learn see: no learning, the same columns."""

    def __init__(self) -> None:
        super().__init__(chosen(["norm"])[0])

    def judge(self, given: Round) -> Judged:
        """Return who lies further out than anyone should, and how far."""
        cohort = self.cohort(given)
        columns = columns_of(cohort)
        for client, found in zip(cohort.clients, cohort.features, strict=True):
            self._recent.take(given.round, client, found, accepted=True)
        worst = np.abs(np.column_stack([robust_z(column, least_scale=LEAST_SPREAD) for column in columns.T])).max(axis=1)
        return worst > FAR, worst


class TextbookOneClass:
    """Raw parameters. Source: Schölkopf et al., Estimating the support of a high-dimensional distribution, 2001."""

    def judge(self, given: Round) -> Judged:
        """Return what the library says."""
        from sklearn.svm import OneClassSVM

        machine = OneClassSVM(nu=0.1, gamma="scale").fit(given.deltas)
        return machine.predict(given.deltas) < 0, -machine.decision_function(given.deltas)


class TextbookLocalOutlier:
    """Raw parameters. Source: Breunig et al., LOF: identifying density-based local outliers, 2000."""

    def judge(self, given: Round) -> Judged:
        """Return what the library says."""
        from sklearn.neighbors import LocalOutlierFactor

        factor = LocalOutlierFactor(n_neighbors=min(20, len(given.deltas) - 1), contamination=0.1)
        return factor.fit_predict(given.deltas) < 0, -factor.negative_outlier_factor_


class TextbookNeighbours:
    """Raw parameters, mean distance to the five nearest. Source: Ramaswamy, Rastogi and Shim, 2000."""

    def judge(self, given: Round) -> Judged:
        """Return the tenth that is furthest from its nearest."""
        from sklearn.neighbors import NearestNeighbors

        near = NearestNeighbors(n_neighbors=6).fit(given.deltas)
        scores = near.kneighbors(given.deltas)[0][:, 1:].mean(axis=1)
        return scores > np.quantile(scores, 0.9), scores


class TextbookAutoencoder:
    """Raw parameters, trained on the round itself. Source: Hawkins et al., 2002; Li et al., Abnormal client behavior, 2019."""

    HIDDEN, CODE, STEPS = 64, 16, 60

    def judge(self, given: Round) -> Judged:
        """Return the tenth that is reconstructed worst."""
        import torch

        from refold.consumers.detectors.networks import Dense, seeded

        with seeded(given.seed) as generator:
            rows = torch.from_numpy(given.deltas / (given.deltas.std() + 1e-12))
            wide = rows.shape[1]
            net = Dense((wide, self.HIDDEN, self.CODE, self.HIDDEN, wide), generator)
            optimizer = torch.optim.Adam(net.weights, lr=1e-3)
            for _ in range(self.STEPS):
                loss = ((net(rows) - rows) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            scores = ((net(rows) - rows) ** 2).mean(1).detach().numpy().astype(np.float64)
        return scores > np.quantile(scores, 0.9), scores


INJECTED_LIKE = {
    "sign-flip": "flip",
    "scale-x10": "long",
    "added-noise": "noise",
    "copied": "copied",
    "ipm-jittered": "opposite",
    "alie-jittered": "beside",
}
"""Attack of the bench → the injected fault that is most like it, which is left out when the trees are judged on it."""


def _tree_without(attack: str) -> Judge:
    kinds = [kind for kind in ("flip", "long", "noise", "copied", "opposite", "beside") if kind != INJECTED_LIKE.get(attack)]
    return Alone(Tree(kinds=kinds))


def _own(name: str) -> Callable[[str], Judge]:
    return lambda attack: Alone(chosen([name])[0])


def _plain(kind: type[Any]) -> Callable[[str], Judge]:
    return lambda attack: kind()


ALONE: dict[str, Callable[[str], Judge]] = {
    "plain z": _plain(PlainZ),
    "forest": _own("forest"),
    "forest, raw": _plain(TextbookForest),
    "one-class": _own("one-class"),
    "one-class, raw": _plain(TextbookOneClass),
    "local-outlier": _own("local-outlier"),
    "local-outlier, raw": _plain(TextbookLocalOutlier),
    "neighbours": _own("neighbours"),
    "neighbours, raw": _plain(TextbookNeighbours),
    "tree, this attack left out": _tree_without,
    "tree": _own("tree"),
    "pattern": _own("pattern"),
}
DEEP: dict[str, Callable[[str], Judge]] = {
    "autoencoder": _own("autoencoder"),
    "autoencoder, raw": _plain(TextbookAutoencoder),
    "gan": _own("gan"),
}
"""These need torch."""
