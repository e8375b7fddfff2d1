"""Judging rounds that were made long ago: who would detection have refused, again and again?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from refold.consumers.detectors import Cohort, Ensemble
from refold.consumers.detectors.recent import Recent
from refold.consumers.features import Features

LEAST_ROUNDS = 4
SHARE = 0.05
TIMES_OTHERS = 4
"""A culprit would have been refused in so many rounds, in this share of those that it took part in, and so many times as often
as the client in the middle (and one). Among digits dealt unlike, honest clients of sixty rounds were refused in one at most."""

MOST_PASSES = 3
"""Passes over the rounds, each without those found before: what they did to the middle hides the others."""


@dataclass(frozen=True, slots=True)
class Culprit:
    """A client: in how many rounds it took part, in how many of those it would have been refused, and why most often."""

    client: str
    rounds: int
    refused: int
    reasons: tuple[str, ...]
    first_round: int


@dataclass(slots=True)
class Hindsight:
    """Judges one round after another by the features that the log keeps, in the order in which they were made."""

    ensemble: Ensemble = field(default_factory=Ensemble)
    _past: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    _recent: Recent = field(default_factory=Recent)
    _seen: Counter[str] = field(default_factory=Counter)
    _first: dict[str, int] = field(default_factory=dict)
    _reasons: dict[str, list[str]] = field(default_factory=dict)

    def take(
        self, round_: int, clients: Sequence[str], features: Sequence[Features], metrics: Sequence[Mapping[str, float]] = ()
    ) -> None:
        """Judge a round's cohort."""
        cohort = Cohort(
            round_, tuple(clients), tuple(features), self._past, metrics=tuple(metrics), recent=self._recent.view(round_)
        )
        for client, found, opinion in zip(clients, features, self.ensemble.judge(cohort), strict=True):
            self._recent.take(round_, client, found, accepted=not opinion.reasons)
            self._seen[client] += 1
            self._first.setdefault(client, round_)
            if opinion.reasons:
                self._reasons.setdefault(client, []).append(opinion.reasons[0])
            for score in opinion.scores:
                self._past.setdefault(client, {}).setdefault(score.detector, []).append(score.value)

    def culprits(self) -> list[Culprit]:
        """Return those found out, the surest first."""
        counts = sorted(len(self._reasons.get(client, ())) for client in self._seen)
        usual = TIMES_OTHERS * (counts[len(counts) // 2] + 1) if counts else 0
        found = []
        for client, reasons in self._reasons.items():
            if len(reasons) >= max(LEAST_ROUNDS, SHARE * self._seen[client], usual):
                named = tuple(reason for reason, _ in Counter(reasons).most_common(3))
                found.append(Culprit(client, self._seen[client], len(reasons), named, self._first[client]))
        return sorted(found, key=lambda culprit: (-culprit.refused / culprit.rounds, culprit.client))


@dataclass(frozen=True, slots=True)
class JudgedRound:
    """What the log keeps of a round's cohort; `metrics` as clients told them."""

    round: int
    clients: tuple[str, ...]
    features: tuple[Features, ...]
    metrics: tuple[Mapping[str, float], ...] = ()

    def without(self, names: Collection[str]) -> JudgedRound:
        """Return the round without some clients."""
        kept = [at for at, client in enumerate(self.clients) if client not in names]
        metrics = tuple(self.metrics[at] for at in kept) if self.metrics else ()
        return JudgedRound(self.round, tuple(self.clients[at] for at in kept), tuple(self.features[at] for at in kept), metrics)


def find_culprits(rounds: Iterable[JudgedRound]) -> list[Culprit]:
    """Judge rounds, oldest first, and again without those found, until nobody new is; return all that were found."""
    every, found = list(rounds), dict[str, Culprit]()
    for _ in range(MOST_PASSES):
        hindsight = Hindsight()
        for judged in every:
            left = judged.without(found)
            if left.clients:
                hindsight.take(left.round, left.clients, left.features, left.metrics)
        new = {culprit.client: culprit for culprit in hindsight.culprits()}
        if not new:
            break
        found |= new
    return list(found.values())
