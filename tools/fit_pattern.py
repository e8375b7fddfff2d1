"""Fits the trees of the detector `pattern` on injected attacks and honest updates: ``consumers/detectors/pattern.npz``.

Some hundred federations are drawn by number, each of another kind of data (`_federation.drawn`; digits now and then), model,
crowd and share of bad clients, and each is seen without an attack and under some. No attack that is held out takes part. Some
bad clients go half of the way only, some begin late; some federations lose the coordinates that no honest client changes, some
are given flat: the trees are to lean on none of it. Rows come from the same function by which the detector judges.

    python tools/fit_pattern.py gather                          # or in parts by --first and --count, into --cache
    python tools/fit_pattern.py fit                             # and how well it does on federations that it did not see
    python tools/fit_pattern.py limits                          # those anew, from what `fit` kept
    python tools/fit_pattern.py unseen                          # the same with the attack left out too
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import numpy as np
from _attacks import ATTACKS, HELD_OUT, scene_of
from _federation import Course, Setting, drawn, train_course
from detection import auc

from refold.consumers.detectors import Cohort, Recent, pattern, traits
from refold.consumers.detectors.trees import Trees
from refold.consumers.features import Features
from refold.detection import _Extractor

NAMES = tuple(name for name in ATTACKS if name not in HELD_OUT)
CROWDS = ((20, 1.0), (20, 1.0), (50, 0.3), (12, 1.0), (30, 0.6), (16, 0.8))
FIRST_STALE = 3
TREES = 250
FOLDS, FEWER_TREES = 2, 60
RATES = (0.0001, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05)
KIN = {
    "sign-flip-x5": "sign-flip",
    "alie-jittered": "alie",
    "ipm": "sign-flip",
    "ipm-jittered": "sign-flip",
    "ipm-weak-jittered": "sign-flip",
    "min-max": "alie",
    "min-max-jittered": "alie",
    "added-noise": "noise",
    "backdoor-x5": "backdoor",
    "colluding-jittered": "colluding",
}
"""Attacks that are much the same: to leave one out is to leave them all out."""

OUT = Path(pattern.__file__).with_name("pattern.npz")


@dataclass
class Rows:
    """What the trees are fitted on: rows, whether each is an attack, and of which federation, attack (−1: none), round."""

    seen: list[Any] = field(default_factory=list)
    bad: list[Any] = field(default_factory=list)
    of: list[Any] = field(default_factory=list)

    def add(self, rows: Any, bad: Any, federation: int, attack: int, round_: int, clients: Any) -> None:
        """Take in a round."""
        self.seen.append(rows)
        self.bad.append(bad)
        self.of.append(np.column_stack([np.full((len(rows), 3), (federation, attack, round_)), clients]))

    def arrays(self) -> dict[str, Any]:
        """Return them as arrays."""
        return {"seen": np.concatenate(self.seen), "bad": np.concatenate(self.bad), "of": np.concatenate(self.of)}


def setting_of(number: int) -> Setting:
    """Return the federation of a number."""
    rng = np.random.default_rng([number, 11])
    data = str(rng.choice([f"drawn-{number}", "digits"], p=[0.85, 0.15]))
    images = data == "digits" or drawn(number)[0].shape[1] == 64
    models = ["mlp", "mlp", "deep", *(["cnn"] * 2 if images and data != "digits" else ["softmax", "narrow"])]
    clients, share = CROWDS[int(rng.integers(len(CROWDS)))]
    alpha = rng.choice([None, 0.5, 0.1, float(rng.uniform(0.05, 1.0))])
    bad = float(rng.choice([0.1, 0.2, 0.3, 0.3, 0.4]))
    return Setting(data, str(rng.choice(models)), clients, share, alpha, bad, number)


@dataclass
class Scenes:
    """One federation as its server sees it, with or without an attack."""

    course: Course
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.dead = np.zeros(self.course.honest.shape[2], bool)
        if self.rng.random() < 0.5:
            self.dead = (self.course.honest == 0).all(axis=(0, 1))
        self.flat = self.rng.random() < 0.3
        self.extractor = _Extractor.of(self._shaped(self.course.honest[0, 0]), self.rng.bytes(32))
        self.honest = [[self._features(row) for row in rows] for rows in self.course.honest]

    def rounds(self, attack: str) -> Iterator[tuple[Cohort, Any]]:
        """Yield cohorts with their past, and who of them is bad."""
        recent, begins, share = Recent(), 1, 1.0
        if attack and self.rng.random() < 0.2:
            begins = int(self.rng.integers(3, 11))
        if attack and self.rng.random() < 0.4:
            share = float(self.rng.uniform(0.5, 1.2))
        for at, who in enumerate(self.course.taking):
            bad = self.course.bad[who] & bool(attack) & (at + 1 >= max(begins, FIRST_STALE if attack == "stale" else 1))
            features = list(self.honest[at])
            if bad.any():
                own = self.course.honest[at][bad]
                sent = own + np.float32(share) * (ATTACKS[attack](scene_of(self.course, at, self.course.setting.seed)) - own)
                for place, row in zip(np.flatnonzero(bad), sent, strict=True):
                    features[place] = self._features(row)
            kept = [index for index, found in enumerate(features) if isinstance(found, Features)]
            names = tuple(f"client-{who[index]:03d}" for index in kept)
            cohort = Cohort(at + 1, names, tuple(f for f in features if isinstance(f, Features)), recent=recent.view(at + 1))
            yield cohort, bad[kept]
            for name, found in zip(cohort.clients, cohort.features, strict=True):
                recent.take(at + 1, name, found, accepted=True)

    def _features(self, row: Any) -> Features | str:
        return self.extractor.features(self._shaped(np.where(self.dead, 0, row).astype(np.float32)))

    def _shaped(self, row: Any) -> Any:
        if self.flat:
            return row
        ends = np.cumsum([int(np.prod(shape)) for shape in self.course.shapes])[:-1]
        parts = zip(np.split(row, ends), self.course.shapes, strict=True)
        return {f"t{at}": part.reshape(shape) for at, (part, shape) in enumerate(parts)}


def gather(numbers: range, attacks: int, every: int) -> Rows:
    """Return what is seen of these federations, of each attack every so many rounds."""
    rows = Rows()
    for number in numbers:
        rng = np.random.default_rng([number, 12])
        scenes = Scenes(train_course(setting_of(number)), rng)
        for attack in ("", *(str(name) for name in rng.choice(NAMES, attacks, replace=False))):
            start = int(rng.integers(every)) if attack else 0
            for cohort, bad in scenes.rounds(attack):
                if len(cohort) < traits.LEAST_COHORT or bad.mean() > 0.45:
                    continue
                if cohort.round <= 2 or not attack or cohort.round % every == start:
                    code = NAMES.index(attack) if attack else -1
                    who = [int(client[7:]) for client in cohort.clients]
                    rows.add(pattern.rows_of(cohort), bad, number, code, cohort.round, who)
    return rows


def load(cache: Path) -> dict[str, Any]:
    """Return the rows of all parts that were gathered."""
    parts = [dict(np.load(path)) for path in sorted(cache.glob("rows-*.npz"))]
    return {name: np.concatenate([part[name] for part in parts]) for name in ("seen", "bad", "of")}


def fitted(rows: dict[str, Any], where: Any, trees: int = TREES) -> Any:
    """Return boosted trees, fitted on some of the rows: all of those without an attack, half of the others."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    where = where & ((rows["of"][:, 1] == -1) | (np.random.default_rng(1).random(len(where)) < 0.5))

    model = HistGradientBoostingClassifier(
        max_iter=trees,
        learning_rate=0.08,
        max_depth=6,
        max_leaf_nodes=20,
        min_samples_leaf=80,
        l2_regularization=10.0,
        max_features=0.3,
        early_stopping=False,
        random_state=0,
    )
    return model.fit(rows["seen"][where], rows["bad"][where])


def unseen(rows: dict[str, Any], folds: int = FOLDS) -> Any:
    """Return each row's log-odds by trees that were fitted without its federation."""
    odds = np.zeros(len(rows["bad"]))
    for fold in range(folds):
        mine = rows["of"][:, 0] % folds == fold
        odds[mine] = fitted(rows, ~mine).decision_function(rows["seen"][mine])
    return beside(rows, odds)


def beside(rows: dict[str, Any], odds: Any) -> Any:
    """Return log-odds beside those of the same round, as the detector sees them."""
    _, rounds = np.unique(rows["of"][:, :3], axis=0, return_inverse=True)
    order = np.argsort(rounds, kind="stable")
    found = np.zeros(len(odds))
    for members in np.split(order, np.flatnonzero(np.diff(rounds[order])) + 1):
        found[members] = pattern.beside_the_others(odds[members])
    return found


def limits_of(rows: dict[str, Any], odds: Any) -> Any:
    """Return for each of `RATES` what no more honest updates exceed, in nine of ten federations, and half as many of all.

    A federation is too small to tell rates below a few thousandths apart; all together are not.
    """
    mine = rows["of"][:, 1] == -1
    federations = rows["of"][mine, 0]
    each = [odds[mine][federations == one] for one in np.unique(federations)]
    most = [np.quantile([np.quantile(values, 1 - rate) for values in each], 0.9) for rate in RATES]
    limits = np.maximum(most, np.quantile(odds[mine], 1 - np.array(RATES) / 2))
    return np.minimum.accumulate(limits)  # Less where more may be refused.


def told(rows: dict[str, Any], odds: Any, limit: float) -> None:
    """Print how well trees do on federations, attacks or both that they never saw."""
    attack = rows["of"][:, 1]
    print(f"{'attack':<20}{'sent':>8}{'auc':>8}{'r@1%':>8}{'recall':>8}{'false':>8}")
    for code in (-1, *range(len(NAMES))):
        mine = (attack == code) & np.isfinite(odds)
        bad, good = odds[mine & rows["bad"]], odds[mine & ~rows["bad"]]
        if not len(good):
            continue
        name, false = NAMES[code] if code >= 0 else "none", f"{(good > limit).mean():.2%}"
        if not len(bad):
            print(f"{name:<20}{len(good):>8} honest{false:>25}")
            continue
        at_one = (bad > np.quantile(good, 0.99)).mean()
        print(f"{name:<20}{len(bad):>8}{auc(bad, good):>8.3f}{at_one:>8.3f}{(bad > limit).mean():>8.3f}{false:>8}")


def unseen_attacks(rows: dict[str, Any]) -> Any:
    """Return log-odds of every fourth federation's attacks, each by trees that saw neither the federation nor that attack."""
    odds = np.full(len(rows["bad"]), np.nan)
    federation, attack = rows["of"][:, :2].T
    kin = np.array([*(KIN.get(name, name) for name in NAMES), "none"])[attack]
    for family in np.unique(kin[attack >= 0]):
        mine = (federation % 4 == 0) & (kin == family)
        trees = fitted(rows, (federation % 4 != 0) & (kin != family), FEWER_TREES)
        odds[mine] = trees.decision_function(rows["seen"][mine])
    return beside(rows, odds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gather", "fit", "limits", "unseen"))
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--count", type=int, default=140)
    parser.add_argument("--attacks", type=int, default=8, help="for each federation")
    parser.add_argument("--every", type=int, default=2, help="rounds, of those under attack")
    parser.add_argument("--cache", type=Path, default=Path("build/pattern"))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.what == "gather":
        rows = gather(range(options.first, options.first + options.count), options.attacks, options.every)
        options.cache.mkdir(parents=True, exist_ok=True)
        np.savez(options.cache / f"rows-{options.first:04d}.npz", **rows.arrays())
        return 0
    rows = load(options.cache)
    if options.what == "unseen":
        told(rows, unseen_attacks(rows), pattern.Pattern().limit)
        return 0
    if options.what == "limits":
        limits = limits_of(rows, np.load(options.cache / "odds.npz")["odds"])
        Trees.load(options.out).save(options.out, rates=np.array(RATES), limits=limits)
        return 0
    odds = unseen(rows)
    limits = limits_of(rows, odds)
    told(rows, odds, float(np.interp(np.log(pattern.RATE), np.log(RATES), limits)))
    np.savez(options.cache / "odds.npz", odds=odds)
    model = fitted(rows, np.ones(len(rows["bad"]), bool))
    Trees.of(model).save(options.out, rates=np.array(RATES), limits=limits)
    federations = len(np.unique(rows["of"][:, 0]))
    print(f"{len(rows['bad']):,} updates of {federations} federations, {rows['bad'].mean():.1%} bad: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
