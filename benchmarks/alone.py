"""Each learned detector alone: how well its scores rank, beside its textbook form and beside the plain z over the same columns.

A fairly drawn sample of the grid of `detection.py` (the model moves by honest updates alone): on each kind of data every attack
is met once, in a way of dealing and a crowd that are drawn so that all six meet nearly as many attacks; 30 % are bad from the
first round on. With nobody bad all six are run. A detector sees what itself accepted before; its scores count from round 8 on,
as all judges' do. ``tree, this attack left out`` is fitted without the injected fault that is most like the attack it is then
asked about.

    python benchmarks/alone.py [--kinds digits-mlp,cancer-mlp] [--judges "forest;tree"] [--first-seed N] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from _alone import ALONE, DEEP, FIRST, INJECTED_LIKE
from _attacks import ATTACKS
from detection import ALPHAS, CROWDS, auc, rounds_of

from _federation import Setting, course_of  # isort: skip

ROUNDS, BAD = 12, 0.3
KINDS = ("digits-mlp", "cancer-mlp", "digits-cnn")
LEFT_OUT = "tree, this attack left out"


def sample(options: argparse.Namespace, kind: str) -> Iterator[tuple[Setting, str]]:
    """Yield what is run on a kind of data: settings, each with an attack or "" for none."""
    data, model = kind.rsplit("-", 1)
    attacks = options.attacks.split(",") if options.attacks else list(ATTACKS)
    places = [(alpha, crowd) for alpha in ALPHAS for crowd in CROWDS]
    if options.third:
        attacks, places = attacks[KINDS.index(kind) :: len(KINDS)], [place for place in places if place[1] == CROWDS[0]]
    if options.quick:
        attacks, places = attacks[:2], places[:1]
    rng = np.random.default_rng([options.first_seed, *kind.encode()])
    order, first = rng.permutation(len(attacks)), rng.permutation(len(places))
    cells = list(enumerate(["" for _ in places] + [attacks[index] for index in order]))
    # In a drawn order, so that what a bounded run comes to is a drawn sample as well.
    for at, attack in (cells[index] for index in rng.permutation(len(cells))):
        alpha, (clients, share) = places[first[at % len(places)]]
        yield Setting(data, model, clients, share, alpha, BAD, options.first_seed, 8 if options.quick else ROUNDS), attack


def measure(options: argparse.Namespace, judges: list[str]) -> list[dict[str, Any]]:
    """Return one row a judge, kind of data and attack; with ``--into`` those of runs before it are kept and not run again."""
    rows = _read([options.into]) if options.into and options.into.exists() else []
    done = {(row["kind"], row["cell"], row["attack"]) for row in rows}
    until_s = time.monotonic() + options.for_s
    for kind, setting, attack in _turns(options):
        name = attack or "none"
        if (kind, setting.name, name) in done or time.monotonic() > until_s:
            continue
        # Without a fault like the attack nothing is left out, and it is the tree itself.
        asked = [judge for judge in judges if judge != LEFT_OUT or attack in INJECTED_LIKE]
        found = judged(setting, attack, asked, options.cache)
        fresh = [{"judge": j, "kind": kind, "cell": setting.name, "attack": name} | row for j, row in found.items()]
        rows += fresh
        if options.into:
            with options.into.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in fresh)
    return rows


def _turns(options: argparse.Namespace) -> Iterator[tuple[str, Setting, str]]:
    """Yield the samples of all kinds in turns."""
    kinds = options.kinds.split(",")
    for turn in zip_longest(*(sample(options, kind) for kind in kinds)):
        yield from ((kind, *cell) for kind, cell in zip(kinds, turn, strict=True) if cell is not None)


def _read(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def judged(setting: Setting, attack: str, judges: list[str], cache: Path) -> dict[str, dict[str, float]]:
    """Return what each judge makes of one federation: how its scores rank, and whom it refuses."""
    made = {name: (ALONE | DEEP)[name](attack) for name in judges}
    scores, refused, bad = defaultdict(list), defaultdict(list), []
    course = course_of(setting, cache)
    for given in rounds_of(course, attack):
        verdicts = {name: judge.judge(given) for name, judge in made.items()}
        if given.round < FIRST:
            continue
        bad += course.bad[given.clients].tolist() if attack else [False] * len(given.clients)
        for name, (rejected, values) in verdicts.items():
            scores[name] += values.tolist()
            refused[name] += rejected.tolist()
    is_bad = np.array(bad)
    return {name: _figures(np.array(scores[name]), np.array(refused[name]), is_bad) for name in judges}


def _figures(scores: Any, refused: Any, bad: Any) -> dict[str, float]:
    found = {"refused_honest": float(refused[~bad].mean())}
    if bad.any():
        found |= {"auc": auc(scores[bad], scores[~bad]), "recall": float(refused[bad].mean())}
        found["recall_at_1"] = float((scores[bad] > np.quantile(scores[~bad], 0.99)).mean())
    return found


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a judge: means over attacks by kind of data, over all kinds by attack, and what it refuses with none."""
    found = []
    for judge in dict.fromkeys(row["judge"] for row in rows):
        mine = [row for row in rows if row["judge"] == judge]
        found.append(
            {
                "judge": judge,
                "auc": _mean(mine, "auc"),
                "recall_at_1": _mean(mine, "recall_at_1"),
                "refused_with_no_attack": _mean([row for row in mine if row["attack"] == "none"], "refused_honest"),
                "by_kind": {kind: _mean([r for r in mine if r["kind"] == kind], "auc") for kind in _each(mine, "kind")},
                "by_attack": {name: _mean([r for r in mine if r["attack"] == name], "auc") for name in _each(mine, "attack")},
            }
        )
    return found


def _each(rows: list[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows if row["attack"] != "none"))


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    values = [row[key] for row in rows if key in row]
    return float(np.mean(values)) if values else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument(
        "--third", action="store_true", help="each attack on one of these kinds alone, 20 clients: for slow judges"
    )
    parser.add_argument("--judges", default="", help=f"of {'; '.join([*ALONE, *DEEP])}; separated by ;")
    parser.add_argument("--attacks", default="", help=f"of {', '.join(ATTACKS)}")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one setting and two attacks")
    parser.add_argument("--cache", type=Path, default=Path("build/courses"))
    parser.add_argument("--into", type=Path, help="keep rows in this file, and go on from those in it")
    parser.add_argument("--for-s", type=float, default=float("inf"), help="begin with nothing new after so long")
    parser.add_argument("--read", type=Path, nargs="+", help="show together what such files hold, and run nothing")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started_s = time.monotonic()
    if options.read:
        rows = _read(options.read)
    else:
        deep = list(DEEP) if importlib.util.find_spec("torch") else []
        rows = measure(options, options.judges.split(";") if options.judges else [*ALONE, *deep])
    if options.json:
        print(json.dumps({"first_seed": options.first_seed, "seconds": time.monotonic() - started_s, "rows": rows}))
        return 0
    print(f"{'judge':<28}{'auc':>7}{'r@1%':>7}{'refused':>9}  by kind, by attack")
    for row in summary(rows):
        cells = " ".join(f"{name} {value:.2f}" for name, value in (row["by_kind"] | row["by_attack"]).items())
        print(f"{row['judge']:<28}{row['auc']:>7.3f}{row['recall_at_1']:>7.3f}{row['refused_with_no_attack']:>9.2%}  {cells}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
