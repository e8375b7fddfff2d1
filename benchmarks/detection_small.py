"""How well the detectors tell faulty updates from honest ones, without a bus: real training on digits, real features.

Each row is a setting: how unlike the clients' data is (Dirichlet's alpha; "even" deals alike) and how many clients there are.
The faults are the demonstration's: one client flips its sign five times as long in every round, and every fourth round others
send 100 times too much or nothing. ``ratio`` is the final accuracy divided by that of a federation which knows the culprits.

    python benchmarks/detection_small.py [--seeds N] [--first-seed N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.consumers.detectors import Cohort, Ensemble, Opinion, Recent
from refold.consumers.features import FeatureExtractor, Features
from refold.consumers.planning import capped
from refold.demo.data import Examples, deal, load_digits
from refold.demo.faults import FLIPPED, KILLED, NAN, SCALED, SIGN_FLIP, STALE, Schedule, client_name
from refold.demo.network import BATCH, EPOCHS, RATE, Weights, accuracy, initial_weights, train
from refold.schemas.layout import Layout
from refold.schemas.model import ModelSchema
from refold.state.tensors import schema_of

ROUNDS = 20
SETTINGS = [(alpha, clients) for alpha in (0.5, 0.1, None) for clients in (10, 20)] + [(0.5, 4), (0.5, 5)]
FACTORS = {SCALED: 100.0, SIGN_FLIP: -5.0}
ABSENT = (NAN, FLIPPED, KILLED)


@dataclass(slots=True)
class Tally:
    """Counts over all judgements of a setting."""

    honest: int = 0
    false: int = 0
    false_by: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)

    def count(self, kind: str, opinion: Opinion) -> None:
        """Take in one judgement."""
        if kind:
            self.sent[kind] += 1
            self.found[kind] += bool(opinion.reasons)
        else:
            self.honest += 1
            self.false += bool(opinion.reasons)
            self.false_by.update(opinion.reasons)

    def add(self, other: Tally) -> None:
        """Take in another's counts."""
        self.honest += other.honest
        self.false += other.false
        for mine, others in ((self.false_by, other.false_by), (self.sent, other.sent), (self.found, other.found)):
            mine.update(others)


class Simulation:
    """A federation without a bus: everything in one process, judged as the detection group would."""

    def __init__(self, seed: int, alpha: float | None, clients: int, *, faults: bool, oracle: bool) -> None:
        self._hands, self._test = deal(load_digits(), clients, alpha=alpha, seed=seed)
        self._schedule = Schedule(seed, clients, ROUNDS, faults)
        self._weights = initial_weights(seed)
        self._schema = schema_of(self._weights)
        self._extractor = FeatureExtractor(self._schema, seed.to_bytes(32, "little"))
        self._ensemble = Ensemble()
        self._history: dict[str, dict[str, list[float]]] = {}
        self._recent = Recent()
        self._oracle = oracle
        self._seed = seed
        self.tally = Tally()

    def run(self) -> float:
        """Train all rounds and return the final accuracy."""
        for round_ in range(1, ROUNDS + 1):
            self._round(round_)
        return accuracy(self._weights, self._test)

    def _round(self, round_: int) -> None:
        names = [client_name(i) for i in range(len(self._hands))]
        kinds = {name: self._schedule.fault(name, round_) for name in names}
        late = {name for name in names if self._schedule.fault(name, round_ + 1) == STALE}
        takers = [i for i, name in enumerate(names) if kinds[name] not in ABSENT and name not in late]
        deltas = [self._delta(i, round_, FACTORS.get(kinds[names[i]], 1.0)) for i in takers]
        bad = [kinds[names[i]] if kinds[names[i]] in FACTORS else "" for i in takers]
        opinions = self._judge(round_, [names[i] for i in takers], deltas)
        for kind, opinion in zip(bad, opinions, strict=True):
            self.tally.count(kind, opinion)
        kept = [at for at in range(len(takers)) if (not bad[at] if self._oracle else not opinions[at].reasons)]
        self._apply([deltas[at] for at in kept], [self._hands[takers[at]] for at in kept])

    def _delta(self, client: int, round_: int, factor: float) -> Weights:
        rng = np.random.default_rng([self._seed, 3, client, round_])
        hand = self._hands[client]
        trained = train(self._weights, hand, epochs=EPOCHS, rate=RATE.at(round_), batch=BATCH, rng=rng)
        return {name: np.float32(factor) * (trained[name] - value) for name, value in self._weights.items()}

    def _judge(self, round_: int, names: list[str], deltas: list[Weights]) -> list[Opinion]:
        features = tuple(features_of(delta, self._schema, self._extractor) for delta in deltas)
        recent = self._recent.view(round_)
        opinions = self._ensemble.judge(Cohort(round_, tuple(names), features, self._history, recent=recent))
        for name, found, opinion in zip(names, features, opinions, strict=True):
            self._recent.take(round_, name, found, accepted=not opinion.reasons)
        for name, opinion in zip(names, opinions, strict=True):
            past = self._history.setdefault(name, {})
            for score in opinion.scores:
                past.setdefault(score.detector, []).append(score.value)
        return opinions

    def _apply(self, deltas: list[Weights], hands: list[Examples]) -> None:
        shares = np.array(capped([len(hand) for hand in hands]), dtype=np.float64)
        shares /= shares.sum()
        for name, value in self._weights.items():
            change: npt.NDArray[Any] = sum(share * delta[name] for share, delta in zip(shares, deltas, strict=True))
            self._weights[name] = (value + change).astype(np.float32)


def features_of(delta: Weights, schema: ModelSchema, extractor: FeatureExtractor) -> Features:
    """Return a delta's features, on the lattice as consistency sees it."""
    features = extractor.start()
    for block in Layout.of(schema):
        tensor = schema.tensors[block.tensor]
        lattice = np.rint(delta[tensor.name].ravel()[block.elements].astype(np.float64) * 2.0**tensor.exponent)
        features.add(block, lattice, 2.0**-tensor.exponent)
    return features.finish()


def one(job: tuple[int, float | None, int]) -> dict[str, Any]:
    """Return what one seed of a setting gives."""
    seed, alpha, clients = job
    found: dict[str, Any] = {}
    for name, faults, oracle in (("clean", False, False), ("judged", True, False), ("known", True, True)):
        simulation = Simulation(seed, alpha, clients, faults=faults, oracle=oracle)
        found[name] = (simulation.run(), simulation.tally)
    return found


def measure(alpha: float | None, clients: int, seeds: range) -> dict[str, Any]:
    """Return one row."""
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = list(pool.map(one, [(seed, alpha, clients) for seed in seeds]))
    row: dict[str, Any] = {"alpha": alpha, "clients": clients}
    for name in ("clean", "judged"):
        tally = Tally()
        for result in results:
            tally.add(result[name][1])
        row[f"false_{name}"] = tally.false / tally.honest
        row[f"false_{name}_by"] = dict(tally.false_by)
        row |= {f"found_{kind}": tally.found[kind] / tally.sent[kind] for kind in sorted(tally.sent)}
    accuracies = {name: float(np.mean([result[name][0] for result in results])) for name in ("clean", "judged", "known")}
    row |= {f"accuracy_{name}": value for name, value in accuracies.items()}
    row["ratio"] = accuracies["judged"] / accuracies["known"]
    return row


def show(row: dict[str, Any]) -> None:
    """Print one row."""
    dealt = "even" if row["alpha"] is None else f"{row['alpha']:g}"
    scaled = f"{row[f'found_{SCALED}']:.1%}" if f"found_{SCALED}" in row else "-"
    print(
        f"{dealt:>6}{row['clients']:>9}{row['false_clean']:>13.2%}{row['false_judged']:>13.2%}"
        f"{row[f'found_{SIGN_FLIP}']:>12.1%}{scaled:>11}{row['accuracy_judged']:>11.3f}{row['ratio']:>8.3f}"
        f"   {row['false_clean_by']} {row['false_judged_by']}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    rows = []
    if not options.json:
        print("false alarms: share of honest updates rejected, in runs without faults and with; by detector at the end")
        print(f"{'alpha':>6}{'clients':>9}{'false clean':>13}{'with faults':>13}", end="")
        print(f"{'sign-flip':>12}{'x100':>11}{'accuracy':>11}{'ratio':>8}")
    for alpha, clients in SETTINGS:
        rows.append(measure(alpha, clients, seeds))
        if not options.json:
            show(rows[-1])
    if options.json:
        print(json.dumps({"first_seed": options.first_seed, "seeds": options.seeds, "settings": rows}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
