"""What judging costs on one core: the default ensemble, the statistical gate, and the features of a large update.

Limits: 2,000 updates a second of 2,400 parameters through `refold.Detection`, features and memory of eight rounds included;
50,000 a second through `norm`, `tensor-norm` and `quantile`, given features; 6 ms for the features of a million parameters,
beside `IsolationForest` of scikit-learn (raw parameters, the textbook's use) on the same updates. ``ratio`` is what was
measured against the limit, above 1 where it is kept.

    python benchmarks/detection_cost.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

import refold
from refold.consumers.detectors import Cohort, Ensemble, Norm, Quantile, TensorNorm
from refold.consumers.features import Features
from refold.detection import _Extractor

SHAPES = ((64, 32), (32,), (32, 10), (10,))
LIMITS = {"ensemble": 2_000.0, "gate": 50_000.0, "features_ms": 6.0}


def updates(rng: np.random.Generator, count: int, shapes: tuple[tuple[int, ...], ...]) -> list[dict[str, Any]]:
    """Return updates that have something in common."""
    common = [rng.normal(size=shape) for shape in shapes]
    drawn = [[(mine + rng.normal(size=mine.shape)).astype(np.float32) for mine in common] for _ in range(count)]
    return [{f"tensor-{at}": part for at, part in enumerate(parts)} for parts in drawn]


def quickest(work: Callable[[], object], times: int) -> float:
    """Return the least CPU seconds of some runs: others on the machine can only add to it."""
    found = []
    for _ in range(times):
        started_s = time.process_time()
        work()
        found.append(time.process_time() - started_s)
    return min(found)


def ensemble(rng: np.random.Generator, *, clients: int, times: int) -> float:
    """Return updates a second through the public interface, with eight rounds to look back at."""
    detection = refold.Detection()
    rounds = [updates(rng, clients, SHAPES) for _ in range(8 + times)]
    names = [f"client-{index:03d}" for index in range(clients)]
    given = iter([refold.Cohort(at, names, deltas, [20] * clients) for at, deltas in enumerate(rounds, 1)])
    for _ in range(8):
        detection.judge(next(given))
    found = clients / quickest(lambda: detection.judge(next(given)), times)
    if detection.faults:
        raise RuntimeError(f"a detector was left out: {detection.faults}")
    return found


def gate(rng: np.random.Generator, *, clients: int, times: int) -> float:
    """Return updates a second through the statistical detectors, given their features."""
    deltas = updates(rng, 50, SHAPES)
    extractor = _Extractor.of(deltas[0], bytes(32))
    found = [one for delta in deltas if isinstance(one := extractor.features(delta), Features)]
    features = tuple(found[index % len(found)] for index in range(clients))
    names = tuple(f"client-{index:05d}" for index in range(clients))
    judges = Ensemble([Norm(), TensorNorm(), Quantile()])
    return clients / quickest(lambda: judges.judge(Cohort(1, names, features)), times)


def features_ms(rng: np.random.Generator, *, times: int) -> float:
    """Return the milliseconds that the features of a million parameters take, decoded already."""
    delta = updates(rng, 1, ((1000, 999), (1000,)))[0]
    extractor = _Extractor.of(delta, bytes(32))
    blocks = [
        (block, list(delta.values())[block.tensor].ravel()[block.elements].astype(np.float64)) for block in extractor.blocks
    ]

    def work() -> Features:
        found = extractor.extractor.start()
        for block, values in blocks:
            found.add(block, values, 1.0)
        return found.finish()

    return 1000 * quickest(work, times)


def forest(rng: np.random.Generator, *, clients: int) -> float:
    """Return updates a second of the textbook's isolation forest."""
    from sklearn.ensemble import IsolationForest

    rows = np.array([np.concatenate([part.ravel() for part in one.values()]) for one in updates(rng, clients, SHAPES)])
    return clients / quickest(lambda: IsolationForest(contamination=0.1, random_state=0).fit_predict(rows), 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng, times = np.random.default_rng(1), 4 if options.quick else 20
    found = {
        "ensemble": ensemble(rng, clients=20, times=times),
        "gate": gate(rng, clients=1000 if options.quick else 4000, times=times),
        "features_ms": features_ms(rng, times=times),
    }
    ratios = {name: value / LIMITS[name] if name != "features_ms" else LIMITS[name] / value for name, value in found.items()}
    whole = {"measured": found, "limits": LIMITS, "ratio": ratios, "isolation_forest_per_s": forest(rng, clients=20)}
    if options.json:
        print(json.dumps(whole))
        return 0
    for name, value in found.items():
        print(f"{name:<14}{value:>12,.1f}   limit {LIMITS[name]:>8,.0f}   ratio {ratios[name]:.2f}")
    print(f"{'textbook':<14}{whole['isolation_forest_per_s']:>12,.1f}   isolation forest on raw parameters, updates a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
