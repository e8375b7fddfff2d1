"""The demonstration with many seeds: is the defended model as good as the one without faults, and is nobody turned away?

For each seed the demonstration is run as people run it (``refold demo --json``). With faults, ``gap`` is final accuracy minus
that of the clean run: at least −0.02 is asked. With ``--faults none``, ``refused`` is the share of updates rejected: at most
1 % is asked. Seconds are by the wall, CPU seconds of all processes.

    python benchmarks/demo_seeds.py [--seeds N] [--first-seed N] [--faults all|none] [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

LEAST_GAP, MOST_REFUSED = -0.02, 0.01


def run(seed: int, faults: str, folder: Path) -> dict[str, Any]:
    """Run one demonstration and return its figures."""
    before = _cpu_s()
    command = [sys.executable, "-m", "refold", "demo", "--json", "--seed", str(seed), "--faults", faults, "--out", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True)
    report = json.loads(done.stdout)
    updates = report["updates"]
    caught = Counter(fault["kind"] for fault in report["faults"] if fault["caught"])
    missed = Counter(fault["kind"] for fault in report["faults"] if not fault["caught"])
    return {
        "seed": seed,
        "accuracy": report["accuracy"],
        "clean": report["accuracy_clean"],
        "undefended": report["accuracy_undefended"],
        "gap": round(report["accuracy"] - report["accuracy_clean"], 4),
        "ratio": round(report["accuracy"] / report["accuracy_clean"], 4),
        "refused": sum(updates["rejected"].values()) / updates["received"],
        "rejected": updates["rejected"],
        "caught": caught.total(),
        "missed": dict(missed),
        "equal": all(one["equal"] for one in report["rebuilt"]),
        "server_kills": report["server_kills"],
        "seconds": report["seconds"],
        "cpu_seconds": round(_cpu_s() - before, 1),
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def passes(row: dict[str, Any], faults: str) -> bool:
    """Whether a row is as asked."""
    good = row["gap"] >= LEAST_GAP if faults == "all" else row["refused"] <= MOST_REFUSED
    return bool(good and row["equal"])


def show(row: dict[str, Any], faults: str) -> None:
    """Print one row."""
    verdict = f"{'ok' if passes(row, faults) else 'NOT AS ASKED'} {row['missed'] or ''}"
    print(
        f"{row['seed']:>5}{row['accuracy']:>10.3f}{row['clean']:>8.3f}{row['gap']:>+8.3f}{row['ratio']:>8.3f}"
        f"{row['undefended']:>12.3f}{row['refused']:>9.1%}{row['caught']:>8}{sum(row['missed'].values()):>8}"
        f"{row['seconds']:>9.1f}{row['cpu_seconds']:>7.1f}  {verdict}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--faults", choices=("all", "none"), default="all")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.json:
        print(f"{'seed':>5}{'accuracy':>10}{'clean':>8}{'gap':>8}{'ratio':>8}{'undefended':>12}{'refused':>9}", end="")
        print(f"{'caught':>8}{'missed':>8}{'seconds':>9}{'CPU':>7}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            rows.append(run(seed, options.faults, Path(folder) / "out"))
            if not options.json:
                show(rows[-1], options.faults)
    good = all(passes(row, options.faults) for row in rows)
    if options.json:
        print(json.dumps({"faults": options.faults, "as_asked": good, "seeds": rows}, indent=2))
    else:
        print(f"worst gap {min(row['gap'] for row in rows):+.3f}, most refused {max(row['refused'] for row in rows):.1%}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
