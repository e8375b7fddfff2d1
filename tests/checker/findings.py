"""What the checker is given, and what it finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.checker.chain import Kept, Step


@dataclass
class Log:
    """A federation's log as it was read.

    Parameters
    ----------
    accepted, rounds
        The commits on each chain. Read `rounds` first: what it covers must then be in `accepted`.
    sent
        Every event record that ever lay in `updates`.
    deltas, steps
        The chunks of these topics by digest.
    stale
        Commits of `accepted` that extend nothing.
    """

    accepted: list[Step]
    rounds: list[Step]
    sent: list[Kept]
    deltas: Mapping[bytes, bytes]
    steps: Mapping[bytes, bytes]
    stale: int = 0


@dataclass
class Findings:
    """What the checker found.

    Parameters
    ----------
    stale
        Commits of `accepted` that extend nothing.
    states
        Parameters of each round, folded by the checker's own arithmetic.
    settled
        Everything sent has its verdict, every verdict is covered by `rounds`.
    reasons
        How often each reason was given.
    refused
        Digests of updates that were refused, repeats of others left out.
    counters_stayed
        How many counters came to the end of their dtype.
    unknown
        How often each kind of event was met that the checker does not know.
    """

    violations: list[str] = field(default_factory=list)
    stale: int = 0
    updates: int = 0
    accepted: int = 0
    rounds: int = 0
    voids: int = 0
    regrids: int = 0
    counters_stayed: int = 0
    rollbacks: int = 0
    settled: bool = False
    reasons: Counter[str] = field(default_factory=Counter)
    refused: set[bytes] = field(default_factory=set)
    states: dict[int, list[Any]] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)

    def demand(self, holds: bool, what: str) -> None:
        """Note a violation unless this holds."""
        if not holds:
            self.violations.append(what)
