"""The last rounds as detectors that learn or look back see them: a bounded fold over verdicts, the same at every successor."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from refold.consumers.detectors.contract import Cohort, Floats
from refold.consumers.detectors.looks import Look, look_of
from refold.consumers.detectors.traits import LEAST_COHORT, NAMES, table
from refold.consumers.features import Features

ROUNDS = 24
LEARNED = 12
"""Who learns from what was accepted learns from the last rounds of these."""

UPDATES = 1024
"""So many updates are remembered at most, some 6 MB of features; the round of the newest is always whole."""


@dataclass(slots=True)
class _Round:
    """One round's judged updates by client; their traits are computed when they are first asked for."""

    accepted: dict[str, bool] = field(default_factory=dict)
    features: dict[str, Features | bytes] = field(default_factory=dict)
    _table: tuple[dict[str, int], Floats] | None = None
    _look: Look | None = None

    def take(self, client: str, features: Features | bytes, *, accepted: bool) -> None:
        self.accepted[client], self.features[client] = accepted, features
        self._table = self._look = None

    def features_of(self, client: str) -> Features:
        found = self.features[client]
        if isinstance(found, bytes):
            found = self.features[client] = Features.unpack(found)
        return found

    def table(self) -> tuple[dict[str, int], Floats]:
        """Return the clients' traits and whose is which; nothing of a round that is too small for any."""
        if self._table is None:
            # By name, so that whoever folds the same verdicts in whatever order adds the same numbers up.
            clients = sorted(self.features)
            if len(clients) >= LEAST_COHORT:
                rows = table(Cohort(0, tuple(clients), tuple(map(self.features_of, clients))))
                self._table = {client: at for at, client in enumerate(clients)}, rows
            else:
                self._table = {}, np.zeros((0, len(NAMES)))
        return self._table

    def look(self) -> Look | None:
        """Return the round as later ones look back at it; None of one that is too small."""
        if self._look is None and len(self.features) >= LEAST_COHORT:
            clients = sorted(self.features)
            self._look = look_of(clients, [self.features_of(client) for client in clients])
        return self._look


@dataclass(slots=True)
class Recent:
    """Features of the last rounds' judged updates, what was rejected among them."""

    rounds: OrderedDict[int, _Round] = field(default_factory=OrderedDict)
    version: int = 0
    """Changes with whatever is taken in."""
    _count: int = 0

    def take(self, round_: int, client: str, features: Features | bytes, *, accepted: bool) -> None:
        """Remember a judged update; features may be packed."""
        found = self.rounds.setdefault(round_, _Round())
        self._count += client not in found.features
        found.take(client, features, accepted=accepted)
        self.version += 1
        while len(self.rounds) > ROUNDS or (len(self.rounds) > 1 and self._count > UPDATES):
            self._count -= len(self.rounds.popitem(last=False)[1].features)

    def view(self, round_: int) -> Past:
        """Return what a judgement of this round may look back at."""
        return Past(self, round_)


class Past:
    """What was judged for rounds before this one, to be looked at and not changed."""

    def __init__(self, recent: Recent, round_: int) -> None:
        self.round = round_
        self.version = recent.version
        # Newest first; only whole rounds, since what is judged now is in none of them.
        self._rounds = tuple(found for at, found in reversed(recent.rounds.items()) if at < round_)

    def cohorts(self) -> Iterator[tuple[Cohort, npt.NDArray[np.bool_]]]:
        """Yield each round's updates and which of them were accepted, newest first."""
        for found in self._rounds:
            clients = sorted(found.features)
            features = tuple(map(found.features_of, clients))
            yield Cohort(0, tuple(clients), features), np.array([found.accepted[client] for client in clients], bool)

    def tables(self) -> list[tuple[dict[str, int], Floats]]:
        """Return each round's rows of traits, and whose is which, newest round first."""
        return [found.table() for found in self._rounds]

    def looks(self) -> list[Look]:
        """Return the rounds to look back at, newest first."""
        return [look for look in self.every_look() if look is not None]

    def every_look(self) -> list[Look | None]:
        """Return the same for each round, None for those too small to be looked back at."""
        return [found.look() for found in self._rounds]

    def last(self, client: str) -> Features | None:
        """Return a client's last update, whatever its verdict."""
        return next((found.features_of(client) for found in self._rounds if client in found.features), None)
