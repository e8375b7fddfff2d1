"""``python -m tests.fuzz``: fuzz the decoders, one process each."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import SystemRandom
from typing import Any

from tests.fuzz import corpus
from tests.fuzz.engine import Report, fuzz
from tests.fuzz.table import decoders

ALONE = "--alone"
"""What this program tells the processes that it starts."""


def main() -> int:
    """Run, print a line for each decoder, and return 1 if anything was found."""
    said = _arguments()
    names = [name for name in decoders() if not said.decoder or any(name.startswith(wanted) for wanted in said.decoder)]
    if said.list or not names:
        print(*names, sep="\n")
        return 0 if said.list else 2
    if said.seed is None:
        said.seed = SystemRandom().randrange(2**32)
    if said.alone:
        return _run(said.decoder[0], said)
    print(f"seed {said.seed}, {said.inputs:,} inputs each for {len(names)} decoders, {said.jobs} at a time", file=sys.stderr)
    codes = []
    for code, told in _processes(names, said):
        codes.append(code)
        print(told if said.json else _line(json.loads(told)), flush=True)
    return int(any(codes))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="inputs for each decoder (20,000)")
    parser.add_argument("--decoder", action="append", help="only those whose names begin so; may be given again")
    parser.add_argument("--seed", type=int, help="the same inputs again")
    parser.add_argument("--jobs", type=int, default=1, help="decoders at a time (1)")
    parser.add_argument("--keep", action="store_true", help="keep the smallest input of each outcome in the corpus")
    parser.add_argument("--json", action="store_true", help="an object for each decoder")
    parser.add_argument("--list", action="store_true", help="name the decoders")
    parser.add_argument(ALONE, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _processes(names: list[str], said: argparse.Namespace) -> Iterator[tuple[int, str]]:
    """Fuzz each in a process of its own: each has its own peak of memory, and one that dies is told of like any defect."""
    more = ["--keep"] if said.keep else []

    def alone(name: str) -> tuple[int, str]:
        words = ["--decoder", name, "--inputs", str(said.inputs), "--seed", str(said.seed), ALONE, *more]
        done = subprocess.run([sys.executable, "-m", "tests.fuzz", *words], stdout=subprocess.PIPE, text=True, check=False)
        if not done.stdout:
            return 1, json.dumps({"name": name, "defects": [f"its process ended with {done.returncode}"]})
        return done.returncode, done.stdout.strip()

    with ThreadPoolExecutor(said.jobs) as pool:
        yield from pool.map(alone, names)


def _run(name: str, said: argparse.Namespace) -> int:
    report = fuzz(decoders()[name], said.inputs, said.seed)
    for found in report.defects:
        path = corpus.keep(name, "defect", found.value)
        print(f"{name}: {found.what}\n    kept as {path}", file=sys.stderr, flush=True)
    for outcome, value in report.samples.items() if said.keep else ():
        corpus.keep(name, outcome, value)
    print(json.dumps(_object(report, said.seed)), flush=True)
    return int(not report.is_sound)


def _object(report: Report, seed: int) -> dict[str, Any]:
    return {
        "name": report.name,
        "seed": seed,
        "inputs": report.inputs,
        "outcomes": dict(report.outcomes.most_common()),
        "taken": round(report.taken, 4),
        "slowest_ms": round(report.slowest_s * 1000, 2),
        "grown_mib": round(report.grown_bytes / 2**20, 1),
        "took_s": round(report.took_s, 1),
        "defects": [found.what for found in report.defects],
        "lacking": sorted(report.lacking),
    }


def _line(told: dict[str, Any]) -> str:
    if "inputs" not in told:
        return f"{told['name']:<24} DEFECT: {told['defects'][0]}"
    line = (
        f"{told['name']:<24} {told['inputs']:>9,} inputs  {told['taken']:>6.1%} taken  slowest {told['slowest_ms']:>6.1f} ms  "
        f"grew {told['grown_mib']:>5.1f} MiB  {told['took_s']:>7.1f} s"
    )
    if told["defects"]:
        line += f"  DEFECTS {len(told['defects'])}"
    if told["lacking"]:
        line += f"  NEVER REACHED {', '.join(told['lacking'])}"
    return f"{line}\n    {', '.join(f'{outcome} {count:,}' for outcome, count in told['outcomes'].items())}"


if __name__ == "__main__":
    sys.exit(main())
