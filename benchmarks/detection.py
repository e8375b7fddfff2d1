"""Who is found and who is wrongly refused: real federated training, the attacks of the literature, and peers beside Refold.

Two parts. *Open*: the model moves by honest updates alone, so that every judge sees the same rounds (`_federation.py` trains
them once and keeps them in ``--cache``). *Closed* (``--closed``): what is let in moves the model; its final accuracy and how
well a backdoor works in it are what counts.

Seeds are of two kinds: those by which anything was chosen (``--split development``), and those that were run once, after the
configuration was frozen (``--split held-out``: other seeds, data and models, and attacks that took no part in any choice).

    python benchmarks/detection.py [--quick] [--closed] [--split development] [--judges refold,signguard] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from _attacks import ATTACKS, HELD_OUT, scene_of
from _closed import final_of
from _federation import Course, Setting, course_of
from _own import OWN
from _peers import PEERS, Judge, Round
from _stopping import Client, Stops, text_of

ALPHAS = (None, 0.5, 0.1)
CROWDS = ((20, 1.0), (50, 0.3))
JUDGES: dict[str, Any] = OWN | PEERS
FIRST_STALE = 3
"""Before this round there is nothing two rounds old to send."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What is run."""

    settings: tuple[Setting, ...]
    attacks: tuple[str, ...]


def grid(options: argparse.Namespace) -> Grid:
    """Return the settings and attacks that the options ask for."""
    held_out = options.split == "held-out"
    kinds = (
        [("digits", "mlp"), ("cancer", "mlp"), ("digits", "cnn")]
        if held_out
        else [("digits", "mlp"), ("digits", "softmax"), ("made", "mlp"), ("two", "mlp")]
    )
    fractions = shares_of(options) or ((0.0, 0.2) if options.quick else (0.0, 0.1, 0.2, 0.3, 0.4))
    rounds = 8 if options.quick else 20
    crowds = CROWDS[:1] if options.quick else CROWDS
    if options.crowds:
        crowds = tuple(crowd for crowd in CROWDS if str(crowd[0]) in options.crowds.split(","))
    if options.kinds:
        kinds = [tuple(word.rsplit("-", 1)) for word in options.kinds.split(",")]
    settings = tuple(
        Setting(data, model, clients, share, alpha, bad, seed, rounds)
        for seed in seeds_of(options)
        for data, model in (kinds[:1] if options.quick else kinds)
        for clients, share in crowds
        for alpha in ALPHAS
        for bad in fractions
    )
    quick = ("sign-flip", "label-flip", "alie-jittered", "scale-x10")
    chosen = options.attacks.split(",") if options.attacks else quick if options.quick else ATTACKS
    return Grid(settings, tuple(name for name in chosen if held_out or name not in HELD_OUT))


def shares_of(options: argparse.Namespace) -> tuple[float, ...]:
    """Return the shares of bad clients that were asked for."""
    return tuple(float(word) for word in options.bad.split(",") if word)


def seeds_of(options: argparse.Namespace) -> range:
    """Return the seeds: those above 1000 took no part in any choice."""
    first = options.first_seed or (1001 if options.split == "held-out" else 1)
    return range(first, first + options.seeds)


@dataclass
class Results:
    """What one judge said in one cell: a setting without seed and share of bad ones, and an attack."""

    scores: list[float] = field(default_factory=list)
    bad: list[bool] = field(default_factory=list)
    refused: list[bool] = field(default_factory=list)
    stops: Stops = field(default_factory=Stops)
    rounds_held: list[int] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return the figures."""
        scores, bad, refused = np.array(self.scores), np.array(self.bad, bool), np.array(self.refused, bool)
        low, high = wilson(int(refused[~bad].sum()), int((~bad).sum()))
        found = {"honest": int((~bad).sum()), "false": float(refused[~bad].mean()), "false_low": low, "false_high": high}
        if bad.any():
            found |= {"sent": int(bad.sum()), "recall": float(refused[bad].mean()), "auc": auc(scores[bad], scores[~bad])}
            found["recall_at_1"] = float((scores[bad] > np.quantile(scores[~bad], 0.99)).mean())
        found["longest_held"] = max(self.rounds_held, default=0)
        return found | self.stops.row()


def wilson(count: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval of a share. Source: Wilson, Probable inference, 1927."""
    z, share = 1.96, count / max(of, 1)
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * np.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return float(max(middle - half, 0)), float(middle + half)


def auc(bad: Any, good: Any) -> float:
    """Return the probability that a bad one's score exceeds a good one's, ties counting half."""
    ordered = np.sort(good)
    below, upto = np.searchsorted(ordered, bad, "left"), np.searchsorted(ordered, bad, "right")
    return float((below + upto).mean() / (2 * len(good)))


def rounds_of(course: Course, attack: str, *, masked: bool = False) -> Iterator[Round]:
    """Yield what the server has in hand, round by round; masked, without the parameters that no honest client ever changes."""
    dead = (course.honest == 0).all(axis=(0, 1)) if masked else np.zeros(course.honest.shape[2], bool)
    for at in range(course.setting.rounds):
        who = course.taking[at]
        bad = course.bad[who]
        deltas = course.honest[at].copy()
        if attack and bad.any():
            deltas[bad] = ATTACKS[attack](scene_of(course, at, course.setting.seed))
        deltas[:, dead] = 0
        yield Round(
            at + 1,
            who,
            deltas,
            course.examples[who],
            course.losses[at],
            course.root[at],
            course.shapes,
            bad if attack else np.zeros(len(who), bool),
            course.setting.seed,
        )


def run(course: Course, attack: str, judge: Judge, results: Results, *, masked: bool = False) -> None:
    """Judge one federation from its first round to its last."""
    clients: dict[int, Client] = {}
    held: dict[int, int] = defaultdict(int)
    for given in rounds_of(course, attack, masked=masked):
        refused, scores = judge.judge(given)
        if attack == "stale" and given.round < FIRST_STALE:
            continue
        bad = course.bad[given.clients] if attack else np.zeros(len(refused), bool)
        results.scores += scores.tolist()
        results.bad += bad.tolist()
        results.refused += refused.tolist()
        for client, is_bad, is_refused in zip(given.clients.tolist(), bad, refused, strict=True):
            clients.setdefault(client, Client(bool(is_bad))).judged(refused=bool(is_refused))
            if not is_bad:
                held[client] = held[client] + 1 if is_refused else 0
                results.rounds_held.append(held[client])
    results.stops.take(clients.values())


def measure(work: Grid, judges: Iterable[str], cache: Path, *, masked: bool = False) -> dict[tuple[str, str, str], Results]:
    """Return results by judge, cell and attack ("" for none)."""
    results: dict[tuple[str, str, str], Results] = defaultdict(Results)
    for setting in work.settings:
        course = course_of(setting, cache)
        cell = replace(setting, bad=0.0).name.removesuffix("-bad0")
        for attack in work.attacks if setting.bad else ("",):
            for name in judges:
                run(course, attack, JUDGES[name](), results[name, cell, attack], masked=masked)
    return results


def summary(results: dict[tuple[str, str, str], Results], judges: Iterable[str]) -> list[dict[str, Any]]:
    """Return one row a judge, cell and attack; besides, over all cells, each attack of each judge, and the whole of it."""
    rows = [{"judge": j, "cell": c, "attack": a or "none"} | found.row() for (j, c, a), found in results.items()]
    attacks = list(dict.fromkeys(attack for _, _, attack in results if attack))
    wholes = [_whole(judge, attack, results, rows) for judge in judges for attack in (*attacks, "all") if attacks]
    return rows + wholes


def _whole(judge: str, attack: str, results: dict[tuple[str, str, str], Results], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over cells, and rounds over all clients of all cells."""
    stops = Stops()
    for (name, _, sent), found in results.items():
        if name == judge and sent and attack in (sent, "all"):
            stops.add(found.stops)
    mine = [row for row in rows if row["judge"] == judge and row["attack"] != "none" and attack in (row["attack"], "all")]
    means = {key: float(np.mean([row[key] for row in mine])) for key in ("recall", "false", "auc", "recall_at_1")}
    return {"judge": judge, "cell": "all", "attack": attack, "cells": len(mine)} | means | stops.row()


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    print(f"{'judge':<14}{'cell':<30}{'attack':<20}{'recall':>8}{'false':>8}{'  95 %':<15}", end="")
    print(f"{'auc':>7}{'r@1%':>7}{'rounds':>12}{'never':>7}{'called':>12}{'never':>7}{'held':>5}")
    for row in rows:
        interval = f"  {row['false_low']:.2%}–{row['false_high']:.2%}" if "false_low" in row else ""
        values = [f"{row[k]:>{w}.3f}" if k in row else " " * w for k, w in (("auc", 7), ("recall_at_1", 7))]
        recall = f"{row['recall']:>8.3f}" if "recall" in row else " " * 8
        stops = "".join(_stops(row, name) for name in ("rounds", "called"))
        print(
            f"{row['judge']:<14}{row['cell']:<30}{row['attack']:<20}{recall}{row['false']:>8.2%}{interval:<15}"
            f"{values[0]}{values[1]}{stops}{row.get('longest_held', ''):>5}"
        )


def _stops(row: dict[str, Any], name: str) -> str:
    """Return median and 95 % of rounds until a client is stopped, and the share that never is."""
    if f"{name}_median" not in row:
        return " " * 19
    rounds = f"{text_of(row[f'{name}_median'])}/{text_of(row[f'{name}_p95'])}"
    return f"{rounds:>12}{row[f'{name}_never']:>7.1%}"


def closed(options: argparse.Namespace, judges: list[str]) -> list[dict[str, Any]]:
    """Return the final accuracy and the backdoor's success, by judge and attack, beside a federation without bad ones."""
    rows = []
    seeds = seeds_of(options)
    attacks = (
        options.attacks.split(",") if options.attacks else ["sign-flip", "label-flip", "alie", "ipm", "min-max", "backdoor"]
    )
    for alpha in ALPHAS:
        for bad in shares_of(options) or ((0.2,) if options.quick else (0.2, 0.4)):
            for attack in attacks:
                for judge in ["none", *judges]:
                    ends = []
                    for seed in seeds:
                        setting = Setting(alpha=alpha, bad=bad, seed=seed, rounds=8 if options.quick else 20)
                        clean = final_of(replace(setting, bad=0.0), "", None)
                        end = final_of(setting, attack, None if judge == "none" else JUDGES[judge]())
                        ends.append((clean[0], clean[1], end[0], end[1]))
                    mean = np.mean(ends, axis=0)
                    row = {"judge": judge, "alpha": alpha, "bad": bad, "attack": attack}
                    row |= dict(zip(("clean", "clean_backdoor", "accuracy", "backdoor"), map(float, mean), strict=True))
                    rows.append(row | {"lost_points": 100 * (row["clean"] - row["accuracy"])})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one setting of each kind, in a minute")
    parser.add_argument("--closed", action="store_true")
    parser.add_argument("--split", choices=("development", "held-out"), default="development")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0, help="1, or 1001 for what is held out")
    parser.add_argument("--bad", default="", help="shares of bad clients, such as 0,0.3")
    parser.add_argument("--judges", default="", help=f"of {', '.join(JUDGES)}")
    parser.add_argument("--kinds", default="", help="data and models, such as digits-mlp,cancer-mlp")
    parser.add_argument("--attacks", default="", help=f"of {', '.join(ATTACKS)}")
    parser.add_argument("--crowds", default="", help="20, 50 or both; only 20 with --quick")
    parser.add_argument("--masked", action="store_true", help="without the parameters that no honest client changes")
    parser.add_argument("--cache", type=Path, default=Path("build/courses"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    judges = options.judges.split(",") if options.judges else list(JUDGES)
    started_s = time.monotonic()
    if options.closed:
        rows = closed(options, judges)
        for row in rows if not options.json else ():
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    else:
        rows = summary(measure(grid(options), judges, options.cache, masked=options.masked), judges)
        if not options.json:
            show(rows)
    if options.json:
        print(
            json.dumps({"split": options.split, "seeds": options.seeds, "seconds": time.monotonic() - started_s, "rows": rows})
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
