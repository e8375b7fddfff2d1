"""`python -m tests.simulation`: run a seed with its trace, or a block of seeds."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulation.bugs import BUGS
from tests.simulation.campaign import Report, catch, hashes_are_ordered, run_seeds
from tests.simulation.runs import run_seed
from tests.simulation.scenario import scenario
from tests.simulation.shrinking import shrink, story

TELL_EVERY_S = 60.0


def main() -> int:
    """Do what the command line asks for; return 1 if anything was violated or a rare state was never reached."""
    arguments = _parser().parse_args()
    if not hashes_are_ordered():
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], os.environ | {"PYTHONHASHSEED": "0"}
        )
    if arguments.bugs:
        return _bugs(arguments)
    if arguments.seeds is not None:
        return _many(arguments)
    return _one(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="run this one and show its trace")
    parser.add_argument("--seeds", metavar="A:B", help="run those from A to B, B left out")
    parser.add_argument("--bug", default="", choices=("", *BUGS), help="plant this bug")
    parser.add_argument("--bugs", action="store_true", help="plant every bug, one after the other, until it is caught")
    parser.add_argument("--jobs", type=int, default=1, help="processes (with --seeds)")
    parser.add_argument("--only", help="with --seed: of its faults only these numbers, or none")
    parser.add_argument("--quiet", action="store_true", help="with --seed: no trace, one line")
    parser.add_argument("--failures", type=int, default=3, help="with --seeds: stop after so many")
    return parser


def _one(arguments: argparse.Namespace) -> int:
    kept = None
    if arguments.only is not None:
        kept = {int(number) for number in arguments.only.split(",") if number not in ("", "none")}
    outcome = run_seed(arguments.seed, bug=arguments.bug, kept=kept, verbose=not arguments.quiet)
    if not arguments.quiet:
        print(scenario(arguments.seed))
        print(*outcome.lines, sep="\n")
        print(*(f"{count:6} {state}" for state, count in sorted(outcome.rare.items())), sep="\n")
    print(f"seed {outcome.seed}: {outcome.steps} steps, {outcome.faults} faults, {outcome.updates} updates, ", end="")
    print(f"{outcome.rounds} rounds, history {outcome.digest}")
    print(*outcome.violations, sep="\n", end="\n" if outcome.violations else "")
    return 1 if outcome.violations else 0


def _many(arguments: argparse.Namespace) -> int:
    first, _, end = arguments.seeds.partition(":")
    told_s = time.monotonic()

    def is_enough(report: Report) -> bool:
        nonlocal told_s
        if time.monotonic() - told_s > TELL_EVERY_S:
            told_s = time.monotonic()
            print(f"{report.seeds} seeds, {len(report.failed)} failed, {report.wall_s:.0f} s", file=sys.stderr, flush=True)
        return len(report.failed) >= arguments.failures

    seeds = range(int(first or 0), int(end))
    report = run_seeds(seeds, jobs=arguments.jobs, bug=arguments.bug, is_enough=is_enough)
    print(report)
    for outcome in report.failed[:3]:
        print(f"\n{story(outcome.seed, shrink(outcome.seed, bug=arguments.bug), bug=arguments.bug)}")
    for outcome in report.failed[3:]:
        print(f"seed {outcome.seed} FAILED: {outcome.violations[0]}")
    return 0 if report.is_good else 1


def _bugs(arguments: argparse.Namespace) -> int:
    """Plant each bug in seed after seed; return 1 if one is not caught within the seeds that it may take."""
    missed = 0
    for name, bug in BUGS.items():
        caught = catch(name, jobs=arguments.jobs)
        missed += caught is None
        word = f"caught by seed {caught[0]}: {caught[1].splitlines()[0]}" if caught else f"NOT CAUGHT within {bug.within} seeds"
        print(f"{name:32} {word}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
