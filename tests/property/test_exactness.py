"""I4: the same bytes whatever the order, the threads, the chunks and the processor."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refold.schemas.codec import encode_integers
from refold.schemas.layout import BLOCK, Layout
from refold.state.aggregation import WeightedMean, least_exponents
from refold.state.delta import GRID, decode_update, delta_of
from refold.state.fold import fold_chunks
from refold.state.model_state import ModelState, initial_state
from refold.state.optimizers import OPTIMIZERS, FedAdam
from refold.state.step import Step, compute_step

SIZES = {"w": BLOCK + 77, "b": 13}
Sent = tuple[tuple[int, ...], list[bytes], int]


def base(rng: np.random.Generator) -> ModelState:
    tensors = {name: rng.normal(0, 0.1, size).astype(np.float32) for name, size in SIZES.items()}
    return initial_state(tensors | {"n": np.array(3), "last": np.array([0])}, {"last": "last"})


def send(state: ModelState, rng: np.random.Generator, clients: int, chunk_bytes: int = 1_000_000) -> list[Sent]:
    """Return what clients would send: exponents, chunks, weight."""
    sent: list[Sent] = []
    for client in range(clients):
        local = state.numpy()
        for name, size in SIZES.items():
            local[name] = local[name] + (rng.standard_t(3, size) * 10.0 ** rng.integers(-4, -1)).astype(np.float32)
        local["n"], local["last"] = np.array(3 + client), np.array([100 + client])
        delta = delta_of(state, local)
        chunks = list(encode_integers(delta.arrays, Layout.of(state.schema), max_chunk_bytes=chunk_bytes))
        sent.append((delta.exponents, chunks, int(rng.integers(1, 100_000))))
    return sent


def made(state: ModelState, sent: list[Sent], order: list[int], optimizer: str) -> ModelState:
    """Return the next round, the updates taken in this order."""
    mean = WeightedMean(state.schema, least_exponents(exponents for exponents, _, _ in sent))
    for index in order:
        exponents, chunks, weight = sent[index]
        mean.add(decode_update(GRID, exponents, chunks, state.schema), exponents, weight=weight, index=index)
    step = compute_step(state, mean.result(), OPTIMIZERS[optimizer]())
    assert isinstance(step, Step)
    after = state.copy()
    step.apply(after, round_=state.round + 1)
    return after


def test_the_model_does_not_depend_on_the_order_of_updates(rng: np.random.Generator) -> None:
    state = base(rng)
    sent = send(state, rng, 5)
    expected = made(state, sent, [0, 1, 2, 3, 4], "fedavg").digest
    for _ in range(200):
        assert made(state, sent, [int(i) for i in rng.permutation(5)], "fedavg").digest == expected


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_order_does_not_matter_over_rounds_with_slots(optimizer: str, rng: np.random.Generator) -> None:
    forwards = backwards = base(rng)
    for _ in range(3):
        sent = send(forwards, rng, 3)
        forwards, backwards = made(forwards, sent, [0, 1, 2], optimizer), made(backwards, sent, [2, 1, 0], optimizer)
        assert forwards.digest == backwards.digest


@pytest.mark.parametrize("chunk_bytes", [1, 50_000, 1_000_000])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_fold_does_not_depend_on_threads_and_chunks(chunk_bytes: int, threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    state = base(rng)
    layout = Layout.of(state.schema)
    arrays = [rng.integers(-(2**20), 2**20, array.size).astype(array.dtype) for array in state.parameters]
    exponents = (3, 0, 0, 0)
    expected = state.copy()
    for held, change, exponent in zip(expected.parameters, arrays, exponents, strict=True):
        held += change << exponent
    before = state.digest
    chunks = list(encode_integers(arrays, layout, max_chunk_bytes=chunk_bytes))
    fold_chunks(state.parameters, layout, chunks, exponents, threads=threads)
    assert state.digest == expected.digest
    assert state.tree(threads=threads) == expected.tree()
    fold_chunks(state.parameters, layout, chunks, exponents, sign=-1, threads=threads)
    assert state.digest == before


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(0, 31), st.sampled_from([1, -1])), max_size=8),
    st.randoms(use_true_random=False),
)
def test_steps_commute_and_undo_each_other_even_past_an_overflow(seed: int, steps: list[tuple[int, int]], shuffler) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    layout = Layout([40], [32])
    start = rng.integers(-(2**31), 2**31 - 1, 40).astype(np.int32)
    coded = [
        (list(encode_integers([rng.integers(-(2**31), 2**31 - 1, 40).astype(np.int32)], layout)), j, sign) for j, sign in steps
    ]
    one, other = start.copy(), start.copy()
    for chunks, j, sign in coded:
        fold_chunks([one], layout, chunks, (j,), sign=sign)
    shuffler.shuffle(coded)
    for chunks, j, sign in coded:
        fold_chunks([other], layout, chunks, (j,), sign=sign)
    assert one.tobytes() == other.tobytes()
    for chunks, j, sign in coded:
        fold_chunks([one], layout, chunks, (j,), sign=-sign)
    assert one.tobytes() == start.tobytes()


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=30), st.integers(1, 2**24), st.integers(1, 5))
def test_an_optimizer_gives_every_element_the_same_alone_or_in_company(values: list[int], weight: int, cuts: int) -> None:
    delta = np.array(values, np.float64) / weight * 2.0**-22
    slots = (np.abs(delta) * 0.5, np.abs(delta) * 0.25)
    whole, _ = FedAdam().change(delta, slots)
    parts = [
        FedAdam().change(piece, (m, v))[0]
        for piece, m, v in zip(*(np.array_split(array, cuts) for array in (delta, *slots)), strict=True)
    ]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


PROGRAM = """
import sys
sys.path[:0] = {path!r}
import importlib.util
import numpy as np
spec = importlib.util.spec_from_file_location("exactness", {file!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
rng = np.random.default_rng({seed})
for optimizer in sorted(module.OPTIMIZERS):
    state = module.base(rng)
    for _ in range(2):
        state = module.made(state, module.send(state, np.random.default_rng(1), 3), [0, 1, 2], optimizer)
    print(optimizer, state.digest.hex())
features = np.show_config(mode="dicts")["SIMD Extensions"]
print("ENABLED", *features.get("found", []))
"""


def run_without(features: str, seed: int) -> tuple[list[str], set[str]]:
    """Return the digests and the processor features that NumPy used, in a process of its own."""
    program = PROGRAM.format(path=sys.path, file=str(Path(__file__)), seed=seed)
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": features}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    *digests, enabled = found.stdout.splitlines()
    return digests, set(enabled.split()[1:])


def test_the_model_does_not_depend_on_the_processors_features(seed: int) -> None:
    every, used = run_without("", seed)
    wide = sorted(
        used & {"X86_V4", "X86_V3", "AVX512_SKX", "AVX512_ICL", "AVX512_SPR", "AVX2", "FMA3", "AVX512F", "ASIMDHP", "SVE"}
    )
    if not wide:
        pytest.skip(f"NumPy uses no feature here that can be left out (only {sorted(used)})")
    plain, left = run_without(" ".join(wide), seed)
    assert not left & set(wide)
    assert every == plain
    assert len(every) == len(OPTIMIZERS)
