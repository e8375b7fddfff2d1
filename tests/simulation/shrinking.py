"""From a seed that fails to the fewest faults with which it still does."""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.faults import Fault
from tests.simulation.runs import Outcome, run_seed
from tests.simulation.scenario import scenario


@dataclass(frozen=True)
class Shrunk:
    """A smaller run that fails, too.

    Parameters
    ----------
    kept
        The numbers of the faults that it needs.
    outcome
        With its trace.
    runs
        How many runs it took to find.
    """

    kept: tuple[int, ...]
    faults: tuple[Fault, ...]
    outcome: Outcome
    runs: int


def shrink(seed: int, *, bug: str = "") -> Shrunk:
    """Leave out fault after fault as long as the run still fails, whatever it fails by."""
    faults = scenario(seed).faults
    kept, runs = set(range(len(faults))), 1
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for number in sorted(kept):
            runs += 1
            if run_seed(seed, bug=bug, kept=kept - {number}).violations:
                kept.discard(number)
                is_smaller = True
    outcome = run_seed(seed, bug=bug, kept=kept, verbose=True)
    return Shrunk(tuple(sorted(kept)), tuple(faults[number] for number in sorted(kept)), outcome, runs)


def story(seed: int, shrunk: Shrunk, *, bug: str = "") -> str:
    """Tell a failure: the seed, what was violated, the faults that it takes, the trace, and how to see it again."""
    only = ",".join(map(str, shrunk.kept)) or "none"
    again = f"python -m tests.simulation --seed {seed} --only {only}" + (f" --bug {bug}" if bug else "")
    lines = [f"seed {seed} FAILED ({shrunk.runs} runs to find the fewest faults)", *shrunk.outcome.violations, "", "faults:"]
    lines += [f"  {number}: {fault}" for number, fault in zip(shrunk.kept, shrunk.faults, strict=True)]
    lines += ["", "trace:", *(line for line in shrunk.outcome.lines if "sim.health/" not in line), "", f"again: {again}"]
    return "\n".join(lines)
