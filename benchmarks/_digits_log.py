"""The steps of a model that is trained on digits by a few clients, round after round, and their merged steps.

One model of about a million parameters is trained for real; its tensors are then repeated until the model is as large as asked.
Bytes a parameter and the time to decode one are those of the trained steps; only the training of ten equal models is saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import zstandard

from refold.schemas.chunks import PLANES, open_chunks, pack_chunks
from refold.schemas.layout import Layout
from refold.schemas.model import ModelSchema
from refold.state.aggregation import WeightedMean
from refold.state.delta import MAX_FINER, delta_of
from refold.state.merging import Part, due, halves, merge
from refold.state.model_state import ModelState, initial_state
from refold.state.optimizers import Optimizer
from refold.state.paths import Piece
from refold.state.step import Step, compute_step

CLIENTS, BATCH, LR = 2, 64, 0.1
XOR_EVERY = 50


@dataclass(frozen=True, slots=True)
class Coded:
    """A step of the trained model, as chunks."""

    exponents: tuple[int, ...]
    chunks: tuple[bytes, ...]

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.chunks))


@dataclass
class DigitsLog:
    """What training left.

    Parameters
    ----------
    states
        The trained model's state at the rounds that were asked for.
    singles, merged
        Each round's step, and the merged steps.
    slots_bytes
        Of each round's step of the optimizer's slots.
    xor_bytes
        Of some rounds: the compressed XOR of the parameters' floats with those of the round before.
    accuracy
        Of the last round, on examples that nobody trained with.
    """

    schema: ModelSchema
    states: dict[int, ModelState] = field(default_factory=dict)
    singles: dict[int, Coded] = field(default_factory=dict)
    merged: dict[Piece, Coded] = field(default_factory=dict)
    slots_bytes: list[int] = field(default_factory=list)
    xor_bytes: list[int] = field(default_factory=list)
    accuracy: float = 0.0


class _Training:
    """A perceptron in torch and its clients' digits."""

    def __init__(self, torch: Any, side: int, seed: int) -> None:
        from sklearn.datasets import load_digits

        self._torch = torch
        torch.manual_seed(seed)
        nn = torch.nn
        self.model = nn.Sequential(nn.Linear(64, side), nn.ReLU(), nn.Linear(side, side), nn.ReLU(), nn.Linear(side, 10))
        digits = load_digits()
        self._x = torch.tensor(digits.data / 16, dtype=torch.float32)
        self._y = torch.tensor(digits.target)
        order = np.random.default_rng(seed).permutation(len(digits.target))
        self._test, self._parts = order[:400], np.array_split(order[400:], CLIENTS)
        self._chance = np.random.default_rng(seed + 1)

    def locally(self, base: dict[str, Any], client: int) -> dict[str, Any]:
        """Return what a client makes of a round's state with one batch."""
        self.model.load_state_dict(base)
        batch = self._chance.choice(self._parts[client], BATCH, replace=False)
        loss = self._torch.nn.functional.cross_entropy(self.model(self._x[batch]), self._y[batch])
        self.model.zero_grad()
        loss.backward()
        with self._torch.no_grad():
            for tensor in self.model.parameters():
                tensor -= LR * tensor.grad
        return dict(self.model.state_dict())

    def accuracy(self, base: dict[str, Any]) -> float:
        self.model.load_state_dict(base)
        with self._torch.no_grad():
            return float((self.model(self._x[self._test]).argmax(1) == self._y[self._test]).float().mean())


def train(
    torch: Any, optimizer: Optimizer, *, side: int, rounds: int, keep: set[int], merging: bool, seed: int = 1
) -> DigitsLog:
    """Train, and keep the states of these rounds."""
    training = _Training(torch, side, seed)
    state = initial_state(training.model.state_dict())
    log = DigitsLog(state.schema)
    for round_ in range(rounds + 1):
        if round_:
            before = state.numpy() if round_ % XOR_EVERY == 0 else None
            step = _step(training, state, optimizer)
            step.apply(state, round_=round_)
            log.singles[round_] = Coded(step.exponents, tuple(step.encode()))
            log.slots_bytes.append(sum(map(len, step.encode_slots())) if step.slots else 0)
            if before is not None:
                log.xor_bytes.append(_xor_bytes(before, state.numpy()))
        if merging:
            for piece in due(round_, round_ - 1) if round_ else ():
                log.merged[piece] = _merged(log, piece)
        if round_ in keep:
            log.states[round_] = state.copy()
    log.accuracy = training.accuracy(state.torch())
    return log


def _step(training: _Training, state: ModelState, optimizer: Optimizer) -> Step:
    base, plan, mean = state.torch(), None, None
    for client in range(CLIENTS):
        delta = delta_of(state, training.locally(base, client), plan=plan)
        plan = plan or delta.exponents
        mean = mean or WeightedMean(state.schema, tuple(max(0, k - MAX_FINER) for k in plan))
        blocks = ((block, delta.arrays[block.tensor][block.elements]) for block in Layout.of(state.schema))
        mean.add(blocks, delta.exponents, weight=BATCH, index=client)
    assert mean is not None
    step = compute_step(state, mean.result(), optimizer)
    assert isinstance(step, Step)
    return step


def _merged(log: DigitsLog, piece: Piece) -> Coded:
    pair = halves(piece, log.merged)
    parts = [log.merged[half] for half in pair] if pair else [log.singles[r] for r in range(piece[0] + 1, piece[1] + 1)]
    step = merge(log.schema, [Part(part.exponents, lambda part=part: part.chunks, None) for part in parts], {})  # type: ignore[misc]
    return Coded(step.exponents, tuple(step.encode()))


def _xor_bytes(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Return what XOR with the round before and zstd leave of the parameters."""
    compressor = zstandard.ZstdCompressor(level=3)
    pairs = ((before[name].view(np.uint32), after[name].view(np.uint32)) for name in after)
    return sum(len(compressor.compress(np.bitwise_xor(a, b).tobytes())) for a, b in pairs)


def tiled_schema(schema: ModelSchema, times: int) -> ModelSchema:
    """Return the schema of the model, repeated."""
    copies = (replace(t, name=f"{copy}.{t.name}") for copy in range(times) for t in schema.tensors)
    return ModelSchema(tuple(copies))


def tiled_state(state: ModelState, schema: ModelSchema, times: int) -> ModelState:
    """Return the state of the repeated model, with arrays of its own."""
    return ModelState(schema, state.round, [array.copy() for _ in range(times) for array in state.parameters])


def tiled_chunks(coded: Coded, schema: ModelSchema, times: int) -> Iterator[bytes]:
    """Yield the chunks of the repeated model's step: what encoding it would give, block for block."""
    blocks = [
        (part.mask, [bytes(frame) for frame in part.frames])
        for parts in open_chunks(coded.chunks, Layout.of(schema), PLANES)
        for part in parts
    ]
    return pack_chunks(blocks * times, PLANES)
