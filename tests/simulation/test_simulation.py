"""Many simulated federations, and proof that the simulation repeats itself, finds what is planted, and tells what it found.

Everything runs in processes of its own, started as a user would start them.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.bugs import BUGS
from tests.simulation.campaign import ENOUGH_SEEDS

SEEDS = int(os.environ.get("REFOLD_SIMULATION_SEEDS", "5000"))
"""How many seeds a test run tries; below `ENOUGH_SEEDS` nothing is said of rare states."""

DIGESTS = """
import sys
from tests.simulation.runs import run_seed
for seed in map(int, sys.argv[1].split(",")):
    print(seed, run_seed(seed).digest)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with sets in one order."""
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the simulation's program."""
    return python("-m", "tests.simulation", *arguments)


@pytest.mark.slow
def test_no_seed_violates_an_invariant_and_every_rare_state_is_reached() -> None:
    done = simulate("--seeds", f"0:{SEEDS}", "--jobs", "2")
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_a_seed_has_one_history_in_every_process_whatever_ran_before_it() -> None:
    seeds = [3, 11, 42, 125]
    forwards = python("-c", DIGESTS, ",".join(map(str, seeds)))
    backwards = python("-c", DIGESTS, ",".join(map(str, reversed(seeds))))
    assert forwards.returncode == backwards.returncode == 0, forwards.stderr + backwards.stderr
    assert sorted(forwards.stdout.splitlines()) == sorted(backwards.stdout.splitlines())
    assert len({line.split()[1] for line in forwards.stdout.splitlines()}) == len(seeds)


@pytest.mark.slow
def test_every_planted_bug_is_caught_within_its_seeds() -> None:
    done = simulate("--bugs", "--jobs", "2")
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.count("caught by seed") == len(BUGS)
    assert max(bug.seeds[-1] for bug in BUGS.values()) < ENOUGH_SEEDS  # Without the bugs the same seeds are run, and are clean.


def test_a_failure_tells_its_seed_the_faults_it_takes_its_trace_and_how_to_see_it_again() -> None:
    done = simulate("--seeds", "0:60", "--bug", "previous_hash_unchecked", "--failures", "1")
    assert done.returncode == 1, done.stderr
    again = next(line for line in done.stdout.splitlines() if line.startswith("again: "))
    assert " FAILED" in done.stdout
    assert "\nfaults:\n" in done.stdout
    assert "\ntrace:\n" in done.stdout
    words = again.removeprefix("again: python -m tests.simulation ").split()
    assert words[0] == "--seed"
    assert words[-2:] == ["--bug", "previous_hash_unchecked"]
    repeated = simulate(*words, "--quiet")
    assert repeated.returncode == 1, repeated.stdout + repeated.stderr
    assert simulate(words[0], words[1], "--quiet").returncode == 0
