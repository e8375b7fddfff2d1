"""How fast a model comes back by replay, beside ``torch.load`` of a whole checkpoint.

Three ways back are timed, with FedAvg (the state is the parameters) and with FedAdam (the state has two slots more). The peers
are ``model``, a checkpoint of the parameters alone, and ``model+adam``, one of the parameters and Adam's two moments: what a
training loop saves, and for FedAdam the same content as ours.

- ``step``: a node that is one round behind adds one step: read, chunk digests checked, decoded, applied.
- ``rebuild``: nothing is held: the snapshot of the round before is read and checked, then the step is added.
- ``verified``: the same, and the digest of the whole state compared with the recorded one.

Both sides read files that lie in the page cache, in one thread, in turns; the ratio is that of the medians (ours / torch's,
smaller is better). A step is entropy-coded, 5 to 6 times smaller than the parameters, and unpacking it costs about a nanosecond
a parameter; a checkpoint in the page cache is a copy of memory. Where disk or network give less than about 4 GB/s, the smaller
file wins by more than these ratios say.

    python benchmarks/replay.py [--parameters N] [--repeats N] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from refold.schemas.codec import encode_raw
from refold.schemas.errors import IntegrityError
from refold.schemas.layout import Layout
from refold.schemas.payload import chunk_digest
from refold.state.aggregation import WeightedMean
from refold.state.delta import delta_of
from refold.state.model_state import ModelState, initial_state
from refold.state.optimizers import FedAdam, FedAvg, Optimizer
from refold.state.paths import RoundEntry
from refold.state.replay import PARAMETERS, SLOTS, rebuild
from refold.state.step import Step, compute_step

PEERS = ("model", "model+adam")
OURS = ("step", "rebuild", "verified")


class ChunkFile:
    """Chunks end to end in a file, read back one at a time, each checked against its digest."""

    def __init__(self, path: Path, chunks: Iterable[bytes]) -> None:
        self.path = path
        self.digests: list[bytes] = []
        with path.open("wb") as file:
            for chunk in chunks:
                self.digests.append(chunk_digest(chunk))
                file.write(struct.pack("<I", len(chunk)) + chunk)

    def read(self) -> Iterator[bytes]:
        with self.path.open("rb", buffering=0) as file:
            for digest in self.digests:
                chunk = file.read(struct.unpack("<I", file.read(4))[0])
                if chunk_digest(chunk) != digest:
                    raise IntegrityError("a chunk is not the one that was written", path=self.path)
                yield chunk


class Files:
    """One snapshot (round 1) and one step (round 2)."""

    def __init__(self, folder: Path, before: ModelState, step: Step) -> None:
        names = tuple(before.slots)
        slots = [array for held in before.slots.values() for array in held]
        layout = Layout.of(before.schema)
        self.snapshots = {
            PARAMETERS: ChunkFile(folder / "snapshot", encode_raw(before.parameters, layout)),
            SLOTS: ChunkFile(folder / "snapshot-slots", encode_raw(slots, Layout.of_slots(before.schema, names))),
        }
        self.steps = {
            PARAMETERS: ChunkFile(folder / "step", step.encode()),
            SLOTS: ChunkFile(folder / "step-slots", step.encode_slots()),
        }

    def step(self, round_: int, part: str) -> Iterator[bytes]:
        return self.steps[part].read()

    def snapshot(self, round_: int, part: str) -> Iterator[bytes]:
        return self.snapshots[part].read()


def model(parameters: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return a state of about this many parameters: square layers with biases."""
    side = 1000
    layers = max(1, parameters // (side * side))
    state: dict[str, Any] = {}
    for layer in range(layers):
        state[f"layer{layer}.weight"] = rng.normal(0, 0.03, (side - 1, side)).astype(np.float32)
        state[f"layer{layer}.bias"] = rng.normal(0, 0.01, side).astype(np.float32)
    return state


def next_step(state: ModelState, optimizer: Optimizer, rng: np.random.Generator, clients: int = 4) -> Step:
    """Return the step of a cohort whose dense deltas have heavy tails."""
    layout = Layout.of(state.schema)
    floats = state.numpy()
    mean = None
    for client in range(clients):
        local = {name: array + (1e-3 * rng.standard_t(5, array.shape)).astype(np.float32) for name, array in floats.items()}
        delta = delta_of(state, local, plan=mean.exponents if mean else None)
        mean = mean or WeightedMean(state.schema, tuple(max(0, k - 2) for k in delta.exponents))
        blocks = ((block, delta.arrays[block.tensor][block.elements]) for block in layout)
        mean.add(blocks, delta.exponents, weight=100, index=client)
    assert mean is not None
    step = compute_step(state, mean.result(), optimizer)
    assert isinstance(step, Step)
    return step


def entry(state: ModelState, step: Step) -> RoundEntry:
    tree = state.tree()
    digests = tree.parameters_digest, tree.state_digest
    return RoundEntry(state.round, state.round - 1, step.exponents, step.slot_exponents, *digests)


def checkpoint(torch: Any, state: ModelState, path: Path, *, adam: bool) -> None:
    """Save what a training loop in torch would."""
    content: dict[str, Any] = {"model": state.torch(), "round": state.round}
    if adam:
        moments = [{"exp_avg": t.clone(), "exp_avg_sq": t.clone(), "step": 1} for t in state.torch().values()]
        content["optimizer"] = {"state": dict(enumerate(moments))}
    torch.save(content, path)


def timed(work: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    result = work()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def compare(torch: Any, optimizer: Optimizer, parameters: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Time the three ways back and the checkpoint in turns."""
    rng = np.random.default_rng(7)
    state = initial_state(model(parameters, rng))
    first = next_step(state, optimizer, rng)
    first.apply(state, round_=1)
    before = state.copy()
    second = next_step(state, optimizer, rng)
    second.apply(state, round_=2)
    rounds = {1: entry(before, first), 2: entry(state, second)}
    files = Files(folder, before, second)
    checkpoint(torch, state, folder / "model.pt", adam=False)
    checkpoint(torch, state, folder / "model+adam.pt", adam=True)
    live = before.copy()

    def step() -> object:
        live.round = 1
        return rebuild(2, live.schema, rounds, (), files, held=live, verify=False)

    ways: dict[str, Callable[[], object]] = {
        "model": lambda: torch.load(folder / "model.pt", weights_only=True),
        "model+adam": lambda: torch.load(folder / "model+adam.pt", weights_only=True),
        "step": step,
        "rebuild": lambda: rebuild(2, state.schema, rounds, (1,), files, verify=False),
        "verified": lambda: rebuild(2, state.schema, rounds, (1,), files),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            elapsed = timed(way)
            if turn:
                seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "optimizer": optimizer.name,
        "parameters": state.schema.size,
        "milliseconds": {name: round(1e3 * value, 2) for name, value in medians.items()},
        "fastest_milliseconds": {name: round(1e3 * min(values), 2) for name, values in seconds.items()},
        "ratio": {peer: {name: round(medians[name] / medians[peer], 3) for name in OURS} for peer in PEERS},
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }


def start_again() -> None:
    """Start the program again with what libraries read only when they are loaded: one thread, and memory as after a crash.

    Left alone, the C library keeps large freed arrays for the next turn in some turns and not in others, and whoever loads
    the most is timed with or without the cost of new pages by chance. A process that recovers has new pages: so have all
    turns here; buffers below the threshold are used again, up to twice its size, as it does when left alone.
    """
    memory = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(2 << 20)}
    wanted = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **memory}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def main() -> int:
    start_again()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("torch is not installed: pip install 'refold[torch]'", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    results = []
    for optimizer in (FedAvg(), FedAdam()):
        with tempfile.TemporaryDirectory() as folder:
            results.append(compare(torch, optimizer, options.parameters, options.repeats, Path(folder)))
    if options.json:
        print(json.dumps({"numpy": np.__version__, "torch": torch.__version__, "results": results}, indent=2))
        return 0
    for result in results:
        print(f"{result['optimizer']}, {result['parameters']:,} parameters: {result['bytes']}")
        for name, value in result["milliseconds"].items():
            ratios = "".join(f"   {result['ratio'][peer][name]:.2f} of {peer}" for peer in PEERS) if name in OURS else ""
            print(f"  {name:<12}{value:8.1f} ms{ratios}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
