"""What privacy costs: sealing an update beside sending it plain, and noise beside none, on digits.

Sealing: a client's coding and the server's inspection of one update, plain and sealed in turn in one process; the ratio is of
the medians of processor time, 1 being free. Noise: the federation of `detection_small.py` without faults, every client clipping
to the same length and adding noise of the same deviation; ε is what one client has spent after all rounds at δ = 1e-5.

    python benchmarks/privacy.py [--parameters N] [--runs N] [--clients N] [--seeds N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from detection_small import ROUNDS, Simulation

from refold.consumers.features import FeatureExtractor
from refold.consumers.sealing import SealingKeys, opened
from refold.demo.data import load_digits
from refold.demo.network import Weights
from refold.producers.noise import NormalStream
from refold.producers.privacy import epsilon_of
from refold.producers.sealer import Place
from refold.schemas.codec import encode_integers
from refold.schemas.layout import Integers, Layout
from refold.schemas.model import ModelSchema
from refold.schemas.payload import describe
from refold.schemas.sealing import OVERHEAD_BYTES, ROOM_BYTES, SUITE, chunk_info, seal
from refold.schemas.updates import Sealing
from refold.state.clipping import SHORTER
from refold.state.delta import decode_update
from refold.state.tensors import schema_of

CLIP = 2.0
"""About the length of an honest delta of the first rounds on digits."""

MULTIPLIERS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
DELTA = 1e-5
HERE = Place("ann", 7, bytes(8), 3)


def sealing(parameters: int, runs: int) -> dict[str, Any]:
    """Return processor seconds of coding and inspecting an update, plain and sealed, and the ratio."""
    rng = np.random.default_rng(1)
    schema = schema_of({"w": rng.normal(0, 0.1, parameters).astype("f4")})
    arrays: list[Integers] = [rng.normal(0, 16, parameters).astype(np.int32)]
    extractor = FeatureExtractor(schema, bytes(32))
    with TemporaryDirectory() as folder:
        keys = SealingKeys(Path(folder))
        key = keys.create(HERE.client)
        taken: dict[str, list[float]] = {"plain": [], "sealed": []}
        sizes = {}
        for _ in range(runs):
            for kind, seconds in taken.items():
                begun = time.process_time()
                chunks = _coded(arrays, schema, key.public if kind == "sealed" else None)
                _inspected(chunks, schema, extractor, keys, Sealing(SUITE, key.key_id) if kind == "sealed" else None)
                seconds.append(time.process_time() - begun)
                sizes[kind] = sum(map(len, chunks))
    medians = {kind: statistics.median(seconds) for kind, seconds in taken.items()}
    about = {"parameters": parameters, "runs": runs, "chunk_overhead_bytes": OVERHEAD_BYTES}
    return {**about, "bytes": sizes, "cpu_s": medians, "ratio": medians["plain"] / medians["sealed"]}


def _coded(arrays: list[Integers], schema: ModelSchema, public: bytes | None) -> list[bytes]:
    """Do a client's work: code, seal, and name the chunks by their digests."""
    chunks = list(encode_integers(arrays, Layout.of(schema), max_chunk_bytes=ROOM_BYTES))
    if public is not None:
        chunks = [seal(public, chunk, chunk_info("toy", HERE, index)) for index, chunk in enumerate(chunks)]
    describe(chunks)
    return chunks


def _inspected(
    chunks: list[bytes], schema: ModelSchema, extractor: FeatureExtractor, keys: SealingKeys, sealing: Sealing | None
) -> None:
    """Do the server's work: compare digests, open, decode, take features."""
    describe(chunks)
    features = extractor.start()
    for block, integers in decode_update("grid", (0,), opened(chunks, sealing, "toy", HERE, keys), schema):
        features.add(block, integers, 2.0 ** -schema.tensors[block.tensor].exponent)
    features.finish()


class Noisy(Simulation):
    """A federation without faults whose clients all clip and add noise."""

    def __init__(self, seed: int, clients: int, multiplier: float) -> None:
        super().__init__(seed, 0.5, clients, faults=False, oracle=False)
        self._multiplier = multiplier
        self._normal = NormalStream(seed.to_bytes(32, "little"))

    def _delta(self, client: int, round_: int, factor: float) -> Weights:
        delta = super()._delta(client, round_, factor)
        length = float(np.sqrt(sum(float(np.square(part, dtype=np.float64).sum()) for part in delta.values())))
        scale = min(1.0, CLIP / length * SHORTER)
        sigma = CLIP * self._multiplier
        return {
            name: (part * scale + sigma * self._normal(part.size).reshape(part.shape)).astype(np.float32)
            for name, part in delta.items()
        }


def one(job: tuple[int, int, float]) -> tuple[float, int, int]:
    """Return final accuracy, honest updates and how many of them were refused."""
    simulation = Noisy(*job)
    final = simulation.run()
    return final, simulation.tally.honest, simulation.tally.false


def noise(clients: int, seeds: int) -> list[dict[str, Any]]:
    """Return a row for each noise multiplier."""
    rows = []
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        for multiplier in MULTIPLIERS:
            found = list(pool.map(one, [(seed, clients, multiplier) for seed in range(1, seeds + 1)]))
            accuracies, honest, refused = zip(*found, strict=True)
            epsilon = epsilon_of([(multiplier, ROUNDS)], DELTA) if multiplier else None
            row = {"multiplier": multiplier, "accuracy": float(np.mean(accuracies)), "refused": sum(refused) / sum(honest)}
            rows.append({**row, "epsilon": epsilon})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sealed = sealing(options.parameters, options.runs)
    rows = noise(options.clients, options.seeds)
    if options.json:
        print(json.dumps({"sealing": sealed, "noise": rows, "clients": options.clients, "rounds": ROUNDS}))
        return 0
    for kind, seconds in sealed["cpu_s"].items():
        print(f"{kind:7}{seconds * 1000:9.1f} ms of CPU to code and inspect, {sealed['bytes'][kind]:,} bytes")
    print(f"ratio  {sealed['ratio']:9.3f} (1: sealing is free)\n")
    print(f"{options.clients} clients, {ROUNDS} rounds, {len(load_digits())} digits, clip {CLIP}: noise that everyone adds")
    print(f"{'multiplier':>10}{'ε':>12}{'accuracy':>10}{'refused':>9}")
    for row in rows:
        spent = "∞" if row["epsilon"] is None else f"{row['epsilon']:.4g}"
        print(f"{row['multiplier']:>10g}{spent:>12}{row['accuracy']:>10.3f}{row['refused']:>9.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
