"""Features: they add up over any cut, keep what matters, and travel as canonical bytes."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refold.consumers.features import (
    BINS,
    FACTS,
    LEAST,
    MOST,
    POSITIVES,
    SKETCH_WIDTH,
    SQUARES,
    SUBSET,
    SUM,
    ZEROS,
    FeatureExtractor,
    Features,
    PackedFeatures,
)
from refold.schemas.canonical import encode
from refold.schemas.errors import InvalidRecord
from refold.schemas.layout import Block, Integers, Layout
from refold.schemas.model import ModelSchema, TensorSchema
from refold.schemas.reasons import REASONS

SECRET = bytes(range(32))
SCHEMA = ModelSchema(
    (
        TensorSchema("w", "float32", (300, 11), 20, "mean"),
        TensorSchema("n", "int64", (3,), 0, "max"),
        TensorSchema("empty", "float32", (0,), 20, "mean"),
        TensorSchema("b", "float32", (700,), 20, "mean"),
    )
)
SIZES = (3300, 3, 0, 700)
FLOATS = (0, 3)
SCALE = 2.0**-20


def change(seed: int, spread: float = 5000) -> list[Integers]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, spread, size).astype(np.int32) for size in SIZES]


def features(arrays: list[Integers], cuts: tuple[int, ...] = (), *, secret: bytes = SECRET, order: int = 0) -> Features:
    """Add the float tensors cut at these places, the pieces in an order drawn from `order`."""
    pieces: list[tuple[Block, Integers]] = []
    for tensor in FLOATS:
        edges = sorted({0, SIZES[tensor], *(cut for cut in cuts if cut < SIZES[tensor])})
        pieces += [(Block(0, tensor, a, b - a, 32), arrays[tensor][a:b]) for a, b in itertools.pairwise(edges)]
    made = FeatureExtractor(SCHEMA, secret).start()
    for index in np.random.default_rng(order).permutation(len(pieces)):
        block, integers = pieces[index]
        made.add(block, integers, SCALE)
    return made.finish()


def flat(arrays: list[Integers]) -> npt.NDArray[np.float64]:
    return np.concatenate([arrays[tensor] for tensor in FLOATS]) * SCALE


@given(st.lists(st.sampled_from([8 * n for n in range(1, 412)]), max_size=6), st.integers(0, 99))
def test_features_are_the_same_however_the_delta_is_cut(cuts: list[int], order: int) -> None:
    whole, cut = features(change(1)), features(change(1), tuple(cuts), order=order)
    np.testing.assert_allclose(cut.facts, whole.facts, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(cut.histogram, whole.histogram)
    np.testing.assert_array_equal(cut.subset, whole.subset)


def test_the_blocks_of_the_layout_are_the_cut_that_every_member_uses() -> None:
    made = [FeatureExtractor(SCHEMA, SECRET).start() for _ in range(2)]
    arrays = change(2)
    blocks = [block for block in Layout.of(SCHEMA) if SCHEMA.tensors[block.tensor].is_float]
    for block in blocks:
        made[0].add(block, arrays[block.tensor][block.elements], SCALE)
    for block in reversed(blocks):
        made[1].add(block, arrays[block.tensor][block.elements], SCALE)
    np.testing.assert_allclose(made[0].finish().sketch, made[1].finish().sketch, rtol=1e-5, atol=1e-7)


def test_the_facts_are_what_their_names_say() -> None:
    arrays = change(3)
    arrays[0][:17] = 0
    facts = features(arrays).facts
    values = arrays[0] * SCALE
    assert facts.shape == (4, FACTS)
    assert facts[0, [ZEROS, POSITIVES]].tolist() == [np.sum(values == 0), np.sum(values > 0)]
    np.testing.assert_allclose(
        facts[0, [SUM, SQUARES, LEAST, MOST]], [values.sum(), (values**2).sum(), values.min(), values.max()], rtol=1e-5
    )
    assert not facts[1].any(), "integer tensors take no part"
    assert not facts[2].any(), "empty ones have nothing to tell"


def test_the_sketch_keeps_norms_and_angles() -> None:
    made = [features(change(seed)) for seed in range(20)]
    vectors = [flat(change(seed)) for seed in range(20)]
    for feature, vector in zip(made, vectors, strict=True):
        assert feature.sketch.shape == (SKETCH_WIDTH,)
        assert np.linalg.norm(feature.sketch) == pytest.approx(np.linalg.norm(vector), rel=0.15)
    near = change(0)
    near[0] = near[0] + change(1)[0] // 4
    a, b = features(near).sketch, made[0].sketch
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    x, y = flat(near), vectors[0]
    assert cosine == pytest.approx(float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)), abs=0.1)


def test_a_small_model_is_its_own_sketch() -> None:
    schema = ModelSchema((TensorSchema("w", "float32", (5,), 20, "mean"),))
    made = FeatureExtractor(schema, SECRET).start()
    made.add(Block(0, 0, 0, 5, 32), np.array([1, -2, 3, 0, 5], np.int32), 1.0)
    done = made.finish()
    assert done.sketch.tolist() == done.subset.tolist() == [1, -2, 3, 0, 5]


def test_who_does_not_know_the_secret_does_not_know_the_sketch() -> None:
    mine, others = features(change(1)), features(change(1), secret=bytes(32))
    assert not np.array_equal(mine.sketch, others.sketch)
    assert not np.array_equal(mine.subset, others.subset)
    assert len(mine.subset) == SUBSET
    np.testing.assert_array_equal(mine.facts, others.facts)


def test_quantiles_are_found_to_within_a_factor_of_two() -> None:
    made, magnitudes = features(change(1)), np.abs(flat(change(1)))
    for q in (0.1, 0.5, 0.9, 0.99):
        assert 0.5 <= made.quantile(q) / np.quantile(magnitudes, q) <= 2
    assert np.isfinite(features([array * 0 for array in change(1)]).quantile(0.5))


def test_a_change_of_nothing_is_known_as_such() -> None:
    made = FeatureExtractor(SCHEMA, SECRET).start()
    assert made.is_zero
    made.add(Block(0, 0, 0, 9, 32), np.zeros(9, np.int32), 1.0)
    assert made.is_zero
    made.add(Block(0, 3, 0, 9, 32), np.eye(1, 9, dtype=np.int32)[0], 1.0)
    assert not made.is_zero


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**60, 2.0**100, 2.0**127])
def test_f33_the_largest_changes_there_are_stay_numbers_and_stay_large(scale: float) -> None:
    made = FeatureExtractor(SCHEMA, SECRET).start()
    made.add(Block(0, 0, 0, 3300, 32), np.full(3300, 2**27, np.int32), scale)
    done = made.finish()
    for array in (done.facts, done.sketch, done.subset):
        assert np.isfinite(array).all()
    assert done.norm == pytest.approx(2**27 * scale * np.sqrt(3300))
    assert done.histogram.sum() == 3300
    Features.unpack(done.pack())


def test_features_travel_as_they_were_and_cannot_be_changed() -> None:
    made = features(change(1))
    back = Features.unpack(made.pack())
    assert back.count == made.count == 4000
    for name in ("facts", "histogram", "sketch", "subset"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
        with pytest.raises(ValueError, match="read-only"):
            getattr(back, name)[0] = 1
    assert back.pack() == made.pack()


@given(st.binary(max_size=200))
def test_f30_bytes_that_are_no_features_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRecord) as caught:
        Features.unpack(data)
    assert caught.value.reason in REASONS


@pytest.mark.parametrize("lengths", [(7, BINS * 8, 8, 8), (48, BINS * 8, 7, 8), (48, BINS * 8, 8, 9)])
def test_f30_features_of_odd_lengths_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRecord):
        Features.unpack(encode(PackedFeatures(1, *map(bytes, lengths))))
