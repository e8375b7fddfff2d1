"""Judging rounds that were made long ago: who would detection have refused, again and again?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from refold.consumers.detectors import Cohort, Ensemble
from refold.consumers.detectors.recent import Recent
from refold.consumers.features import Features

LEAST_ROUNDS = 3
SHARE = 0.5
"""Who is found out in so many rounds, and in this share of those that it took part in, is a culprit: an honest client is
refused in some per cent of its rounds at the ensemble's set rate, so half of three or more are no accident."""


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
        found = []
        for client, reasons in self._reasons.items():
            if len(reasons) >= max(LEAST_ROUNDS, SHARE * self._seen[client]):
                named = tuple(reason for reason, _ in Counter(reasons).most_common(3))
                found.append(Culprit(client, self._seen[client], len(reasons), named, self._first[client]))
        return sorted(found, key=lambda culprit: (-culprit.refused / culprit.rounds, culprit.client))
