"""How many rounds a bad client attacks until its first update lies in quarantine, and until people are called.

Detection quarantines updates, not clients: whoever is refused is kept out of that round. What marks a client is its reputation,
which calls an operator below `POOR`. Rounds are those in which the client took part, counted from its first attack.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refold.consumers.reputation import FIRST, POOR, after_acceptance, after_refusal

NEVER = float("inf")
REFUSED = ("pattern",)
"""Any reason that blames: all those of detectors do."""


@dataclass
class Client:
    """One client of one federation, whose updates are judged one after another."""

    is_bad: bool
    sent: int = 0
    first_refused: float = NEVER
    called: float = NEVER
    reputation: float = FIRST

    def judged(self, *, refused: bool) -> None:
        """Take in a verdict."""
        self.sent += 1
        self.reputation = after_refusal(self.reputation, REFUSED) if refused else after_acceptance(self.reputation)
        if refused:
            self.first_refused = min(self.first_refused, self.sent)
        if self.reputation < POOR:
            self.called = min(self.called, self.sent)


@dataclass
class Stops:
    """What came of the clients of one or many federations."""

    first_refused: list[float] = field(default_factory=list)
    called: list[float] = field(default_factory=list)
    honest: int = 0
    honest_called: int = 0

    def take(self, clients: Iterable[Client]) -> None:
        """Take in the clients of a federation that is over."""
        for client in clients:
            if client.is_bad:
                self.first_refused.append(client.first_refused)
                self.called.append(client.called)
            else:
                self.honest += 1
                self.honest_called += client.called < NEVER

    def add(self, other: Stops) -> None:
        """Take in those of other federations."""
        self.first_refused += other.first_refused
        self.called += other.called
        self.honest += other.honest
        self.honest_called += other.honest_called

    def row(self) -> dict[str, Any]:
        """Return medians and 95 % quantiles, None where so many are never stopped, and the share that never is."""
        found: dict[str, Any] = {"honest_called": self.honest_called / max(self.honest, 1)}
        for name, values in (("rounds", self.first_refused), ("called", self.called)):
            if values:
                found[f"{name}_median"] = _finite(np.quantile(values, 0.5, method="higher"))
                found[f"{name}_p95"] = _finite(np.quantile(values, 0.95, method="higher"))
                found[f"{name}_never"] = float(np.mean(np.array(values) == NEVER))
        return found


def _finite(value: Any) -> float | None:
    return float(value) if value < NEVER else None


def text_of(value: float | None) -> str:
    """Return a number of rounds as a table shows it."""
    return "never" if value is None else f"{value:.0f}"
