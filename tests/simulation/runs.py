"""One seed's run: its outcome, what was reached, and its trace."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.simulation.bugs import planted
from tests.simulation.judgement import judge
from tests.simulation.kit import Kit, simulated
from tests.simulation.scenario import Scenario, scenario
from tests.simulation.scheduler import Stuck
from tests.simulation.watching import watched
from tests.simulation.world import World


@dataclass
class Outcome:
    """What became of a run.

    Parameters
    ----------
    violations
        What did not hold.
    rare
        States that were reached, counted.
    digest
        Stands for the whole history.
    lines
        The trace, where it was asked for.
    """

    seed: int
    violations: list[str]
    rare: Counter[str]
    digest: str
    steps: int
    updates: int
    rounds: int
    faults: int
    unknown: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)


def run_seed(seed: int, *, bug: str = "", kept: set[int] | None = None, verbose: bool = False) -> Outcome:
    """Run a seed.

    Parameters
    ----------
    bug
        The planted bug to run with.
    kept
        The numbers of the faults that are to happen; all if None.
    """
    found = scenario(seed)
    return run_scenario(found if kept is None else found.only(kept), bug=bug, verbose=verbose)


def run_scenario(found: Scenario, *, bug: str = "", verbose: bool = False) -> Outcome:
    """Run a scenario from its beginning to its judgement."""
    world = World(found, kit(), verbose=verbose)
    with watched(world):
        with simulated(world), planted(bug):
            try:
                world.run()
            except Stuck as stuck:
                world.violations.append(f"I11: {stuck}")
        findings = judge(world)
    world.rare["stale commit skipped"] += findings.stale
    world.rare["void round"] += findings.voids
    world.rare["regridded"] += findings.regrids
    world.rare["counter at its end"] += findings.counters_stayed
    for reason, count in findings.reasons.items():
        world.rare[f"refused: {reason}"] += count
    for fault in world.plot.happened:
        world.rare[f"fault: {fault.what}"] += 1
        if fault.point.endswith("/Commit") and fault.what in ("lose-ack", "lose-send"):
            there = "there" if fault.what == "lose-ack" else "not there"
            world.rare[f"lost acknowledgement: the commit was {there}"] += 1
    return Outcome(
        found.seed,
        findings.violations,
        world.rare,
        world.digest(),
        world.scheduler.steps,
        findings.updates,
        findings.rounds,
        len(world.plot.happened),
        findings.unknown,
        world.lines or [],
    )


@cache
def kit() -> Kit:
    """Return this process's keys, in a folder in memory where there is one."""
    memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(prefix="refold-simulation-", dir=memory if memory.is_dir() else None)
    _folders.append(folder)
    return Kit(Path(folder.name))


_folders: list[tempfile.TemporaryDirectory[str]] = []
"""Kept until the process ends."""
