"""How fast and how small the codecs are, beside zstd level 1 alone on the raw float32 bytes.

Megabytes per second count float32 bytes of the model, in one thread, on heavy-tailed deltas; the ratio of sizes is raw / coded
(larger is better). ``encode`` takes a trained tensor and the base's integers, ``decode`` ends with checked integers. ``topk``
has a residual of as much again to add, and its delta falls to the share named.

    python benchmarks/codec.py [--parameters N] [--repeats N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard

from refold.schemas.codec import encode_floats, encode_integers
from refold.schemas.layout import Layout
from refold.schemas.topk import encode_sparse
from refold.state.delta import EXACT, FLOAT32, GRID, TOPK, decode_update, delta_of
from refold.state.largest import SparseDelta, sparse_delta
from refold.state.model_state import initial_state

CLIENT_SPREAD = 1e-3


def use_one_thread() -> None:
    """Start the program again where a library could still use more than one thread; they read this when they are loaded."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})


def seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the median time of some work, and its result."""
    found = []
    result = work()
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        found.append(time.perf_counter() - start)
    return statistics.median(found), result


def measure(parameters: int, repeats: int) -> dict[str, Any]:
    rng = np.random.default_rng(11)
    base = {"weight": rng.normal(0, 0.03, parameters).astype(np.float32)}
    state = initial_state(base)
    start = state.numpy()["weight"]
    local = {"weight": start + (CLIENT_SPREAD * rng.standard_t(5, parameters)).astype(np.float32)}
    change = local["weight"] - start
    layout = Layout.of(state.schema)
    results: dict[str, Any] = {}

    def record(name: str, encode: Callable[[], list[bytes]], decode: Callable[[list[bytes]], object]) -> None:
        encode_s, chunks = seconds(encode, repeats)
        decode_s, _ = seconds(lambda: decode(chunks), repeats)
        size = sum(map(len, chunks))
        results[name] = {
            "encode_mb_s": round(change.nbytes / encode_s / 1e6),
            "decode_mb_s": round(change.nbytes / decode_s / 1e6),
            "size_ratio": round(change.nbytes / size, 2),
            "bytes": size,
        }

    def drain(codec: str, exponents: tuple[int, ...]) -> Callable[[list[bytes]], object]:
        return lambda chunks: [None for _ in decode_update(codec, exponents, chunks, state.schema)]

    grid = delta_of(state, local).exponents
    record(GRID, lambda: list(encode_integers(delta_of(state, local).arrays, layout)), drain(GRID, grid))
    record(EXACT, lambda: list(encode_integers(delta_of(state, local, exact=True).arrays, layout)), drain(EXACT, (0,)))
    rest = np.rint(CLIENT_SPREAD * rng.standard_t(5, parameters) * 2.0 ** state.schema.tensors[0].exponent).astype(np.int32)
    for ppm in (10_000, 1_000):
        # The residual is read from disk for every update, and overwritten: a copy stands for the read.
        def sparse(ppm: int = ppm) -> SparseDelta:
            return sparse_delta(state, local, rest=[rest.copy()], density_ppm=ppm)

        exponents = sparse().exponents
        record(f"{TOPK} {ppm / 10_000:g} %", lambda s=sparse: list(encode_sparse(s().tensors, layout)), drain(TOPK, exponents))
    record(FLOAT32, lambda: list(encode_floats([change], layout)), drain(FLOAT32, (0,)))
    compressor, decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    raw = change.tobytes()
    record("zstd-1 alone", lambda: [compressor.compress(raw)], lambda chunks: decompressor.decompress(chunks[0]))
    peer = results["zstd-1 alone"]
    for result in results.values():
        result["ratio_to_zstd"] = {
            name: round(result[name] / peer[name], 2) for name in ("encode_mb_s", "decode_mb_s", "size_ratio")
        }
    return results


def main() -> int:
    use_one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = measure(options.parameters, options.repeats)
    if options.json:
        print(json.dumps({"parameters": options.parameters, "numpy": np.__version__, "codecs": results}, indent=2))
        return 0
    print(f"{options.parameters:,} parameters; in brackets: times zstd-1 alone")
    print(f"{'codec':<14}{'encode MB/s':>18}{'decode MB/s':>18}{'smaller by':>18}")
    for name, result in results.items():
        ratios = result["ratio_to_zstd"]
        cells = (f"{result[key]} ({ratios[key]})" for key in ("encode_mb_s", "decode_mb_s", "size_ratio"))
        print(f"{name:<14}" + "".join(f"{cell:>18}" for cell in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
