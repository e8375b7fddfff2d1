"""Fits the trees of the detector `pattern` on injected attacks and honest updates: ``consumers/detectors/pattern.npz``.

Seeds 1 to 3 of the development data of `benchmarks/detection.py`, no attack that is held out. Some cohorts are made smaller,
some lose the coordinates that no honest client changes, and some are given flat, so that the trees lean on none of it. Each
update is seen with the mean of its client's last traits, as in `pattern.with_past`.

    python tools/fit_pattern.py [--seeds 3] [--attacks 8] [--cache build/courses]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import numpy as np
from _attacks import ATTACKS, HELD_OUT
from _federation import Course, Setting, course_of
from detection import ALPHAS, CROWDS, FIRST_STALE, rounds_of

from refold.consumers.detectors import Cohort, pattern, traits
from refold.consumers.detectors.trees import Trees
from refold.consumers.features import Features
from refold.detection import _Extractor

KINDS = (("digits", "mlp"), ("digits", "softmax"), ("made", "mlp"), ("made", "softmax"), ("two", "mlp"), ("two", "softmax"))
ROUNDS = (1, 2, 3, 4, 6, 8, 11, 14, 17, 20)
OUT = Path(pattern.__file__).with_name("pattern.npz")


@dataclass
class Rows:
    """What the trees are fitted on."""

    seen: list[Any] = field(default_factory=list)
    bad: list[bool] = field(default_factory=list)
    _past: dict[int, list[Any]] = field(default_factory=dict)

    def begin(self) -> None:
        """Begin a federation: nobody has a past."""
        self._past.clear()

    def add(self, clients: list[int], rows: Any, bad: list[bool]) -> None:
        """Take in a round."""
        for client, row, is_bad in zip(clients, rows, bad, strict=True):
            past = self._past.setdefault(client, [])
            past.append(row)
            last = np.array(past[-pattern.ROUNDS :])
            weights = pattern.DECAY ** np.arange(len(last) - 1, -1, -1)
            self.seen.append(np.concatenate([row, weights @ last / weights.sum(), [len(last)]]).astype(np.float32))
            self.bad.append(is_bad)


def federations(seeds: int, attacks: int, cache: Path, rng: np.random.Generator) -> Iterator[tuple[Course, str]]:
    """Yield courses, each with some attacks drawn for it."""
    names = [name for name in ATTACKS if name not in HELD_OUT]
    for seed in range(1, seeds + 1):
        for data, model in KINDS:
            for clients, share in CROWDS:
                for alpha in ALPHAS:
                    for bad in (0.0, 0.1, 0.2, 0.3, 0.4):
                        course = course_of(Setting(data, model, clients, share, alpha, bad, seed), cache)
                        for attack in rng.choice(names, attacks, replace=False) if bad else ("",):
                            yield course, str(attack)


def gather(course: Course, attack: str, rows: Rows, rng: np.random.Generator) -> None:
    """Take in some rounds of a federation under attack."""
    rows.begin()
    masked, flat = rng.random() < 0.3, rng.random() < 0.4
    extractor: _Extractor | None = None
    for given in rounds_of(course, attack):
        if given.round not in ROUNDS or (attack == "stale" and given.round < FIRST_STALE):
            continue
        kept = np.arange(len(given.clients))
        if rng.random() < 0.4:
            kept = np.sort(rng.permutation(len(kept))[: int(rng.integers(traits.LEAST_COHORT, len(kept) + 1))])
        bad = course.bad[given.clients[kept]] if attack else np.zeros(len(kept), bool)
        if bad.mean() > 0.45:
            continue
        deltas = given.deltas[kept].copy()
        if masked:
            deltas[:, (deltas[~bad] == 0).all(axis=0)] = 0
        shaped = list(deltas) if flat else [_tensors(row, given.shapes) for row in deltas]
        extractor = extractor or _Extractor.of(shaped[0], bytes(32))
        found = [(i, features) for i, one in enumerate(shaped) if isinstance(features := extractor.features(one), Features)]
        cohort = Cohort(given.round, tuple(str(i) for i, _ in found), tuple(features for _, features in found))
        places = [i for i, _ in found]
        rows.add(given.clients[kept][places].tolist(), traits.table(cohort), bad[places].tolist())


def _tensors(row: Any, shapes: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    return {f"t{at}": part.reshape(shape) for at, (part, shape) in enumerate(zip(np.split(row, ends), shapes, strict=True))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--attacks", type=int, default=8, help="for each federation")
    parser.add_argument("--cache", type=Path, default=Path("build/courses"))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng, rows = np.random.default_rng(1), Rows()
    for course, attack in federations(options.seeds, options.attacks, options.cache, rng):
        gather(course, attack, rows, rng)
    trees = HistGradientBoostingClassifier(
        max_iter=200,
        max_depth=5,
        max_leaf_nodes=16,
        min_samples_leaf=80,
        l2_regularization=5.0,
        max_features=0.5,
        random_state=0,
    )
    fitted = trees.fit(np.array(rows.seen), np.array(rows.bad))
    Trees.of(fitted).save(options.out)
    print(f"{len(rows.seen):,} updates, {np.mean(rows.bad):.1%} bad: {len(fitted._predictors)} trees in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
