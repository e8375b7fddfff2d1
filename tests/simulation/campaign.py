"""Many seeds, on several processors: what was violated, what was reached, and what never was."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from tests.simulation.bugs import BUGS, Bug
from tests.simulation.runs import Outcome, run_seed

MUST_HAPPEN = (
    "stale commit skipped",
    "hole in checked found",
    "detection stood back",
    "aggregation stood back",
    "lost acknowledgement: the commit was there",
    "lost acknowledgement: the commit was not there",
    "late record of a dead writer",
    "late record of a writer that gave up",
    "late commit was taken",
    "late commit was skipped",
    "record repeated",
    "place moved between the living",
    "place taken over from the dead",
    "thawed past its lease",
    "fenced",
    "lost tail refused",
    "client lost its disk",
    "client never came back",
    "client kept an update that the bus did not take",
    "outbox full",
    "group offsets moved",
    "cut off",
    "void round",
    "regridded",
    "counter at its end",
    "commit in pieces",
    "stale update accepted",
    "enrolled by a token",
    "pruned",
    "snapshot damaged",
    "step damaged",
    "step derived again",
    "sparse update accepted",
    "rolled back",
    "rolled back across a rollback",
    "refused: chunk-digest",
    "refused: duplicate",
    "refused: equivocation",
    "refused: federation-ended",
    "refused: form",
    "refused: missing-chunk",
    "refused: not-selected",
    "refused: one-per-round",
    "refused: poison",
    "refused: session-superseded",
    "refused: signature",
    "refused: stale",
    "refused: abandoned-branch",
    "refused: wrong-base",
)
"""Rare states that a block of seeds must have reached, or it proves less than it says."""

ENOUGH_SEEDS = 3000
"""In a block of so many every rare state is reached; in a smaller one its absence says nothing."""


@dataclass
class Report:
    """What became of a block of seeds.

    Parameters
    ----------
    failed
        The outcomes with violations.
    """

    seeds: int = 0
    wall_s: float = 0.0
    steps: int = 0
    updates: int = 0
    rounds: int = 0
    faults: int = 0
    failed: list[Outcome] = field(default_factory=list)
    rare: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Take a seed's outcome in."""
        self.seeds += 1
        self.steps += outcome.steps
        self.updates += outcome.updates
        self.rounds += outcome.rounds
        self.faults += outcome.faults
        self.rare.update(outcome.rare)
        self.unknown.update(outcome.unknown)
        if outcome.violations:
            self.failed.append(outcome)

    @property
    def never(self) -> list[str]:
        """The rare states that should have been reached and were not."""
        return [state for state in MUST_HAPPEN if not self.rare[state]]

    @property
    def is_good(self) -> bool:
        """Whether nothing was violated, and, of enough seeds, everything was reached."""
        return not self.failed and (self.seeds < ENOUGH_SEEDS or not self.never)

    def __str__(self) -> str:
        done = f"{self.faults} faults, {self.updates} updates, {self.rounds} rounds, {self.steps} steps"
        lines = [f"{self.seeds} seeds in {self.wall_s:.0f} s: {len(self.failed)} with violations; {done}"]
        lines += [f"  {count:8} {state}" for state, count in sorted(self.rare.items())]
        lines += [f"  {count:8} events unknown to the checker: {kind}" for kind, count in self.unknown.items()]
        if self.seeds >= ENOUGH_SEEDS:
            lines += [f"  NEVER    {state}" for state in self.never]
        return "\n".join(lines)


def run_seeds(
    seeds: Iterable[int],
    *,
    jobs: int = 1,
    bug: str = "",
    is_enough: Callable[[Report], bool] = lambda _: False,
) -> Report:
    """Run seeds and report.

    Parameters
    ----------
    is_enough
        Asked after each seed, with the report as far as it goes.
    """
    report, began_s = Report(), time.monotonic()
    run = partial(run_seed, bug=bug)
    # Each process makes its own keys; what they are does not depend on which seeds it is given.
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs) if jobs > 1 else _Here() as pool:
        for outcome in pool.imap_unordered(run, seeds, chunksize=20):
            report.add(outcome)
            report.wall_s = time.monotonic() - began_s
            if is_enough(report):
                break
    report.failed.sort(key=lambda outcome: outcome.seed)
    return report


def catch(name: str, *, jobs: int = 1) -> tuple[int, str] | None:
    """Run with a planted bug until the checker says what it should of a seed that is clean without the bug.

    Returns the first such seed and what was said, or None.
    """
    bug = BUGS[name]
    report = run_seeds(bug.seeds, jobs=jobs, bug=name, is_enough=lambda report: bool(_caught(report, bug)))
    return min((found for found in _caught(report, bug) if not run_seed(found[0]).violations), default=None)


def _caught(report: Report, bug: Bug) -> list[tuple[int, str]]:
    pairs = [(outcome.seed, violation) for outcome in report.failed for violation in outcome.violations]
    return [(seed, violation) for seed, violation in pairs if any(part in violation for part in bug.said)]


class _Here:
    """A pool of this process alone."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to end."""

    def imap_unordered(self, run: Callable[[int], Outcome], seeds: Iterable[int], chunksize: int) -> Iterable[Outcome]:
        """Run one after the other."""
        return map(run, seeds)


def hashes_are_ordered() -> bool:
    """Whether sets of names have the same order in every process, which a history that repeats needs."""
    return os.environ.get("PYTHONHASHSEED") == "0"
