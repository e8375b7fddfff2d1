"""Detectors: what they must find, whom they must leave alone, and what becomes of one that misbehaves."""

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from refold.consumers.detectors import Cohort, Detector, Direction, Ensemble, Norm, Quantile, Scores, TensorNorm
from refold.consumers.detectors.direction import _medians_of_others
from refold.consumers.features import FeatureExtractor, Features
from refold.schemas.layout import Layout
from refold.schemas.model import ModelSchema, TensorSchema
from refold.testing import eventually

SCHEMA = ModelSchema(
    (
        TensorSchema("hidden", "float32", (40, 20), 20, "mean"),
        TensorSchema("output", "float32", (20, 10), 20, "mean"),
        TensorSchema("steps", "int64", (), 0, "max"),
    )
)
EXTRACTOR = FeatureExtractor(SCHEMA, bytes(32))
SIZES = [tensor.size for tensor in SCHEMA.tensors if tensor.is_float]
Deltas = npt.NDArray[np.float64]


def features_of(delta: Deltas) -> Features:
    features = EXTRACTOR.start()
    parts = np.split(delta, np.cumsum(SIZES)[:-1])
    for block in Layout.of(SCHEMA):
        if SCHEMA.tensors[block.tensor].is_float:
            features.add(block, np.rint(parts[block.tensor][block.elements] * 2.0**20), 2.0**-20)
    return features.finish()


def cohort_of(deltas: Deltas | Sequence[Deltas], history: dict[str, dict[str, list[float]]] | None = None) -> Cohort:
    names = tuple(f"c{i}" for i in range(len(deltas)))
    return Cohort(1, names, tuple(features_of(delta) for delta in deltas), history or {})


def honest(rng: np.random.Generator, count: int, *, agreement: float = 0.6, spread: float = 0.25) -> Deltas:
    """Return deltas that share a direction and each have one of their own, of lengths that differ."""
    common = rng.normal(size=sum(SIZES))
    own = rng.normal(size=(count, sum(SIZES)))
    lengths = 0.01 * np.exp(rng.normal(0, spread, (count, 1)))
    return np.asarray(lengths * (agreement * common + (1 - agreement) * own))


def rejected(cohort: Cohort, ensemble: Ensemble | None = None) -> dict[str, tuple[str, ...]]:
    opinions = (ensemble or Ensemble([Norm(), TensorNorm(), Quantile(), Direction()])).judge(cohort)
    return {client: o.reasons for client, o in zip(cohort.clients, opinions, strict=True) if o.reasons}


@pytest.mark.parametrize("count", [3, 4, 6, 10, 40])
def test_an_update_a_hundred_times_too_long_is_rejected_for_its_norm(rng: np.random.Generator, count: int) -> None:
    deltas = honest(rng, count)
    deltas[1] *= 100
    found = rejected(cohort_of(deltas))
    assert list(found) == ["c1"]
    assert "norm" in found["c1"]


@pytest.mark.parametrize("count", [3, 4, 6, 10, 40])
def test_a_sign_flip_five_times_as_long_is_rejected(rng: np.random.Generator, count: int) -> None:
    deltas = honest(rng, count, spread=0.1)
    deltas[0] *= -5
    assert list(rejected(cohort_of(deltas))) == ["c0"]


def test_a_sign_flip_of_usual_length_is_rejected_where_the_others_agree(rng: np.random.Generator) -> None:
    deltas = honest(rng, 10)
    deltas[4] *= -1
    assert rejected(cohort_of(deltas), Ensemble([Norm(), Direction()])) == {"c4": ("direction",)}
    assert list(rejected(cohort_of(deltas))) == ["c4"]


def test_one_tensor_blown_up_is_rejected_though_the_norm_hardly_tells(rng: np.random.Generator) -> None:
    deltas = honest(rng, 10, spread=0.1)
    deltas[:, -SIZES[1] :] *= 0.05
    # Six times the median is the threshold, and an update may by chance be a third shorter than the others.
    deltas[2, -SIZES[1] :] *= 12
    assert rejected(cohort_of(deltas))["c2"] == ("tensor-norm",)


def test_the_tensor_that_was_blown_up_is_called_by_its_name(rng: np.random.Generator) -> None:
    deltas = honest(rng, 10, spread=0.1)
    deltas[:, : SIZES[0]] = 0  # A tensor that nobody changes is left out, and must not shift the others' names.
    deltas[2] *= 60
    cohort = replace(cohort_of(deltas), tensors=tuple(tensor.name for tensor in SCHEMA.tensors))
    said = [score.evidence for score in Ensemble([TensorNorm()]).judge(cohort)[2].scores]
    assert [text.split(":")[0] for text in said] == ["tensor output"]
    assert Ensemble([TensorNorm()]).judge(cohort_of(deltas))[2].scores[0].evidence.startswith("tensor 1:")


def test_a_few_huge_values_are_rejected(rng: np.random.Generator) -> None:
    deltas = honest(rng, 10, spread=0.1)
    deltas[3, ::50] *= 60
    assert "c3" in rejected(cohort_of(deltas))


def test_honest_updates_of_unlike_clients_are_left_alone(rng: np.random.Generator) -> None:
    judged = false = 0
    for _ in range(200):
        deltas = honest(rng, int(rng.integers(3, 16)), agreement=float(rng.uniform(0.05, 0.6)))
        judged += len(deltas)
        false += len(rejected(cohort_of(deltas)))
    print(f"false alarms: {false} of {judged} ({false / judged:.2%})")
    assert false / judged <= 0.01


@pytest.mark.parametrize("count", range(3, 12))
def test_a_majority_is_never_rejected(rng: np.random.Generator, count: int) -> None:
    class Everyone:
        name, version, reason = "everyone", 1, "norm"

        def score(self, cohort: Cohort) -> Scores:
            values = np.arange(1.0, len(cohort) + 1)
            return Scores(values, np.zeros(len(cohort)), ("guilty",) * len(cohort))

    found = rejected(cohort_of(honest(rng, count)), Ensemble([Everyone()]))
    assert len(found) == (count - 1) // 2
    assert f"c{count - 1}" in found, "those that stand out most are the ones"


def test_two_updates_are_accepted_there_being_no_majority_to_compare_with(rng: np.random.Generator) -> None:
    deltas = honest(rng, 2)
    deltas[0] *= 1000
    assert rejected(cohort_of(deltas)) == {}


def test_a_habit_is_rejected_that_would_pass_once(rng: np.random.Generator) -> None:
    deltas = honest(rng, 10, spread=0.02)
    deltas[0] *= 2.4
    assert rejected(cohort_of(deltas), Ensemble([Norm()])) == {}
    assert rejected(cohort_of(deltas, {"c0": {"norm": [1.9] * 7}}), Ensemble([Norm()])) == {"c0": ("norm",)}


def test_who_behaves_again_is_accepted_at_once(rng: np.random.Generator) -> None:
    assert rejected(cohort_of(honest(rng, 10), {"c0": {"norm": [12.0] * 8, "direction": [12.0] * 8}})) == {}


@pytest.mark.parametrize("count", [3, 4, 10])
def test_identical_and_nearly_empty_updates_give_finite_scores(rng: np.random.Generator, count: int) -> None:
    same = np.tile(honest(rng, 1)[0], (count, 1))
    tiny = np.zeros((count, sum(SIZES)))
    tiny[:, 0] = 1e-5
    for deltas in (same, tiny):
        for detector in (Norm(), TensorNorm(), Quantile(), Direction()):
            answer = detector.score(cohort_of(deltas))
            assert np.isfinite(answer.values).all()
            assert np.isfinite(answer.thresholds).all()
            assert len(answer.evidence) == count
        assert rejected(cohort_of(deltas)) == {}


class Raises:
    name, version, reason = "raises", 1, "norm"

    def score(self, cohort: Cohort) -> Scores:
        raise RuntimeError("broken")


class SaysNan:
    name, version, reason = "says-nan", 1, "norm"

    def score(self, cohort: Cohort) -> Scores:
        return Scores(np.full(len(cohort), np.nan), np.zeros(len(cohort)), ("",) * len(cohort))


class SaysTooLittle:
    name, version, reason = "says-too-little", 1, "norm"

    def score(self, cohort: Cohort) -> Scores:
        return Scores(np.ones(1), np.zeros(1), ("",))


class Writes:
    name, version, reason = "writes", 1, "norm"

    def score(self, cohort: Cohort) -> Scores:
        cohort.features[0].sketch[:] = 0
        return Scores(np.zeros(len(cohort)), np.ones(len(cohort)), ("",) * len(cohort))


class Exits:
    name, version, reason = "exits", 1, "norm"

    def score(self, cohort: Cohort) -> Scores:
        sys.exit(1)


class SaysNothingOfWhy:
    name, version, reason = "says-nothing-of-why", 1, "norm"

    def score(self, cohort: Cohort) -> Scores:
        return Scores(np.ones(len(cohort)), np.zeros(len(cohort)), None)  # type: ignore[arg-type]


class SaysMatrices:
    name, version, reason = "says-matrices", 1, "norm"

    def score(self, cohort: Cohort) -> Scores:
        return Scores(np.ones((len(cohort), 2)), np.zeros((len(cohort), 2)), ("",) * len(cohort))


class Forgets:
    name, version, reason = "forgets", 1, "norm"

    def score(self, cohort: Cohort) -> Scores:
        cohort.history.clear()  # type: ignore[attr-defined]
        return Scores(np.zeros(len(cohort)), np.ones(len(cohort)), ("",) * len(cohort))


BROKEN = (Raises(), SaysNan(), SaysTooLittle(), Writes(), Exits(), SaysNothingOfWhy(), SaysMatrices(), Forgets())


@pytest.mark.parametrize("broken", BROKEN, ids=lambda detector: detector.name)
def test_f08_a_broken_detector_is_counted_and_the_others_judge(rng: np.random.Generator, broken: Detector) -> None:
    deltas = honest(rng, 8)
    deltas[5] *= 100
    ensemble = Ensemble([broken, Norm()])
    assert rejected(cohort_of(deltas), ensemble) == {"c5": ("norm",)}
    assert ensemble.faults == {broken.name: 1}


class Hangs:
    name, version, reason = "hangs", 1, "norm"

    def __init__(self) -> None:
        self.asked = 0
        self.let_go = threading.Event()

    def score(self, cohort: Cohort) -> Scores:
        self.asked += 1
        self.let_go.wait()
        return Scores(np.zeros(len(cohort)), np.ones(len(cohort)), ("",) * len(cohort))


def test_f08_a_detector_that_hangs_is_left_out_until_it_returns(rng: np.random.Generator) -> None:
    deltas = honest(rng, 8)
    deltas[5] *= 100
    hangs = Hangs()
    ensemble = Ensemble([hangs, Norm()], patience_s=0.05)
    for count in (1, 2):
        assert rejected(cohort_of(deltas), ensemble) == {"c5": ("norm",)}
        assert (ensemble.faults, hangs.asked) == ({"hangs": count}, 1)
    assert "still hangs" in ensemble.last_fault["hangs"]
    hangs.let_go.set()
    eventually(lambda: rejected(cohort_of(deltas), ensemble) == {"c5": ("norm",)} and hangs.asked == 2)


def test_no_array_that_a_detector_is_given_can_be_written_to(rng: np.random.Generator) -> None:
    found = features_of(honest(rng, 1)[0])
    mine = replace(found, sketch=found.sketch.copy())
    given = Cohort(1, ("c0",), (mine,)).features[0]
    assert not any(a.flags.writeable for a in (given.facts, given.histogram, given.sketch, given.subset))
    assert mine.sketch.flags.writeable, "the caller's own arrays are left as they are"


@pytest.mark.parametrize("count", [3, 4, 7, 10])
def test_medians_of_the_others_are_those_that_numpy_finds(rng: np.random.Generator, count: int) -> None:
    rows = rng.integers(-2, 3, (count, 50)).astype(np.float64)
    expected = [np.median(np.delete(rows, index, axis=0), axis=0) for index in range(count)]
    np.testing.assert_array_equal(_medians_of_others(rows), expected)


def test_the_same_cohort_is_judged_alike_in_any_order(rng: np.random.Generator) -> None:
    deltas = honest(rng, 9)
    deltas[2] *= -5
    cohort = cohort_of(deltas)
    order = rng.permutation(9)
    shuffled = Cohort(1, tuple(cohort.clients[i] for i in order), tuple(cohort.features[i] for i in order))
    assert rejected(cohort) == rejected(shuffled)
