"""Each learned detector alone: how well its scores rank, beside its textbook form and beside the plain z over the same traits.

The rounds are those of `detection.py` (the model moves by honest updates alone): 20 clients for 14 rounds, 30 % of them bad,
dealt evenly and by Dirichlet 0.5 and 0.1. A detector sees what itself accepted before; its scores count from round 6 on, as all
judges' do.
``tree, this attack left out`` is fitted without the injected fault that is most like the attack it is then asked about.

Seeds from 3001 on took no part in any choice of these detectors, on either kind of data; seed 1 of both did.

    python benchmarks/alone.py [--kinds digits-mlp,cancer-mlp] [--judges forest,tree] [--first-seed N] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from _alone import ALONE, DEEP, FIRST
from detection import ALPHAS, auc, rounds_of

from _federation import Setting, course_of  # isort: skip

ATTACKS = ("sign-flip", "label-flip", "added-noise", "alie-jittered", "ipm-jittered", "backdoor", "copied", "scale-x10")


def measure(options: argparse.Namespace, judges: list[str]) -> list[dict[str, Any]]:
    """Return one row a judge and kind of data: AUC in the mean and by attack, recall where 1 % of the honest score higher."""
    made = ALONE | DEEP
    found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    refused: dict[tuple[str, str], list[float]] = defaultdict(list)
    for kind in options.kinds.split(","):
        data, model = kind.split("-")
        for alpha in [float(options.dealt) or None] if options.dealt else ALPHAS[:1] if options.quick else ALPHAS:
            setting = Setting(data, model, alpha=alpha, bad=0.3, seed=options.first_seed, rounds=8 if options.quick else 14)
            course = course_of(setting, options.cache)
            for attack in ("", *ATTACKS[:2]) if options.quick else ("", *options.attacks.split(",")):
                for name in judges:
                    judge, good, bad, false = made[name](attack), [], [], []
                    for given in rounds_of(course, attack):
                        verdicts, scores = judge.judge(given)
                        if given.round >= FIRST:
                            is_bad = course.bad[given.clients]
                            bad += scores[is_bad].tolist()
                            good += scores[~is_bad].tolist()
                            false += verdicts.tolist()
                    if attack:
                        above = float((np.array(bad) > np.quantile(good, 0.99)).mean())
                        found[name, kind][attack].append((auc(np.array(bad), np.array(good)), above))
                    else:
                        refused[name, kind].append(float(np.mean(false)))
    return [_row(name, kind, found[name, kind], refused[name, kind]) for name in judges for kind in options.kinds.split(",")]


def _row(name: str, kind: str, by_attack: dict[str, list[tuple[float, float]]], refused: list[float]) -> dict[str, Any]:
    means = {attack: [float(value) for value in np.mean(pairs, axis=0)] for attack, pairs in by_attack.items()}
    whole = np.mean(list(means.values()), axis=0)
    return {
        "judge": name,
        "kind": kind,
        "auc": float(whole[0]),
        "recall_at_1": float(whole[1]),
        "refused_with_no_attack": float(np.mean(refused)),
        "by_attack": {attack: pair[0] for attack, pair in means.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="digits-mlp,cancer-mlp")
    parser.add_argument("--judges", default="", help=f"of {'; '.join([*ALONE, *DEEP])}; separated by ;")
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--dealt", default="", help="one way of dealing alone: 0.5, 0.1, or 0 for evenly")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one setting and two attacks")
    parser.add_argument("--cache", type=Path, default=Path("build/courses"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    deep = list(DEEP) if importlib.util.find_spec("torch") else []
    judges = options.judges.split(";") if options.judges else [*ALONE, *deep]
    started_s = time.monotonic()
    rows = measure(options, judges)
    if options.json:
        print(json.dumps({"first_seed": options.first_seed, "seconds": time.monotonic() - started_s, "rows": rows}))
        return 0
    print(f"{'judge':<28}{'kind':<12}{'auc':>7}{'r@1%':>7}{'refused':>9}  by attack")
    for row in rows:
        attacks = " ".join(f"{attack} {value:.2f}" for attack, value in row["by_attack"].items())
        figures = f"{row['auc']:>7.3f}{row['recall_at_1']:>7.3f}{row['refused_with_no_attack']:>9.2%}"
        print(f"{row['judge']:<28}{row['kind']:<12}{figures}  {attacks}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
