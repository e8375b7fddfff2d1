"""Rounds chosen at random from a long log, rebuilt in every way there is: equal digests, all of them, or exit code 1.

The log has 1,000 rounds with FedAdam, so that states have slots; some rounds are void, some built on earlier ones than the
last, a snapshot lies at every 100th. What a digest is compared with was taken when the round was made, before anything was
written.

    python benchmarks/rebuilds.py [--rounds 1000] [--chosen 1000] [--seed N] [--part 1/1] [--json]

A seed gives the same log and the same rounds, so that a long run may be made in parts: ``--part 2/3`` rebuilds every third.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._written import Way, WrittenLog, above, below
from refold.state.model_state import ModelState
from refold.state.optimizers import FedAdam


def ways(log: WrittenLog, chance: random.Random) -> dict[str, Way]:
    """Return every way to a round."""
    plain, merged = log.history(merged=False), log.history()
    snapshots = sorted({0, *plain.snapshots})
    every = sorted(log.digests)

    def held(round_: int) -> ModelState:
        return merged.rebuild(round_, held=merged.rebuild(chance.choice(every)))

    return {
        "from genesis, single steps": lambda r: plain.rebuild(r, start=0, verify=False),
        "from genesis, merged steps": lambda r: merged.rebuild(r, start=0, verify=False),
        "from the snapshot before, single steps": lambda r: plain.rebuild(r, start=below(snapshots, r), verify=False),
        "from the snapshot before, merged steps": lambda r: merged.rebuild(r, start=below(snapshots, r), verify=False),
        "from the snapshot after, single steps": lambda r: plain.rebuild(r, start=above(snapshots, r), verify=False),
        "from the snapshot after, merged steps": lambda r: merged.rebuild(r, start=above(snapshots, r), verify=False),
        "fewest steps from either side": lambda r: merged.rebuild(r, verify=False),
        "fewest bytes from either side": lambda r: merged.rebuild(r, verify=False, least="bytes"),
        "from a state that is held": held,
        "on three threads": lambda r: merged.rebuild(r, verify=False, threads=3),
    }


def compare(log: WrittenLog, chosen: list[int], chance: random.Random) -> dict[str, dict[str, float]]:
    """Return for each way how many rounds it rebuilt, how many digests were equal, and the milliseconds a round."""
    found = {}
    for name, way in ways(log, chance).items():
        began_s = time.process_time()
        equal = sum(way(round_).digest == log.digests[round_] for round_ in chosen)
        each_ms = 1e3 * (time.process_time() - began_s) / len(chosen)
        found[name] = {"rebuilt": len(chosen), "equal": equal, "milliseconds": round(each_ms, 2)}
    return found


def main() -> int:
    """Rebuild, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--chosen", type=int, default=1000, help="rounds, chosen at random, genesis and the newest among them")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--part", default="1/1", help="which of so many parts of the rounds chosen")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    chance = random.Random(options.seed)
    log = WrittenLog(options.rounds, FedAdam(), side=12, every=max(1, options.rounds // 10), kept=20, seed=options.seed)
    chosen = [0, options.rounds, *chance.choices(range(options.rounds + 1), k=max(0, options.chosen - 2))]
    part, parts = map(int, options.part.split("/"))
    found = compare(log, chosen[part - 1 :: parts], chance)
    log.federation.close()
    if options.json:
        print(json.dumps({"seed": options.seed, "rounds": options.rounds, "ways": found}, indent=2))
    else:
        for name, counts in found.items():
            print(f"{name:<42}{counts['equal']:>6} of {counts['rebuilt']} equal  {counts['milliseconds']:8.2f} ms a round")
    return 0 if all(counts["equal"] == counts["rebuilt"] for counts in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
